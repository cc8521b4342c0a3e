"""Rows in, scores out: what a model is asked, what it answered, how good that was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from budwood.records import Score


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model made of one row: a line of predictions.jsonl."""

    row: int
    """Row number in the data."""
    prompt: str
    """What it was asked."""
    prediction: str
    """What it answered."""
    references: tuple[str, ...]
    """What would have been right."""
    values: dict[str, float]
    """This row's part in each metric; runs are compared by them."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores, and the rows behind them."""

    scores: tuple[Score, ...]
    predictions: tuple[Prediction, ...]

    def score(self, name: str) -> Score:
        """The score of that name.  Raises BadConfig, with the names there are."""
        raise NotImplementedError


def evaluate(model: nn.Module, tokenizer: Any, rows: Sequence[Any], *, metrics: Sequence[str]) -> EvaluationResult:
    """Evaluate on rows of a split."""
    raise NotImplementedError
