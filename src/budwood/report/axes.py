"""The dimensions as axes of drawings: what is written beside them, and which numbers are round on them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from budwood.report.limits import DIMENSIONS
from budwood.report.table import Method

BYTES = (1.0, 2.0**10, 2.0**20, 2.0**30, 2.0**40)
SECONDS = (1e-3, 1.0, 15.0, 60.0, 3600.0)
COUNT = (1.0,)
TITLES = {
    "memory": ("peak memory in training, above the floor", BYTES),
    "training time": ("time in training steps", SECONDS),
    "answer time": ("time of an answer, one at a time", SECONDS),
    "stored size": ("size on disk", BYTES),
    "trained parameters": ("trained parameters", COUNT),
}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What quality is drawn against."""

    name: str
    """The dimension's."""
    title: str
    limit: str
    """The key of `Table.limits` that bounds it."""
    of: Callable[[Method], float | None]
    """What the limit is on: the whole training time, not that of a token."""
    say: Callable[[float], str]
    units: tuple[float, ...]
    """Sizes in which round numbers are round, the smallest first."""


AXES = tuple(
    Axis(
        name=one.name,
        title=TITLES[one.name][0],
        limit=one.limit,
        of=one.limited or one.cost,
        say=one.told,
        units=TITLES[one.name][1],
    )
    for one in DIMENSIONS
)


def brief(words: str) -> str:
    """The words of a round number without what is zero: 5 MiB, 10k, 10 m."""
    short = re.sub(r"(\.\d*?)0+(?!\d)", r"\1", words)
    return re.sub(r"\.(?!\d)", "", short).removesuffix(" 00 s").removesuffix(" 00 m")
