"""Tags of words: predictions, and scores of the spans that they mark, which `data.tags` says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from budwood.data import Batch, encode_words
from budwood.data.tagging import firsts
from budwood.data.tags import OUTSIDE, spans
from budwood.errors import BadConfig, BadData
from budwood.evaluate import metrics
from budwood.evaluate.batches import batches
from budwood.evaluate.ensemble import Ensemble, combined
from budwood.evaluate.generate import longest_of
from budwood.evaluate.mode import evaluating
from budwood.intervals import Floats, Integers
from budwood.records import Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Tagging:
    """Predicted tags of rows, in the order the rows came."""

    names: tuple[str, ...]
    """The model's tags."""
    rows: tuple[int, ...]
    """The row numbers of the data."""
    words: tuple[tuple[int, ...], ...]
    """Of each row, the words that were read: those that stand in a token before the cut."""
    said: tuple[tuple[str, ...], ...]
    """The likeliest tag of each of them."""
    right: tuple[tuple[str, ...], ...]
    """The right tag of each; empty where nobody knows."""
    losses: Floats
    """[rows] cross-entropy, summed over the words, in nats."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """F1, precision and recall of spans, strict F1, accuracy of tags, loss; each with a bootstrap over rows."""
        if not self.rows:
            raise BadData("there are no rows to tag; give at least one")
        hits, said, right = self.counts().T
        strict = self.counts(strict=True)
        tokens = np.array([len(row) for row in self.right])
        return (
            metrics.of_sums("span_f1", 2 * hits, said + right, unit="0 to 1"),
            metrics.of_sums("span_precision", hits, said, unit="share of spans"),
            metrics.of_sums("span_recall", hits, right, unit="share of spans"),
            metrics.of_sums("strict_span_f1", 2 * strict[:, 0], strict[:, 1] + strict[:, 2], unit="0 to 1"),
            metrics.token_accuracy(self.correct, tokens),
            metrics.mean_loss(self.losses, tokens),
        )

    @property
    def correct(self) -> Integers:
        """[rows] words with the right tag."""
        pairs = zip(self.said, self.right, strict=True)
        return np.array([sum(a == b for a, b in zip(*row, strict=True)) for row in pairs], np.int64)

    def counts(self, *, strict: bool = False) -> Integers:
        """[rows, 3] spans that are right, spans said, spans there are."""
        found = []
        for said, right in zip(self.said, self.right, strict=True):
            ours, theirs = (set(spans(tags, self.names if strict else None)) for tags in (said, right))
            found.append((len(ours & theirs), len(ours), len(theirs)))
        return np.array(found, np.int64).reshape(-1, 3)


def tag(model: Any, batches: Iterable[Batch], *, ensemble: Ensemble | None = None) -> Tagging:
    """The tags of a token classifier of transformers, encoder or decoder, over batches of words.

    ensemble: the adapters whose probabilities are averaged; without it, the model as it is
    Raises BadConfig for a model that does something else.
    """
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    rows: list[tuple[int, tuple[int, ...], tuple[str, ...], tuple[str, ...], float]] = []
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            logits = combined(_logits, model, here, ensemble)  # [B, T, tags]
            for place, row in enumerate(batch.rows):
                tokens, words = zip(*firsts(batch.parts[place]), strict=True)
                scores = logits[place, list(tokens)].float()  # [words, tags]
                said = tuple(names[number] for number in scores.argmax(dim=-1).tolist())
                right: tuple[str, ...] = ()
                loss = 0.0
                if here.labels is not None:
                    labels = here.labels[place, list(tokens)]
                    right = tuple(names[number] for number in labels.tolist())
                    loss = float(F.cross_entropy(scores.double(), labels, reduction="sum"))
                rows.append((row, words, said, right, loss))
    numbers, words_of, said_of, right_of, losses = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Tagging(
        names=names, rows=numbers, words=words_of, said=said_of, right=right_of, losses=np.array(losses, np.float64)
    )


def _logits(model: Any, batch: Batch) -> Tensor:
    """[B, T, tags], without what a soft prompt put in front."""
    out = model(**batch.inputs())
    if "logits" not in out or out.logits.ndim != 3 or out.logits.shape[-1] != model.config.num_labels:
        raise BadConfig(f"{type(model).__name__} does not tag words; load the model for token-classification")
    logits: Tensor = out.logits[:, -batch.input_ids.shape[1] :]
    return logits


def tag_sentences(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[Sequence[str]],
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> list[list[str]]:
    """The tag of each word; words that were cut off are outside."""
    limit = max_length or longest_of(model, tokenizer)
    examples, _ = encode_words(sentences, tokenizer, max_length=limit)
    found = tag(model, batches([one for one in examples if any(one.parts or ())], tokenizer, batch_size))
    tags = [[OUTSIDE] * len(words) for words in sentences]
    for row, words, said in zip(found.rows, found.words, found.said, strict=True):
        for word, name in zip(words, said, strict=True):
            tags[row][word] = name
    return tags
