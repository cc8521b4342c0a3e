"""Teachers: what they say at the positions that a student learns at, without a gradient, dropout or randomness."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from budwood.core import Plan, adapters, using
from budwood.data import Batch
from budwood.distill.content import fingerprint_of
from budwood.distill.supervised import Columns, Reader
from budwood.errors import BadConfig
from budwood.evaluate import evaluating
from budwood.train.randomness import same_randomness


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a teacher says of a batch at its n supervised positions, in the order of `Reading`.

    Either all logits, made for some positions at a time, or the k likeliest choices.
    """

    count: int
    """n."""
    full: Callable[[slice | Tensor], Tensor] | None = None
    """Some positions -> [m, width] float32 logits."""
    ids: Tensor | None = None
    """[n, k] int64, the likeliest first."""
    log_probs: Tensor | None = None
    """[n, k] float32, at temperature 1, among all choices: they add up to at most 1, and the rest is the tail."""
    covered: Tensor | None = None
    """[n] bool, the positions that it can say something of, where that is not all; `at` gives those alone."""
    scale: float = 1.0
    """What a sum over the covered positions is multiplied by to stand for all of them."""

    def __len__(self) -> int:
        return self.count

    @property
    def is_full(self) -> bool:
        """Whether every choice has its logit."""
        return self.full is not None

    def at(self, positions: slice | Tensor) -> Tensor:
        """[m, width] float32 logits. Raises BadConfig where only the likeliest choices are known."""
        if self.full is None:
            raise BadConfig("a cached teacher has only its likeliest choices; this loss needs the teacher itself")
        return self.full(positions)


class Teacher(Protocol):
    """Whoever can be asked about a batch."""

    def say(self, batch: Batch) -> Said:
        """What it says, on the batch's device."""


class LiveTeacher:
    """A model in memory beside the student's, under the plan that is in force on it."""

    def __init__(self, model: Any, task: str, *, columns: Columns = None) -> None:
        """columns: as `Reader` has it."""
        self.model, self.reader = model, Reader(task, columns=columns)

    def say(self, batch: Batch) -> Said:
        """One forward now; of a language model the hidden states are kept, and logits are made when asked for."""
        device = batch.input_ids.device
        with same_randomness(), self.speaking():
            reading = self.reader(self.model, batch.to(self.model.device))

        def full(positions: slice | Tensor) -> Tensor:
            with self.speaking():
                return reading.at(positions).to(device)

        return Said(count=len(reading), full=full)

    def fingerprint(self) -> str:
        """Tells it from any other teacher: a hash of all its weights and of its plan."""
        with self.speaking():
            return fingerprint_of(self.model)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Inside, `model` is the teacher: in evaluation mode, under its plan."""
        with evaluating(self.model):
            yield


class SameModel(LiveTeacher):
    """The student's own weights under another plan: a teacher that takes no memory."""

    def __init__(self, model: Any, task: str, plan: Plan = None, *, columns: Columns = None) -> None:
        """plan: what the teacher is; None is the base. Raises BadConfig where the base itself is being trained."""
        super().__init__(model, task, columns=columns)
        self.plan = plan
        self._check()

    def say(self, batch: Batch) -> Said:
        """As `LiveTeacher.say`; the student's plan, modes and random state are as before afterwards."""
        self._check()
        return super().say(batch)

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """As `LiveTeacher.speaking`, under the teacher's plan."""
        with using(self.model, self.plan), super().speaking():
            yield

    def _check(self) -> None:
        in_place = next((name for name, adapter in adapters(self.model).items() if adapter.unfrozen), None)
        if in_place is not None:
            raise BadConfig(
                f"{in_place!r} trains the model's own weights in place, so they cannot teach it; "
                "give the teacher as a second model (its name, folder or run)"
            )
