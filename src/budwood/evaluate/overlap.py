"""Metrics of texts against references: exact match, token F1, ROUGE-L, BLEU.

A reference is a text or several; with several, the best one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from budwood.records import Score

References: TypeAlias = Sequence[str | Sequence[str]]


def exact_match(predictions: Sequence[str], references: References) -> Score:
    """Share of rows whose normalised text equals a reference's; Wilson's interval."""
    raise NotImplementedError


def token_f1(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Mean harmonic mean of precision and recall of the words, as in SQuAD (arXiv:1606.05250)."""
    raise NotImplementedError


def rouge_l(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Mean F measure of the longest common subsequence of words (Lin 2004)."""
    raise NotImplementedError


def bleu(predictions: Sequence[str], references: References, *, seed: int = 0) -> Score:
    """Corpus BLEU of sacrebleu (arXiv:1804.08771), 0 to 100.  Raises NotAvailable without budwood[metrics]."""
    raise NotImplementedError
