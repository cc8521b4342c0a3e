"""Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) of methods, sizes and rates: pure functions.

Everyone gets a few steps; the best third goes on with three times as many, until one is left or the time is over. A
candidate is a method of some size; its learning rates are tried together, in one process, because starting costs more
than the first steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from budwood.records import Trial

FACTOR = 3
"""Of how many one goes on, and how many times as many steps it then gets."""
FIRST = 8
"""Steps at each rate in the first round."""
NEAR = 0.01
"""Share of the best loss within which another is called as good: rounds are too short to tell such apart."""

Entry = tuple[str, float]
"""A candidate at one learning rate."""


@dataclass(frozen=True)
class Costs:
    """What trials took, and so what others will."""

    trials: Sequence[Trial]

    def expected(self, label: str, rates: int, steps: int) -> float:
        """Seconds that a trial will take; before anything is known of the candidate, the mean of the others."""
        own = [one for one in self.trials if one.label == label and one.error is None]
        if own:
            last = own[-1]
            learning = len(last.rates) * last.steps * last.step_s
            return max(0.0, last.seconds - learning) + rates * steps * last.step_s
        known = [one.seconds for one in self.trials]
        return sum(known) / len(known) if known else 0.0


def scores_of(trials: Sequence[Trial], rung: int) -> dict[Entry, float]:
    """The losses of one round."""
    return {(one.label, rate): loss for one in trials if one.rung == rung for rate, loss in one.scores.items()}


def ranked(scores: Mapping[Entry, float]) -> list[Entry]:
    """The best first; those alike in the order they were tried in."""
    return sorted(scores, key=lambda entry: scores[entry])


def kept(scores: Mapping[Entry, float]) -> list[Entry]:
    """Those that go on: the best third, one at least."""
    return ranked(scores)[: max(1, len(scores) // FACTOR)]


def as_good(scores: Mapping[Entry, float]) -> list[Entry]:
    """Others whose loss is so near the best that a round cannot tell."""
    first, *others = ranked(scores)
    return [entry for entry in others if scores[entry] <= scores[first] + NEAR * abs(scores[first])]


def by_candidate(entries: Sequence[Entry]) -> dict[str, tuple[float, ...]]:
    """The learning rates of each candidate, candidates in their order."""
    found: dict[str, tuple[float, ...]] = {}
    for label, rate in entries:
        found[label] = tuple(sorted((*found.get(label, ()), rate)))
    return found
