"""Loss at labelled positions only, row by row; the logits of a whole batch are never held."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from budwood.records import Score

if TYPE_CHECKING:
    from budwood.data import Batch


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What an evaluation over batches found, one entry for each row, in the order the rows came."""

    rows: np.ndarray
    """[rows] int64, the row numbers of the data."""
    losses: np.ndarray
    """[rows] float64, summed over the row's labelled positions, in nats."""
    tokens: np.ndarray
    """[rows] int64, labelled positions (1 for a classification row)."""
    correct: np.ndarray
    """[rows] int64, labelled positions at which the most likely token is the label."""
    route: str
    """"chunked head", "plain forward": how the losses were computed."""

    @property
    def loss(self) -> Score:
        """Mean over all labelled positions, in nats, with a bootstrap interval over rows."""
        raise NotImplementedError

    @property
    def perplexity(self) -> Score:
        """exp of `loss`, likewise."""
        raise NotImplementedError

    @property
    def token_accuracy(self) -> Score:
        """Share of labelled positions predicted right, with a bootstrap interval over rows."""
        raise NotImplementedError


def evaluate_loss(
    model: nn.Module, batches: Iterable[Batch], *, chunk_tokens: int = 256, shift: bool = True
) -> LossReport:
    """Losses of `model` on `batches`, in evaluation mode, without gradients; the mode is put back afterwards.

    chunk_tokens: supervised positions whose logits are held at a time
    shift:        True for causal models (position t predicts label t + 1), False for masked ones
    Raises        BadData if no position counts.
    """
    raise NotImplementedError
