"""Which learning rates were tried before a run, and what came of each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budwood.errors import BadCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from budwood.records.files import Json


@dataclass(frozen=True, kw_only=True)
class RateTrial:
    """A few steps at one learning rate."""

    rate: float
    """The rate."""
    loss: float | None
    """After the steps, on rows that they did not see, in nats per target; None where it diverged."""
    error: str | None = None
    """How it diverged."""

    def __str__(self) -> str:
        return f"{self.rate:g} {'diverged' if self.loss is None else f'{self.loss:.4g}'}"


@dataclass(frozen=True, kw_only=True)
class RateProbe:
    """All that were tried, from the same start on the same rows, and the one that the run was trained at."""

    rate: float
    """The peak learning rate of the run: of the lowest loss, or the method's own where all of them say too little."""
    before: float
    """The loss before any step."""
    trials: tuple[RateTrial, ...]
    """Each rate, the lowest first."""
    steps: int
    """Optimizer steps at each."""
    scored: str
    """What the losses are of: "64 validation rows"."""
    seconds: float
    """What trying cost, beside the run's own time."""

    is_clear: bool
    """Whether the best learned enough in these steps to be told from the others; else `rate` is the method's own."""

    @property
    def is_end(self) -> bool:
        """Whether the best is the lowest or highest that was tried, so that a better one may lie beyond."""
        return self.is_clear and self.rate in (self.trials[0].rate, self.trials[-1].rate)

    def __str__(self) -> str:
        tried = ", ".join(map(str, self.trials))
        end = "the highest" if self.rate == self.trials[-1].rate else "the lowest"
        more = f"; {end} tried, a better one may lie beyond" if self.is_end else ""
        if not self.is_clear:
            more = f"; none is clearly below the {self.before:.4g} of the start, so it is the method's own"
        return f"{self.rate:g} (probed {tried}; {self.steps} steps each{more})"

    @classmethod
    def from_dict(cls, plain: Mapping[str, Json], *, where: str) -> RateProbe:
        """The inverse of `dataclasses.asdict`. Raises BadCheckpoint, naming the file `where`."""
        try:
            trials = tuple(RateTrial(**trial) for trial in plain["trials"])
            probe = cls(**{**plain, "trials": trials})
            if not trials or not 0 < probe.rate < math.inf:
                raise ValueError(f"rate is {probe.rate!r} after {len(trials)} trials")
        except (TypeError, KeyError, ValueError) as error:
            raise BadCheckpoint(
                f"{where} does not say which learning rates were tried ({error}); it was edited or cut: "
                "restore it or run again"
            ) from error
        return probe
