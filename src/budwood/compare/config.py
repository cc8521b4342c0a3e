"""What a comparison is asked for, and who is told how it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from budwood.compare.work import Task
from budwood.records import Comparison, Item
from budwood.records.files import Json

BUDGET = "200steps"
"""What each run may train where nobody says, unless three epochs are less."""
MOST_EPOCHS = 3
TIMED = "1+8"
"""Batch sizes at which answers are timed."""


class Listener(Protocol):
    """Told how a comparison goes."""

    def plan(self, comparison: Comparison) -> None:
        """What is going to be done."""

    def begin(self, task: Task, number: int, total: int) -> None:
        """A task begins."""

    def hear(self, task: Task, event: Mapping[str, Json]) -> None:
        """What it tells."""

    def end(self, item: Item, comparison: Comparison) -> None:
        """One has ended."""


class Unheard:
    """A listener that says nothing."""

    def plan(self, comparison: Comparison) -> None:
        """Nothing."""

    def begin(self, task: Task, number: int, total: int) -> None:
        """Nothing."""

    def hear(self, task: Task, event: Mapping[str, Json]) -> None:
        """Nothing."""

    def end(self, item: Item, comparison: Comparison) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What to compare, and how far."""

    methods: tuple[Any, ...] = ()
    """Methods as words, mappings or values; none takes all that work alone."""
    seeds: int | tuple[int, ...] = 1
    """How many seeds each method is trained with, or which."""
    memory: str | None = None
    """Peak memory that no run may exceed, as 6GiB."""
    search: bool = True
    """Try three learning rates for each method with the first seed; else take each method's own."""
    ray: bool = False
    """Do the runs as Ray tasks."""
