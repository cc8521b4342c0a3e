"""Which adapters act in a forward, and how: plans are values that nest, print and compare.

"faq"                          one adapter
Stack(("lang-de", "ner"))      one after the other
Sum(("style", "facts"), (.3, .7))   side by side: y + sum_i w_i (f_i(y) - y)
Route(("a", None), rows)       one plan per row of the batch
Fuse(("a", "b"), by="f")       side by side, mixed by the trained attention of the adapter f (AdapterFusion)
Skip("faq", (0, 1))            as the base in some layers (AdapterDrop)
Tasks("prompts", rows)         one task of a multitask adapter per row of the batch
None                           the base model
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

import torch
from torch import Tensor

from budwood.errors import BadConfig


@dataclass(frozen=True)
class Stack:
    """Plans applied one after the other: each reads what the one before it returned."""

    parts: tuple[Plan, ...]

    def __post_init__(self) -> None:
        _require_parts(self, self.parts)


@dataclass(frozen=True)
class Sum:
    """Plans side by side: y + sum_i w_i (f_i(y) - y). Weights default to 1; nothing is divided by their number."""

    parts: tuple[Plan, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _require_parts(self, self.parts)
        if self.weights is not None and len(self.weights) != len(self.parts):
            raise BadConfig(f"Sum has {len(self.parts)} parts and {len(self.weights)} weights; give one weight a part")
        if self.weights is not None and not all(isinstance(w, int | float) and isfinite(w) for w in self.weights):
            raise BadConfig(f"Sum has the weights {self.weights!r}; they must be finite numbers")


@dataclass(frozen=True, eq=False)
class Route:
    """One plan per row of the batch: row i runs `parts[rows[i]]`.

    rows: [batch] int64, each in [0, len(parts)). Where a module sees the batch repeated or flattened row by row
    (beam search, [batch * tokens, d]), the rows are repeated with it.
    """

    parts: tuple[Plan, ...]
    rows: Tensor

    def __post_init__(self) -> None:
        _require_parts(self, self.parts)
        _require_rows(self)
        if self.rows.device.type != "meta" and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.parts):
            raise BadConfig(f"Route has {len(self.parts)} parts, so every row must be in 0..{len(self.parts) - 1}")


@dataclass(frozen=True)
class Fuse:
    """Plans side by side, mixed at every site by the attention that the adapter `by` was trained for.

    Pfeiffer et al. 2021 (arXiv:2005.00247), section 3.2. `by` is an adapter of the method `fusion`; where it trains a
    module in full (a task head), that takes the place of the parts' own.
    """

    parts: tuple[Plan, ...]
    by: str

    def __post_init__(self) -> None:
        _require_parts(self, self.parts)
        if any(isinstance(part, Fuse) for part in self.parts):
            raise BadConfig("Fuse in Fuse: one fusion reads plain adapters; give it all of them as parts")
        if not isinstance(self.by, str):
            raise BadConfig(f"Fuse needs by=, the name of an adapter of the method fusion; got {self.by!r}")


@dataclass(frozen=True)
class Skip:
    """A plan with the base's behaviour in some layers (Ruecklé et al. 2021, AdapterDrop, arXiv:2010.11918).

    layers: counted from 0 in each stack; `stack`, as decoder, restricts it to one.
    """

    part: Plan
    layers: tuple[int, ...]
    stack: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not all(isinstance(layer, int) for layer in self.layers):
            raise BadConfig(f"Skip needs layers as a tuple of numbers, as Skip('a', (0, 1)); got {self.layers!r}")


@dataclass(frozen=True, eq=False)
class Tasks:
    """An adapter of several tasks (multitask prompts), with the task of each row of the batch.

    rows: [batch] int64, each in [0, number of tasks); an adapter named without `Tasks` acts for task 0.
    """

    part: str
    rows: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.part, str):
            raise BadConfig(f"Tasks needs the name of an adapter, as Tasks('prompts', rows); got {self.part!r}")
        _require_rows(self)


Plan = str | Stack | Sum | Route | Fuse | Skip | Tasks | None
"""What is in force: an adapter's name, a composition of plans, or None for the base model."""


