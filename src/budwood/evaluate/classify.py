"""Classification: predictions from logits, and their scores."""

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
class Classification:
    """Predicted classes of rows, in the order the rows came."""

    rows: np.ndarray
    """[rows] int64, the row numbers of the data."""
    labels: np.ndarray
    """[rows] int64, the right classes."""
    predictions: np.ndarray
    """[rows] int64, the classes with the largest logit."""
    logits: np.ndarray
    """[rows, classes] float32."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """accuracy, macro_f1, mcc, loss; each with an interval."""
        raise NotImplementedError


def classify(model: nn.Module, batches: Iterable[Batch]) -> Classification:
    """Run a sequence classifier (encoder or decoder) over batches whose labels are [rows].

    Raises BadData if there is no row, BadConfig if padding changes what the model says.
    """
    raise NotImplementedError
