"""What a run tells while it runs: a progress bar, a log, a notebook listen by being an `Observer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from budwood.records import Score

if TYPE_CHECKING:
    from budwood.train.preflight import Preflight


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """One optimizer step."""

    step: int
    """Counted from 1."""
    total_steps: int | None
    """None where the budget is a time."""
    progress: float
    """Share of the run that is behind, in [0, 1]."""
    epoch: float
    """Passes over the rows so far."""
    loss: float
    """Mean over the targets of the step, in nats."""
    learning_rate: float
    """The rate this step was taken at."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    tokens: int
    """Prompt and learned tokens of the step, without padding."""
    learned_tokens: int
    """Targets of the step."""
    seconds: float
    """Time the step took."""
    elapsed_s: float
    """Time of all steps so far, those before a resume included."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Components of the loss, where it has several, as means over the targets."""

    @property
    def tokens_per_s(self) -> float:
        """Speed of this step."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_s(self) -> float:
        """Seconds of training left, judged by the share that is behind."""
        return self.elapsed_s * (1.0 - self.progress) / self.progress if self.progress > 0 else 0.0


class Observer(Protocol):
    """Told what happens, in order; must not change anything."""

    def preflight(self, facts: Preflight) -> None:
        """What the run is about to do, before its folder is made."""

    def note(self, text: str) -> None:
        """Something a person should know: a smaller batch, a save, a proof passed."""

    def step(self, point: StepPoint) -> None:
        """An optimizer step was taken."""

    def validation(self, step: int, scores: Sequence[Score]) -> None:
        """Held-out rows were scored after `step` steps."""

    def sample(self, sample: Mapping[str, str]) -> None:
        """A held-out prompt was answered: `prompt`, `base`, `now` and, where known, `reference`."""


class Silent:
    """An observer that says nothing."""

    def preflight(self, facts: Preflight) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def step(self, point: StepPoint) -> None:
        """Nothing."""

    def validation(self, step: int, scores: Sequence[Score]) -> None:
        """Nothing."""

    def sample(self, sample: Mapping[str, str]) -> None:
        """Nothing."""
