"""What a `Kept` asks of a model, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from budwood.errors import BadConfig
from budwood.prune.kept import CUT_HERE, Kept, Structure


def dimensions_of(kept: Kept, structure: Structure) -> tuple[str, ...]:
    """The dimensions in which something goes."""
    units = {u.path: u for u in structure.units}
    gone: set[str] = {units[path].dimension for path, chosen in kept.units.items() if len(chosen) < units[path].count}
    if any(len(chosen) < structure.depths[stack] for stack, chosen in kept.layers.items()):
        gone |= {"layers"}
    if kept.channels is not None and len(kept.channels) < structure.hidden:
        gone |= {"hidden"}
    return tuple(dimension for dimension in CUT_HERE if dimension in gone)


def check(kept: Kept, structure: Structure) -> None:
    """Raises BadConfig for stacks, units or numbers that the model does not have, and for nothing left."""
    counts = {u.path: u.count for u in structure.units}
    for stack, chosen in kept.layers.items():
        if stack not in structure.depths:
            raise BadConfig(f"no stack is called {stack!r}; there are: {', '.join(structure.depths)}")
        _check_numbers(f"blocks of {stack}", chosen, structure.depths[stack])
    for path, chosen in kept.units.items():
        if path not in counts:
            raise BadConfig(f"{path!r} reads no units that can be cut; structure_of(model).units lists those that do")
        _check_numbers(f"units of {path}", chosen, counts[path])
    if kept.channels is not None:
        _check_numbers("channels", kept.channels, structure.hidden)
    for paths in structure.together:
        alive = [path for path in paths if _is_kept(path, kept, structure)]
        if len({tuple(kept.units.get(path, range(counts[path]))) for path in alive}) > 1:
            raise BadConfig(
                f"{alive[0]} and {alive[1]} share one table of positions, with an entry for each head, so they have to "
                "keep the same heads; give the same numbers for each"
            )


def _is_kept(path: str, kept: Kept, structure: Structure) -> bool:
    units = next(u for u in structure.units if u.path == path)
    return units.layer in kept.layers.get(units.stack, range(structure.depths[units.stack]))


def _check_numbers(what: str, chosen: Sequence[int], count: int) -> None:
    if not chosen:
        raise BadConfig(f"no {what} are kept; keep one at least")
    if list(chosen) != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= count:
        raise BadConfig(
            f"{what} kept: {list(chosen)[:8]}; give different numbers from 0 to {count - 1}, the least first"
        )
