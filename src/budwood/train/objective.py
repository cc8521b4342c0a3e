"""What a step minimises: sums over targets, so that pieces of a batch add up to exactly the whole batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from budwood.data import IGNORE, Batch
from budwood.errors import BadData


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
        labels = batch.labels[:, 1:]  # [B, T - 1]: position t predicts token t + 1
        learned = labels != IGNORE  # [B, T - 1]
        positions = learned.any(dim=0).nonzero().flatten()  # [K]
        logits = logits_at(model, batch, positions)  # [B, K, V]
        chosen = learned[:, positions]  # [B, K]
        picked = logits[chosen].float()  # [targets, V]
        total = F.cross_entropy(picked, labels[:, positions][chosen], reduction="sum")
        return Loss(total, int(chosen.sum()))


@dataclass(frozen=True)
class MaskedLM:
    """Cross-entropy of each hidden token given all others."""

    def targets(self, batch: Batch) -> int:
        """Hidden tokens."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """logits: [B, T, V], labels: [B, T]; float32 only where a token is hidden."""
        if batch.labels is None or batch.shift:
            raise BadData("a masked language model needs rows with hidden tokens; read the data with task masked-lm")
        hidden = batch.labels != IGNORE  # [B, T]
        picked = model(**batch.inputs()).logits[hidden].float()  # [targets, V]
        return Loss(F.cross_entropy(picked, batch.labels[hidden], reduction="sum"), int(hidden.sum()))


@dataclass(frozen=True)
class Classify:
    """Cross-entropy of each row's class."""

    def targets(self, batch: Batch) -> int:
        """Rows."""
        return batch.num_targets

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """logits: [B, classes], labels: [B]."""
        if batch.labels is None or batch.labels.ndim != 1:
            raise BadData("a classifier needs one label for each row; read the data with task classification")
        logits = model(**batch.inputs()).logits  # [B, classes]
        if logits.shape[-1] <= int(batch.labels.max()):
            raise BadData(
                f"the data has a label {int(batch.labels.max())} but the model only {logits.shape[-1]} classes; "
                f"load it with {int(batch.labels.max()) + 1} labels"
            )
        return Loss(F.cross_entropy(logits.float(), batch.labels, reduction="sum"), len(batch))


OBJECTIVES: dict[str, type[CausalLM] | type[Classify] | type[MaskedLM]] = {
    "causal-lm": CausalLM,
    "classification": Classify,
    "masked-lm": MaskedLM,
}
"""The objective of each task."""


def logits_at(model: nn.Module, batch: Batch, positions: Tensor) -> Tensor:
    """[B, K, V] logits at the given positions of every row, counted from the end where the model can skip the rest.

    positions: [K] int64 in [0, T)
    """
    known = forward_arguments(type(bare(model)).forward)
    extra: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if "logits_to_keep" in known:
        return model(**batch.inputs(), **extra, logits_to_keep=positions - batch.input_ids.shape[1]).logits
    return model(**batch.inputs(), **extra).logits[:, positions]


@cache
def forward_arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments that a model class' forward takes."""
    return frozenset(inspect.signature(forward).parameters)


def bare(model: nn.Module) -> nn.Module:
    """The model inside a DistributedDataParallel wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