class Place(ABC):
    """The input or the output of one site, as a plan sees it. A name that is not at the site changes nothing there."""

    layer: int | None
    stack: str

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the adapter has a delta here."""

    @abstractmethod
    def step(self, name: str, y: Tensor) -> Tensor:
        """What one adapter makes of y."""

    def change(self, name: str, y: Tensor) -> Tensor:
        """What one adapter adds to y."""
        return self.step(name, y) - y

    @abstractmethod
    def fuses(self, by: str) -> bool:
        """Whether the adapter `by` mixes other adapters here."""

    @abstractmethod
    def fuse(self, by: str, last: str, changes: list[Tensor], y: Tensor) -> Tensor:
        """What the fusion `by` makes of the changes of its parts; `last` names the adapter whose input it reads."""


def names(plan: Plan) -> Iterator[str]:
    """The adapters a plan mentions, in order, repeats included."""
    match plan:
        case None:
            return
        case str():
            yield plan
        case Skip() | Tasks():
            yield from names(plan.part)
        case Stack() | Sum() | Route() | Fuse():
            for part in plan.parts:
                yield from names(part)
            if isinstance(plan, Fuse):
                yield plan.by
        case _:
            raise BadConfig(
                f"{plan!r} is no plan; write an adapter's name, Stack, Sum, Route, Fuse, Skip, Tasks or None (the base)"
            )


def without(plan: Plan, name: str) -> Plan:
    """The plan when an adapter is gone: what is left of a composition, None where nothing is."""
    match plan:
        case str():
            return None if plan == name else plan
        case Tasks():
            return None if plan.part == name else plan
        case Skip():
            return None if (left := without(plan.part, name)) is None else replace(plan, part=left)
        case Fuse():
            return None if name in names(plan) else plan
        case Route():
            parts = tuple(without(part, name) for part in plan.parts)
            return None if all(part is None for part in parts) else Route(parts, plan.rows)
        case Stack() | Sum():
            kept = [(i, left) for i, part in enumerate(plan.parts) if (left := without(part, name)) is not None]
            if not kept:
                return None
            parts = tuple(left for _, left in kept)
            if isinstance(plan, Stack):
                return Stack(parts)
            return Sum(parts, plan.weights and tuple(plan.weights[i] for i, _ in kept))
        case _:
            return None


def run(plan: Plan, place: Place, y: Tensor) -> Tensor:
    """What the plan makes of `y` at one place: [*, d] in, [*, d] out."""
    match plan:
        case str():
            return place.step(plan, y)
        case Tasks():
            return place.step(plan.part, y)
        case Stack():
            for part in plan.parts:
                y = run(part, place, y)
            return y
        case Route():
            return _route(plan, place, y)
        case Skip():
            return y if _skips(plan, place) else run(plan.part, place, y)
        case Sum():
            return y + change(plan, place, y)
        case Fuse():
            replaced = place.has(plan.by) and not place.fuses(plan.by)  # a task head of the fusion's own
            return place.step(plan.by, y) if replaced else y + change(plan, place, y)
        case _:
            return y


def change(plan: Plan, place: Place, y: Tensor) -> Tensor:
    """What the plan adds to `y` at one place: [*, d]. Parts of Sum and Fuse are added up as such, to the last bit."""
    match plan:
        case str():
            return place.change(plan, y)
        case Tasks():
            return place.change(plan.part, y)
        case Sum():
            weights = plan.weights or (1.0,) * len(plan.parts)
            changes = [w * change(part, place, y) for w, part in zip(weights, plan.parts, strict=True)]
            return sum(changes[1:], start=changes[0])
        case Fuse():
            parts = [part for part in plan.parts if _acting(part, place)]
            changes = [change(part, place, y) for part in parts]
            if parts and place.fuses(plan.by):
                return place.fuse(plan.by, _acting(parts[-1], place)[-1], changes, y)
            return sum(changes, start=torch.zeros_like(y))  # one at most: there is nothing to weigh
        case _:
            return run(plan, place, y) - y


@dataclass(frozen=True, eq=False)
class Part:
    """One adapter that a plan lets act: on which rows of the batch, and for which task of each row."""

    name: str
    rows: Tensor | None = None
    """[batch] bool; None for all."""
    tasks: Tensor | None = None
    """[batch] int64; None for task 0."""


def parts_of(plan: Plan, batch: int, layer: int | None = None, stack: str = "") -> list[Part]:
    """The adapters that act on a batch, in order, for what is put in front of a text and not added to values.

    layer, stack: of the place, for `Skip`
    """
    match plan:
        case str():
            return [Part(plan)]
        case Tasks():
            return [Part(plan.part, tasks=spread_rows(plan.rows, batch))]
        case Skip():
            skipped = layer in plan.layers and plan.stack in (None, stack)
            return [] if skipped else parts_of(plan.part, batch, layer, stack)
        case Route():
            rows = spread_rows(plan.rows, batch)
            return [
                replace(part, rows=chosen if part.rows is None else part.rows & chosen)
                for index, inner in enumerate(plan.parts)
                for chosen in [rows == index]
                for part in parts_of(inner, batch, layer, stack)
            ]
        case Stack() | Sum() | Fuse():
            return [part for inner in plan.parts for part in parts_of(inner, batch, layer, stack)]
        case _:
            return []


def spread_rows(rows: Tensor, batch: int) -> Tensor:
    """Rows of a plan for a batch that repeats each of them as often (beams, tokens): [n] -> [batch].

    Raises BadConfig where the batch is no multiple of them.
    """
    if batch % rows.shape[0]:
        raise BadConfig(
            f"the plan has {rows.shape[0]} rows and this batch {batch}; give one row per row of the batch "
            "(experts that reorder tokens and relative positions have no batch to route: leave them out of targets)"
        )
    return rows.repeat_interleave(batch // rows.shape[0])


def _acting(plan: Plan, place: Place) -> list[str]:
    """The adapters of a plan that have a delta here and are not skipped, in order."""
    match plan:
        case Skip():
            return [] if _skips(plan, place) else _acting(plan.part, place)
        case Stack() | Sum() | Route() | Fuse():
            return [name for part in plan.parts for name in _acting(part, place)]
        case _:
            return [name for name in names(plan) if place.has(name)]


def _skips(plan: Skip, place: Place) -> bool:
    return place.layer in plan.layers and plan.stack in (None, place.stack)


def _route(plan: Route, place: Place, y: Tensor) -> Tensor:
    rows = spread_rows(plan.rows.to(y.device), y.shape[0])  # [batch] or [batch * tokens]
    rows = rows.reshape(-1, *(1,) * (y.dim() - 1))
    out = y
    for index, part in enumerate(plan.parts):
        out = torch.where(rows == index, run(part, place, y), out)
    return out


def _require_rows(plan: Route | Tasks) -> None:
    rows = plan.rows
    if not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype != torch.int64 or rows.numel() == 0:
        found = f"shape {list(rows.shape)} of {rows.dtype}" if isinstance(rows, Tensor) else repr(rows)
        raise BadConfig(f"{type(plan).__name__} needs rows as a [batch] int64 tensor; got {found}")


def _require_parts(plan: Stack | Sum | Route | Fuse, parts: tuple[Plan, ...]) -> None:
    if not isinstance(parts, tuple) or not parts:
        raise BadConfig(
            f"{type(plan).__name__} needs a tuple of plans, as {type(plan).__name__}(('a', 'b')); got {parts!r}"
        )
