"""Which entries of which axis of a parameter stay: from the roles of the linears around the units that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from budwood.anatomy import Anatomy, Site
from budwood.prune.kept import Units

Axes = dict[str, dict[int, list[int]]]
"""Name of a parameter to its axes that are cut, each with the entries that stay."""
READERS = ("attn.o", "cross.o", "mlp.down")
"""Roles of the linears that read units."""


@dataclass(frozen=True, kw_only=True)
class Grouped:
    """One feed-forward or attention: the linear that reads its units, and those that make them."""

    units: Units
    reader: Site
    makers: tuple[Site, ...]
    within: str
    """Path of the attention module itself; empty for a feed-forward."""
    heads: int = 0
    """Query heads of an attention."""


def unit_axes(groups: Sequence[Grouped], kept: Mapping[str, tuple[int, ...]], modules: Mapping[str, nn.Module]) -> Axes:
    """The axes along which units are cut, by the names of the uncut model."""
    found: Axes = {}
    for group in groups:
        chosen = kept.get(group.units.path)
        if chosen is None:
            continue
        _note(found, group.reader, modules, rows_of(group.units, chosen, group.reader.in_features), is_input=True)
        for site in group.makers:
            _note(found, site, modules, _made(group.units, chosen, site), is_input=False)
    return found


def rows_of(units: Units, chosen: Sequence[int], size: int) -> list[int]:
    """The entries of an axis of `size` that belong to the chosen units, which lie on it one after the other."""
    width = size // units.count
    return [unit * width + i for unit in chosen for i in range(width)]


def _made(units: Units, chosen: Sequence[int], site: Site) -> list[int]:
    """The output features of a linear that make the chosen units."""
    if site.parts:
        rows = [[row for start, stop in part.rows for row in range(start, stop)] for part in site.parts]
        return sorted(part[i] for part in rows for i in rows_of(units, chosen, len(part)))
    if site.role == "mlp.gate_up":
        return [half + i for half in (0, units.count) for i in chosen]
    return rows_of(units, chosen, site.out_features)


def _note(found: Axes, site: Site, modules: Mapping[str, nn.Module], index: list[int], *, is_input: bool) -> None:
    is_transposed = site.kind == "conv1d"
    found.setdefault(f"{site.path}.weight", {})[int(is_input != is_transposed)] = index
    if not is_input and modules[site.path]._parameters.get("bias") is not None:
        found.setdefault(f"{site.path}.bias", {})[0] = index


def groups_of(anatomy: Anatomy, heads: Mapping[str, int]) -> tuple[Grouped, ...]:
    """Every feed-forward and attention of the blocks whose sizes agree.

    heads: query heads, by the path of an attention's output projection
    """
    found: list[Grouped] = []
    has_experts = any(role.startswith("experts.") for role in anatomy.roles)
    for reader in anatomy.sites:
        if reader.role not in READERS or reader.layer is None:
            continue
        kind = reader.role.partition(".")[0]
        beside = [s for s in anatomy.sites if (s.stack, s.layer) == (reader.stack, reader.layer) and s is not reader]
        makers = [s for s in beside if s.role.startswith(f"{kind}.") and s.is_linear and s.role not in LATENT]
        if kind == "mlp" and has_experts:
            continue
        if kind == "mlp":
            makers = [s for s in makers if s.role != "mlp.router"]
            units = Units(
                path=reader.path, dimension="ffn", stack=reader.stack, layer=reader.layer, count=reader.in_features
            )
            found.append(Grouped(units=units, reader=reader, makers=tuple(makers), within=""))
        elif (count := key_value_groups(makers, heads[reader.path])) is not None and reader.in_features % count == 0:
            units = Units(
                path=reader.path, dimension="heads", stack=reader.stack, layer=reader.layer, count=count,
                width=reader.in_features // count,
            )  # fmt: skip
            within = next((s.path for s in beside if s.role == kind), "")
            found.append(
                Grouped(units=units, reader=reader, makers=tuple(makers), within=within, heads=heads[reader.path])
            )
    return tuple(found)


LATENT = ("attn.q_a", "attn.kv_a", "attn.o", "cross.o", "mlp.down")
"""Linears beside an attention or feed-forward whose outputs are not its units."""


def key_value_groups(makers: Sequence[Site], heads: int) -> int | None:
    """How many groups of query heads an attention has that share keys and values; None where its sizes do not say."""
    sizes = {site.role.partition(".")[2]: site.out_features for site in makers}
    for site in makers:
        sizes |= {part.role.partition(".")[2]: part.size for part in site.parts}
    if "kv_b" in sizes:
        return heads if heads and all(sizes[role] % heads == 0 for role in sizes) else None
    if not heads or "q" not in sizes or "k" not in sizes or sizes["q"] % heads:
        return None
    size = sizes["q"] // heads
    count = sizes["k"] // size
    return count if count and sizes["k"] % size == 0 and heads % count == 0 else None
