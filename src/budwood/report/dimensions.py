"""What methods cost, dimension by dimension: the value, its words, and the limit that may be set on it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from budwood.records.amounts import amount, duration, milliseconds, size
from budwood.report.table import Method

BYTES = (1.0, 2.0**10, 2.0**20, 2.0**30, 2.0**40)
SECONDS = (1e-3, 1.0, 15.0, 60.0, 3600.0)
COUNT = (1.0,)


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One thing that a method costs; less is better."""

    name: str
    """As `Pick.cheapest` calls it."""
    axis: str
    """What stands at an axis."""
    limit: str
    """The key of `Table.limits` that bounds it."""
    of: Callable[[Method], float | None]
    say: Callable[[float], str]
    units: tuple[float, ...]
    """Sizes in which round numbers are round, the smallest first."""


def moment(seconds: float) -> str:
    """Seconds of any size: 2.1 ms, 8.2 s, 12 m 30 s."""
    return milliseconds(seconds) if seconds < 1 else duration(seconds)


DIMENSIONS = (
    Dimension(
        name="memory",
        axis="peak memory in training, above the floor",
        limit="memory_bytes",
        of=lambda method: method.peak_bytes,
        say=size,
        units=BYTES,
    ),
    Dimension(
        name="training time",
        axis="time in training steps",
        limit="train_s",
        of=lambda method: method.train_s,
        say=moment,
        units=SECONDS,
    ),
    Dimension(
        name="answer time",
        axis="time of an answer, one at a time",
        limit="answer_s",
        of=lambda method: method.answer_s,
        say=moment,
        units=SECONDS,
    ),
    Dimension(
        name="trained parameters",
        axis="trained parameters",
        limit="trained_count",
        of=lambda method: method.trained_count,
        say=amount,
        units=COUNT,
    ),
    Dimension(
        name="stored size",
        axis="size on disk",
        limit="stored_bytes",
        of=lambda method: method.stored_bytes,
        say=size,
        units=BYTES,
    ),
)


def brief(words: str) -> str:
    """The words of a round number without what is zero: 5 MiB, 10k, 10 m."""
    short = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", words)
    return re.sub(r"\.(?!\d)", "", short).removesuffix(" 00 s").removesuffix(" 00 m")
