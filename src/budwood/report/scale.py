"""From values to places on an axis, linear or logarithmic, and the round numbers that are marked on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf, log10

ENOUGH = 4
"""Marks that a logarithmic axis needs, where its range allows."""


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
        values = self._spread(units, most) if self.is_log else self._even(units, most)
        return tuple(Tick(self(value), say(value)) for value in values)

    def _even(self, units: Sequence[float], most: int) -> list[float]:
        low, high = sorted((self.low, self.high))
        step = next(size for size in rounds(units) if (high - low) / size <= most)
        return [step * count for count in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]

    def _spread(self, units: Sequence[float], most: int) -> list[float]:
        apart = (log10(self.high) - log10(self.low)) / (most + 2)
        kept: list[float] = []
        for digits in ((1,), (1, 3), (1, 2, 5)):
            kept = []
            for value in rounds(units, digits):
                if self.low <= value <= self.high and (not kept or log10(value) - log10(kept[-1]) >= apart):
                    kept.append(value)
            if len(kept) >= ENOUGH:
                break
        return kept[:: ceil(len(kept) / most)] if kept else []


def rounds(units: Sequence[float], digits: Sequence[int] = (1, 2, 5)) -> list[float]:
    """The digits times powers of ten, in the greatest unit that each is a multiple of, the least first."""
    above = [0.9 * unit for unit in units[1:]] + [inf]
    return [
        digit * 10.0**power * unit
        for unit, end in zip(units, above, strict=True)
        for power in range(-9 if unit == units[0] else 0, 16)
        for digit in digits
        if digit * 10.0**power * unit < end
    ]
