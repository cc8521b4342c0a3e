"""How good and how fast a model on the way is, beside the unshrunk one: the same rows, the same minutes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from budwood.data import Example, Task, collate
from budwood.errors import BadConfig
from budwood.evaluate import LossReport, evaluate_loss, latency
from budwood.evaluate.generate import context_of
from budwood.intervals import bootstrap
from budwood.records import Score, Timing

BY_LIKELIHOOD = ("causal-lm", "seq2seq", "masked-lm")
BY_ACCURACY = ("classification", "cloze", "token-classification")
PROMPT, WRITTEN = 64, 16
"""Tokens read and written when times are taken."""


@dataclass(frozen=True)
class Held:
    """Held-out rows, encoded for one vocabulary."""

    task: Task
    examples: tuple[Example, ...]
    pad_id: int
    batch: int

    def ask(self, model: Any) -> LossReport:
        """Losses and right answers of each row, in an order that does not depend on the model."""
        ordered = sorted(self.examples, key=lambda example: -example.size)
        size = self.batch
        return evaluate_loss(
            model, (collate(ordered[at : at + size], self.pad_id) for at in range(0, len(ordered), size))
        )

    def scores(self, report: LossReport) -> tuple[Score, ...]:
        """What people read: perplexity, or accuracy, with intervals; the loss beside it."""
        if self.task in BY_LIKELIHOOD:
            return (report.perplexity, report.loss)
        return (replace(report.token_accuracy, name="accuracy"), report.loss)

    def quality(self, own: LossReport, whole: LossReport) -> Score:
        """As a share of the unshrunk model's, with a paired bootstrap interval over rows."""
        _, losses, tokens, correct = own.by_row()
        _, whole_losses, _, whole_correct = whole.by_row()
        if self.task in BY_LIKELIHOOD:
            columns = np.stack([losses, whole_losses, tokens], axis=1)  # [rows, 3]

            def share(sums: np.ndarray) -> np.ndarray:
                ratio: np.ndarray = np.exp((sums[:, 1] - sums[:, 0]) / np.maximum(sums[:, 2], 1.0))
                return ratio

            unit = "likelihood per token, of the unshrunk model's"
        else:
            columns = np.stack([correct, whole_correct], axis=1)  # [rows, 2]

            def share(sums: np.ndarray) -> np.ndarray:
                ratio: np.ndarray = sums[:, 0] / np.maximum(sums[:, 1], 1.0)
                return ratio

            unit = "accuracy, of the unshrunk model's"
        low, high = bootstrap(share, columns)
        value = float(share(columns.sum(axis=0, keepdims=True))[0])
        return Score(name="quality", value=value, low=low, high=high, n=len(columns), unit=unit)


def timed(model: Any, repeats: int = 5) -> Timing:
    """How fast it reads and writes, in fewer tokens where it cannot take as many."""
    context = context_of(model) or PROMPT + WRITTEN
    prompt = min(PROMPT, context // 2)
    return latency(model, prompt_tokens=prompt, new_tokens=min(WRITTEN, context - prompt - 1), repeats=repeats)


def timed_beside(model: Any, other: Any, rounds: int = 3) -> tuple[Timing, float]:
    """(how fast a model reads and writes, how many times faster than another one), measured by turns.

    The machine may be faster at one minute than at another; a ratio of neighbours does not see that.
    """
    pairs = [(timed(model, 3), timed(other, 3)) for _ in range(rounds)]
    pairs.sort(key=lambda pair: answer_s(pair[1]) / answer_s(pair[0]))
    own, reference = pairs[len(pairs) // 2]
    return own, answer_s(reference) / answer_s(own)


def answer_s(timing: Timing) -> float:
    """Seconds for a prompt and an answer of the usual length."""
    return timing.prefill_s + WRITTEN * (timing.per_token_s or 0.0)


def check_task(task: Task) -> None:
    """Raise BadConfig for a task that has no measure of quality."""
    known = (*BY_LIKELIHOOD, *BY_ACCURACY)
    if task not in known:
        raise BadConfig(f"shrinking does not know what quality is for {task}; it does for {', '.join(known)}")
