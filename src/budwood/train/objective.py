"""What a step minimises: sums over targets, so that pieces of a batch add up to exactly the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol
from weakref import WeakSet

import torch.nn.functional as F
from torch import Tensor, nn

from budwood.data import IGNORE, Batch
from budwood.errors import BadData
from budwood.evaluate import span_logits, span_losses
from budwood.evaluate.head import head_of
from budwood.evaluate.inputs import bare, class_logits, fitted, logits_at
from budwood.fast.loss import token_loss


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of one batch, not yet divided."""

    total: Tensor
    """[] float32, summed over the targets; the caller divides by the targets of the whole step."""
    tokens: int
    """How many targets it is a sum over."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Sums of its components, for the record; empty where there is but one."""


class Objective(Protocol):
    """A loss for batches of one kind."""

    def targets(self, batch: Batch) -> int:
        """How many targets the loss of this batch is a sum over, before any forward."""

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The summed loss of one forward; `model` is the user's own, or a wrapper that forwards to it."""


@dataclass(frozen=True)
class CausalLM:
    """Cross-entropy of each learned token given those before it."""

    def targets(self, batch: Batch) -> int:
        """Learned tokens after the shift."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """Logits are asked for only at positions where some row learns something, and float32 only where it does."""
        if batch.labels is None or batch.labels.ndim != 2 or not batch.shift:
            raise BadData("a language model needs a label for each token; read the data with task causal-lm")
        return _token_loss(model, batch, batch.labels[:, 1:], batch.labels.shape[1])  # position t predicts token t + 1


@dataclass(frozen=True)
class Seq2Seq:
    """Cross-entropy of each token that the decoder writes, given the source and those before it."""

    def targets(self, batch: Batch) -> int:
        """Tokens to write."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """The decoder's inputs are the labels shifted by the model, so labels stand where they are predicted."""
        if batch.labels is None or batch.target_lengths is None:
            raise BadData("an encoder-decoder needs rows with a source and a target; read the data with task seq2seq")
        return _token_loss(model, batch, batch.labels, batch.labels.shape[1])


@dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of each hidden token given all others."""

    needs: ClassVar[str] = "a masked language model needs rows with hidden tokens; read the data with task masked-lm"

    def targets(self, batch: Batch) -> int:
        """Hidden tokens."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """logits: [B, T, V], labels: [B, T]; float32 only where something is learned."""
        if batch.labels is None or batch.labels.ndim != 2 or batch.shift:
            raise BadData(self.needs)
        learned = batch.labels != IGNORE  # [B, T]
        logits = model(**batch.inputs()).logits[:, -batch.labels.shape[1] :]  # [B, T, V], without a prompt in front
        picked = logits[learned].float()  # [targets, V]
        return Loss(F.cross_entropy(picked, batch.labels[learned], reduction="sum"), int(learned.sum()))


@dataclass(frozen=True)
class Tag(MaskedLM):
    """Cross-entropy of the tag of each word, at its first token."""

    needs: ClassVar[str] = "a tagger needs a tag for each word; read the data with task token-classification"


@dataclass(frozen=True)
class FindSpan:
    """Mean of two cross-entropies over the tokens of a window: of where the answer begins, and of where it ends."""

    def targets(self, batch: Batch) -> int:
        """Windows."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """spans: [B, 2]."""
        if batch.spans is None:
            raise BadData("finding answers needs their places; read the data with task question-answering")
        return Loss(span_losses(span_logits(model, batch), batch).sum(), len(batch))


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of each row's class."""

    def targets(self, batch: Batch) -> int:
        """Rows."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """logits: [B, classes], of a head or of a cloze's words; labels: [B]."""
        if batch.labels is None or batch.labels.ndim != 1:
            raise BadData("a classifier needs one label for each row; read the data with task classification")
        logits = class_logits(model, batch)  # [B, classes]
        if logits.shape[-1] <= int(batch.labels.max()):
            raise BadData(
                f"the data has a label {int(batch.labels.max())} but the model only {logits.shape[-1]} classes; "
                f"load it with {int(batch.labels.max()) + 1} labels"
            )
        return Loss(F.cross_entropy(logits.float(), batch.labels, reduction="sum"), len(batch))


OBJECTIVES: Mapping[str, Callable[[], Objective]] = {
    "causal-lm": CausalLM,
    "classification": Classify,
    "masked-lm": MaskedLM,
    "seq2seq": Seq2Seq,
    "cloze": Classify,
    "token-classification": Tag,
    "question-answering": FindSpan,
}
"""The objective of each task."""


_OPAQUE: WeakSet[nn.Module] = WeakSet()
"""Models that do more to logits than is known of their head: their own forward makes them."""


def _token_loss(model: nn.Module, batch: Batch, labels: Tensor, width: int) -> Loss:
    """The loss at the labels that are learned.

    labels: [B, T'] int64, at the positions that predict them;  width: positions of the text
    """
    learned = labels != IGNORE  # [B, T']
    head = None if bare(model) in _OPAQUE or not bool(learned.any()) else head_of(model)
    captured = None if head is None else head.capture(fitted(model, batch).inputs())
    if head is not None and captured is not None:
        states = captured.hidden[:, -width:][:, : labels.shape[1]][learned]  # [targets, d], no prompt in front
        total = token_loss(states, partial(head.logits, captured), labels[learned])
        return Loss(total, len(states))
    positions = learned.any(dim=0).nonzero().flatten()  # [K]
    logits = logits_at(model, batch, positions)  # [B, K, V]
    chosen = learned[:, positions]  # [B, K]
    picked = logits[chosen].float()  # [targets, V]
    total = F.cross_entropy(picked, labels[:, positions][chosen], reduction="sum")
    if head is not None and bool(total.isfinite()):  # of numbers that are none, nothing can be said
        _OPAQUE.add(bare(model))
    return Loss(total, int(chosen.sum()))
