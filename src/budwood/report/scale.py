"""From values to places on an axis, linear or logarithmic, and the round numbers that are marked on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies."""
        low, high, here = self.low, self.high, value
        if self.is_log:
            low, high, here = log10(low), log10(high), log10(max(here, 1e-300))
        return round(self.start + (here - low) / (high - low) * (self.end - self.start), 1)

    def ticks(self, most: int, say: Callable[[float], str], units: Sequence[float] = (1.0,)) -> tuple[Tick, ...]:
        """At most so many marks at numbers that are round in their unit."""
        values = self._round_in(units, most) if self.is_log else self._even(units, most)
        return tuple(Tick(self(value), say(value)) for value in values)

    def _even(self, units: Sequence[float], most: int) -> list[float]:
        ends = sorted((self.low, self.high))
        unit = max((unit for unit in units if unit <= ends[1] * 0.7), default=units[0])
        least = (ends[1] - ends[0]) / most
        first = floor(log10(least / unit))
        steps = (digit * 10.0**power * unit for power in range(first, first + 3) for digit in (1, 2, 5))
        step = next(step for step in steps if step >= least * (1 - 1e-9))
        return [step * count for count in range(ceil(ends[0] / step - 1e-9), floor(ends[1] / step + 1e-9) + 1)]

    def _round_in(self, units: Sequence[float], most: int) -> list[float]:
        found: list[float] = []
        for digits in ((1, 2, 5), (1, 3), (1,)):
            found = [
                value
                for unit, above in zip(units, [*units[1:], inf], strict=True)
                for power in range(16)
                for digit in digits
                if self.low <= (value := digit * 10.0**power * unit) <= self.high and value < above
            ]
            if len(found) <= most:
                return found
        return found[:: ceil(len(found) / most)]
