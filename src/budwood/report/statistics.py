"""How sure comparisons are: methods that were scored on the same rows, with several seeds each.

Two levels: rows are drawn anew in common for all methods (bootstrap, Efron 1979); what the seed does is drawn from a
normal distribution with the spread of the seeds, pooled over methods and with the tails of Student's t, since three
seeds are too few to be drawn from.  Every metric here is a sum over rows divided by another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from budwood.intervals import CELLS, Floats, quantiles
from budwood.records import BASE
from budwood.report.table import Estimate

DRAWS = 2000
"""How often rows and seeds are drawn anew."""
LEVEL = 0.95
TINY = 1e-12
"""Spreads below this are none."""


@dataclass(frozen=True)
class Scored:
    """One method on the rows that all of them have."""

    seeds: tuple[int, ...]
    parts: Floats
    """[seeds, rows] what each row adds above the line: right answers, nats."""
    wholes: Floats
    """[seeds, rows] what it adds below it: rows, tokens."""

    @property
    def by_seed(self) -> Floats:
        """[seeds] the ratio of each seed."""
        return _ratio(self.parts.sum(axis=1), self.wholes.sum(axis=1))


@dataclass(frozen=True)
class Draws:
    """What the ratios of some methods could have been."""

    labels: tuple[str, ...]
    observed: Floats
    """[methods] mean over the seeds."""
    drawn: Floats
    """[methods, draws] the same, rows and seeds drawn anew."""

    def of(self, label: str) -> Estimate:
        """The ratio of one method."""
        place = self.labels.index(label)
        return _estimate(self.observed[place], self.drawn[place])

    def over(self, label: str, other: str) -> Estimate:
        """One method's ratio less another's; exactly nothing for a method and itself."""
        one, two = self.labels.index(label), self.labels.index(other)
        return _estimate(self.observed[one] - self.observed[two], self.drawn[one] - self.drawn[two])

    def between(self) -> dict[str, dict[str, Estimate]]:
        """All differences at once: with 95 % no interval misses the truth, whichever pair the data makes one look at.

        An interval reaches as far as the pair's own 95 % of deviations, times one factor for all: the 95 % quantile,
        over draws, of the largest deviation of any pair in units of its own (the max statistic, balanced as in Beran
        1988). All pairs, since the best is chosen by the same data: intervals for pairs that were fixed before would
        tell equal methods apart too often.
        """
        count = len(self.labels)
        gaps = self.observed[:, None] - self.observed[None, :]  # [methods, methods]
        reach, largest = np.zeros((count, count)), np.zeros(self.drawn.shape[1])
        for one in range(count):
            for two in range(one):
                moved = np.abs(self.drawn[one] - self.drawn[two] - gaps[one, two])  # [draws]
                reach[one, two] = reach[two, one] = own = float(np.quantile(moved, LEVEL))
                if own > TINY:
                    np.maximum(largest, moved / own, out=largest)
        reach *= max(1.0, float(np.quantile(largest, LEVEL)))
        return {
            label: {
                other: Estimate(value=float(gap), low=float(gap - wide), high=float(gap + wide))
                for other, gap, wide in zip(self.labels, gaps[place], reach[place], strict=True)
            }
            for place, label in enumerate(self.labels)
        }


def draw(methods: Mapping[str, Scored], *, is_share: bool, sign: int = 1, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Ratios of methods, drawn anew; the same whatever the order of the methods.

    methods:  label to its rows, which are the same for all
    is_share: whether ratios are shares in [0, 1]; then each method gets the spread of one more row that might have gone
              either way, so that a handful of rows that differ all in one direction tells nothing apart (for one
              difference of two shares this is Bonett and Price 2012)
    sign:     1, or -1 to turn ratios where less is better
    """
    rows = next(iter(methods.values())).parts.shape[1]
    found = {label: np.empty((draws, len(one.seeds))) for label, one in methods.items()}
    drawn: list[Floats] = []
    dice = np.random.default_rng([seed, rows])
    for start, counts in _row_counts(rows, draws, dice):
        for label, one in methods.items():
            ratios = _ratio(counts @ one.parts.T, counts @ one.wholes.T)  # [some draws, seeds]
            found[label][start : start + len(counts)] = ratios
    seeds = _seed_errors(methods)
    tails = np.sqrt(seeds.freedom / np.random.default_rng([seed, 1]).chisquare(seeds.freedom, draws))
    for label, ratios in found.items():
        dice = np.random.default_rng([seed, 2, crc32(label.encode())])
        drawn.append(ratios.mean(axis=1) + seeds.of[label] * tails * dice.standard_normal(draws))
        if is_share:
            drawn[-1] += dice.standard_normal(draws) / rows
    observed = np.array([one.by_seed.mean() for one in methods.values()])
    return Draws(tuple(methods), sign * observed, sign * np.stack(drawn))


def _row_counts(rows: int, draws: int, dice: np.random.Generator) -> Iterable[tuple[int, Floats]]:
    """(first draw, [some draws, rows] how often each row was drawn): multinomial, as many at a time as fit."""
    size = max(1, CELLS // rows)
    for start in range(0, draws, size):
        many = min(size, draws - start)
        cells = dice.integers(0, rows, size=(many, rows)) + rows * np.arange(many)[:, None]
        yield start, np.bincount(cells.ravel(), minlength=many * rows).reshape(many, rows).astype(np.float64)


@dataclass(frozen=True)
class _Seeds:
    """How much the seed alone moves a method's mean."""

    of: dict[str, float]
    """Standard error by label."""
    freedom: int
    """Degrees of freedom that it is known with."""


def _seed_errors(methods: Mapping[str, Scored]) -> _Seeds:
    """What the seeds of all trained methods tell together, or a method's own where those are further apart.

    Two or three seeds of one method say next to nothing of its spread, and by chance often that there is none; pooled
    over methods they do. A method with one seed gets the others' spread; the base, which nobody trained, has none.
    """
    freedom = sum(len(one.seeds) - 1 for one in methods.values())
    if not freedom:
        return _Seeds(dict.fromkeys(methods, 0.0), 1)
    ratios = {label: one.by_seed for label, one in methods.items()}
    pooled = sum(float(((one - one.mean()) ** 2).sum()) for one in ratios.values()) / freedom
    errors = {}
    for label, one in ratios.items():
        own = float(one.var(ddof=1)) if len(one) > 1 else 0.0
        errors[label] = 0.0 if label == BASE else float(np.sqrt(max(own, pooled) / len(one)))
    return _Seeds(errors, freedom)


def _ratio(parts: Floats, wholes: Floats) -> Floats:
    """parts / wholes; 0 where there is nothing below the line."""
    return np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0)


def _estimate(value: float, drawn: Floats) -> Estimate:
    low, high = quantiles(drawn)
    return Estimate(value=float(value), low=low, high=high)
