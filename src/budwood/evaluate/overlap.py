"""Metrics of texts against references: exact match, token F1, ROUGE-L, BLEU.

A reference is a text or several; with several, the best one counts.

Two ways of cutting a text into words:
    SQuAD's: lower case, without ASCII punctuation and without the articles a, an, the, cut at white space
             (exact match, token F1);
    ROUGE's: lower case, runs of letters and digits of any script, without stemming.  For text in ASCII these are
             the words of the rouge-score package; a run of Chinese characters is one word.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from budwood.errors import BadData, NotAvailable
from budwood.evaluate.metrics import mean, share
from budwood.intervals import RESAMPLES, quantiles
from budwood.records import Score

References: TypeAlias = Sequence[str | Sequence[str]]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
WORD = re.compile(r"[^\W_]+")
ORDERS = 4
"""BLEU counts n-grams up to this length."""


def exact_match(predictions: Sequence[str], references: References) -> Score:
    """Share of rows whose words (SQuAD's way) are a reference's, in order; Wilson's interval."""
    values = _each(exact_of, predictions, references)
    return share("exact_match", round(sum(values)), len(values))


def token_f1(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Mean of the rows' `f1_of`; bootstrap over rows."""
    return mean("token_f1", np.array(_each(f1_of, predictions, references)), unit="0 to 1", seed=seed)


def rouge_l(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Mean of the rows' `rouge_l_of`; bootstrap over rows."""
    return mean("rouge_l", np.array(_each(rouge_l_of, predictions, references)), unit="0 to 1", seed=seed)


def exact_of(prediction: str, reference: str) -> float:
    """1 if both are the same words (SQuAD's way), else 0."""
    return float(squad_words(prediction) == squad_words(reference))


def f1_of(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, as in SQuAD (arXiv:1606.05250), in [0, 1].

    Two texts without words agree (1); a text without words and one with words do not (0).
    """
    found, wanted = Counter(squad_words(prediction)), Counter(squad_words(reference))
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (found & wanted).total() / (found.total() + wanted.total())


def rouge_l_of(prediction: str, reference: str) -> float:
    """F measure (beta 1) of the longest common subsequence of words (Lin 2004), in [0, 1]."""
    found, wanted = WORD.findall(prediction.lower()), WORD.findall(reference.lower())
    if not found or not wanted:
        return float(found == wanted)
    return 2 * common_subsequence(found, wanted) / (len(found) + len(wanted))


def bleu(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Corpus BLEU of sacrebleu (arXiv:1804.08771; its own tokeniser 13a, exponential smoothing), 0 to 100.

    Bootstrap over rows.  Raises NotAvailable without budwood[metrics].
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise NotAvailable("BLEU needs the package sacrebleu: pip install 'budwood[metrics]'") from error
    rows = _rows(predictions, references)
    scorer = BLEU(effective_order=True)
    counts = [scorer.sentence_score(prediction, several) for prediction, several in rows]
    table = np.array([[row.sys_len, row.ref_len, *row.counts, *row.totals] for row in counts])  # [rows, 10]

    def of(sums: np.ndarray) -> float:
        whole = [int(number) for number in sums]
        matches, totals = whole[2 : 2 + ORDERS], whole[2 + ORDERS :]
        return float(BLEU.compute_bleu(matches, totals, whole[0], whole[1], smooth_method="exp").score)

    dice = np.random.default_rng(seed)
    draws = [of(table[dice.integers(0, len(table), len(table))].sum(axis=0)) for _ in range(RESAMPLES)]
    low, high = quantiles(np.array(draws))
    return Score(name="bleu", value=of(table.sum(axis=0)), low=low, high=high, n=len(rows), unit="0 to 100")


def squad_words(text: str) -> list[str]:
    """The words of a text, SQuAD's way."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004): one addition for each word of `second`.

    Bit i of `gaps` is 0 where the i-th word of `first` ends a longer match than before.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    everything = (1 << len(first)) - 1
    gaps = everything
    for word in second:
        matches = gaps & places.get(word, 0)
        gaps = ((gaps + matches) | (gaps - matches)) & everything
    return len(first) - gaps.bit_count()


def best(of: Callable[[str, str], float], prediction: str, references: Sequence[str]) -> float:
    """The metric of one row against the reference that it suits best."""
    return max((of(prediction, reference) for reference in references), default=math.nan)


def _each(of: Callable[[str, str], float], predictions: Sequence[str], references: References) -> list[float]:
    return [best(of, prediction, several) for prediction, several in _rows(predictions, references)]


def _rows(predictions: Sequence[str], references: References) -> list[tuple[str, list[str]]]:
    """(prediction, its references) of each row.  Raises BadData if they do not fit together."""
    if len(predictions) != len(references):
        raise BadData(f"{len(predictions)} predictions for {len(references)} references; give one for each")
    if not predictions:
        raise BadData("there are no rows to score; give at least one")
    rows = []
    for number, (prediction, several) in enumerate(zip(predictions, references, strict=True), start=1):
        rows.append((prediction, [several] if isinstance(several, str) else list(several)))
        if not rows[-1][1]:
            raise BadData(f"row {number} has no reference; give at least one, or leave the row out")
    return rows
