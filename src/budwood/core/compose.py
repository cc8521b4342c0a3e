"""Which compositions mean something: refused before a forward, with the reason, and never approximated."""

from __future__ import annotations

from collections.abc import Mapping

from budwood.anatomy import Anatomy
from budwood.core.plan import Fuse, Plan, Route, Skip, Stack, Sum, Tasks, names
from budwood.core.registry import Adapter
from budwood.errors import BadConfig


def check_composition(plan: Plan, adapters: Mapping[str, Adapter], anatomy: Anatomy) -> None:
    """Raises BadConfig for a plan that its adapters do not allow, naming the adapter and what to write instead."""
    _check_skipped(plan, anatomy)
    whole = _whole(plan, adapters)
    if len(whole) > 1:
        raise BadConfig(
            f"{' and '.join(map(repr, whole))} stand in one Stack, and each replaces what the other returns "
            "(invertible adapters, or adds_residual=false); keep one of them, or choose by row with Route"
        )


def _check_skipped(plan: Plan, anatomy: Anatomy) -> None:
    """Layers that are not there would be skipped without effect."""
    match plan:
        case Skip():
            depths = {s.stack: anatomy.num_layers(s.stack) for s in anatomy.sites if s.layer is not None}
            if plan.stack is not None and plan.stack not in depths:
                raise BadConfig(f"Skip names the stack {plan.stack!r}; this model has: {', '.join(depths)}")
            depth = depths[plan.stack] if plan.stack else max(depths.values(), default=0)
            beyond = next((layer for layer in plan.layers if not 0 <= layer < depth), None)
            if beyond is not None:
                raise BadConfig(f"Skip names layer {beyond}; there are layers 0 to {depth - 1}")
            _check_skipped(plan.part, anatomy)
        case Stack() | Sum() | Route() | Fuse():
            for part in plan.parts:
                _check_skipped(part, anatomy)
        case _:
            return


def _whole(plan: Plan, adapters: Mapping[str, Adapter]) -> list[str]:
    """The adapters, on one way through the plan, that replace what they read instead of adding to it."""
    match plan:
        case str():
            if not isinstance(adapters[plan].method.plan(plan), str):
                raise BadConfig(f"{plan!r} is a fusion, which mixes other adapters: write Fuse((...), by={plan!r})")
            return [] if adapters[plan].method.is_stackable else [plan]
        case Tasks():
            _check_tasks(plan, adapters[plan.part])
            return _whole(plan.part, adapters)
        case Skip():
            return _whole(plan.part, adapters)
        case Stack():
            _check_order(plan, adapters)
            return [name for part in plan.parts for name in _whole(part, adapters)]
        case Route():
            return max((_whole(part, adapters) for part in plan.parts), key=len)
        case Sum() | Fuse():
            inside = [name for name in names(plan) if not adapters[name].method.is_additive]
            if inside:
                why = (
                    "it stands beside the text and adds nothing that could be weighed"
                    if adapters[inside[0]].method.is_stackable
                    else "it replaces what it reads (an invertible adapter, or adds_residual=false)"
                )
                raise BadConfig(
                    f"{inside[0]!r} cannot be a part of {type(plan).__name__}: {why}; put it in a Stack, or choose by "
                    "row with Route"
                )
            for part in plan.parts:
                _whole(part, adapters)
            if isinstance(plan, Fuse):
                _check_fusion(plan, adapters)
            return []
        case _:
            return []


def _check_order(plan: Stack, adapters: Mapping[str, Adapter]) -> None:
    """What changes an embedding would also change the prompts that were put in before it."""
    filled: dict[str, str] = {}
    for name in names(plan):
        paths = [site.path for site in adapters[name].sites if site.kind == "embedding"]
        found = next((path for path in paths if path in filled), None)
        if adapters[name].method.is_stackable and not adapters[name].method.is_additive:
            filled |= dict.fromkeys(paths, name)
        elif found is not None:
            raise BadConfig(
                f"{name!r} changes what {found} returns, and stands behind the prompt {filled[found]!r} that goes in "
                f"there; write Stack(({name!r}, {filled[found]!r}))"
            )


def _check_tasks(plan: Tasks, adapter: Adapter) -> None:
    count = adapter.method.num_tasks
    if plan.rows.device.type != "meta" and not 0 <= int(plan.rows.min()) <= int(plan.rows.max()) < count:
        raise BadConfig(
            f"Tasks names the tasks {int(plan.rows.min())} to {int(plan.rows.max())}, and {plan.part!r} "
            f"({adapter.method.name}) has {'the tasks 0 to ' + str(count - 1) if count > 1 else 'only task 0'}"
        )


def _check_fusion(plan: Fuse, adapters: Mapping[str, Adapter]) -> None:
    fusion = adapters[plan.by]
    if isinstance(fusion.method.plan(plan.by), str):
        raise BadConfig(
            f"Fuse is given by={plan.by!r}, an adapter of {fusion.method.name}; attach one of the method fusion first"
        )
    covered = {site.path for site in fusion.sites}
    parts = [{s.path for name in names(part) for s in adapters[name].sites} for part in plan.parts]
    shared = {path for paths in parts for path in paths if sum(path in other for other in parts) > 1}
    if not covered & set().union(*parts):
        raise BadConfig(f"the fusion {plan.by!r} has nothing where these parts act: nothing to weigh; use Sum")
    for name in dict.fromkeys(names(plan)):
        missing = [s.path for s in adapters[name].sites if s.path in shared and s.path not in covered]
        if missing:
            raise BadConfig(
                f"the fusion {plan.by!r} was not made for {name!r}: it has nothing at {missing[0]} "
                f"({len(missing)} sites in all); attach Fusion(of=(..., {name!r}))"
            )
