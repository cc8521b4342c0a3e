"""Which adapters act in a forward, and how: plans are values that nest, print and compare.

"faq"                          one adapter
Stack(("lang-de", "ner"))      one after the other
Sum(("style", "facts"), (.3, .7))   side by side: y + sum_i w_i (f_i(y) - y)
Route(("a", None), rows)       one plan per row of the batch
None                           the base model
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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
        if self.rows.dim() != 1 or self.rows.dtype != torch.int64 or self.rows.numel() == 0:
            raise BadConfig(
                f"Route needs rows as a [batch] int64 tensor; got shape {list(self.rows.shape)} of {self.rows.dtype}"
            )
        if self.rows.device.type != "meta" and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < len(self.parts):
            raise BadConfig(f"Route has {len(self.parts)} parts, so every row must be in 0..{len(self.parts) - 1}")


Plan = str | Stack | Sum | Route | None
"""What is in force: an adapter's name, a composition of plans, or None for the base model."""

Step = Callable[[str, Tensor], Tensor]
"""What one adapter, by name, makes of a tensor at one site; a name that is not at the site returns it as it is."""


def names(plan: Plan) -> Iterator[str]:
    """The adapters a plan mentions, in order, repeats included."""
    match plan:
        case None:
            return
        case str():
            yield plan
        case Stack() | Sum() | Route():
            for part in plan.parts:
                yield from names(part)
        case _:
            raise BadConfig(f"{plan!r} is no plan; write an adapter's name, Stack, Sum, Route, or None for the base")


def without(plan: Plan, name: str) -> Plan:
    """The plan when an adapter is gone: what is left of a composition, None where nothing is."""
    match plan:
        case str():
            return None if plan == name else plan
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


def run(plan: Plan, step: Step, y: Tensor) -> Tensor:
    """What the plan makes of `y` at one site: [*, d] in, [*, d] out."""
    match plan:
        case str():
            return step(plan, y)
        case Stack():
            for part in plan.parts:
                y = run(part, step, y)
            return y
        case Sum():
            weights = plan.weights or (1.0,) * len(plan.parts)
            return y + sum(w * (run(part, step, y) - y) for w, part in zip(weights, plan.parts, strict=True))
        case Route():
            return _route(plan, step, y)
        case _:
            return y


def _route(plan: Route, step: Step, y: Tensor) -> Tensor:
    rows = plan.rows.to(y.device)
    if y.shape[0] % rows.shape[0]:
        raise BadConfig(
            f"Route has {rows.shape[0]} rows and this batch {y.shape[0]}; give one row per row of the batch "
            "(experts that reorder tokens and relative positions have no batch to route: leave them out of targets)"
        )
    rows = rows.repeat_interleave(y.shape[0] // rows.shape[0])  # [batch] or [batch * tokens]
    rows = rows.reshape(-1, *(1,) * (y.dim() - 1))
    out = y
    for index, part in enumerate(plan.parts):
        out = torch.where(rows == index, run(part, step, y), out)
    return out


def _require_parts(plan: Stack | Sum | Route, parts: tuple[Plan, ...]) -> None:
    if not isinstance(parts, tuple) or not parts:
        raise BadConfig(
            f"{type(plan).__name__} needs a tuple of plans, as {type(plan).__name__}(('a', 'b')); got {parts!r}"
        )
