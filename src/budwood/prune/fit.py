"""Whether a class can be built at what a cut leaves of a model, and which entries of each tensor go where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from budwood.anatomy import Anatomy
from budwood.prune.axes import Axes, Grouped, groups_of, rows_of, unit_axes
from budwood.prune.kept import Kept, Structure
from budwood.prune.sizes import Misfit, built, listed, resized, said


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model about to be cut, read once."""

    model: PreTrainedModel
    anatomy: Anatomy
    modules: Mapping[str, nn.Module]
    state: Mapping[str, Tensor]
    """Every tensor under every name, as `state_dict` has them."""
    blocks: Mapping[str, Mapping[int, str]]
    """Stack to number to path."""
    groups: tuple[Grouped, ...]

    @property
    def roles(self) -> list[tuple[str, str]]:
        """Path and role of every site."""
        return [(site.path, site.role) for site in self.anatomy.sites]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How the uncut model becomes the cut one."""

    config: PreTrainedConfig
    names: Mapping[str, str]
    """Name of a tensor in the cut model to its name in the uncut one."""
    axes: Axes
    """By names of the uncut model; channels among them."""


def read(model: PreTrainedModel, anatomy: Anatomy) -> Subject:
    """What of a model a cut needs to know."""
    blocks: dict[str, dict[int, str]] = {}
    heads: dict[str, int] = {}
    for site in anatomy.sites:
        if site.role == "block" and site.layer is not None:
            blocks.setdefault(site.stack, {})[site.layer] = site.path
        elif site.role in ("attn.o", "cross.o"):
            heads[site.path] = said(model.config, "heads", site.stack) or 0
    return Subject(
        model=model,
        anatomy=anatomy,
        modules=dict(model.named_modules()),
        state=model.state_dict(),
        blocks=blocks,
        groups=groups_of(anatomy, heads),
    )


def fit(subject: Subject, structure: Structure, kept: Kept) -> Fit:
    """How the model is cut to what is kept. Raises Misfit where its class cannot be built so."""
    layers = {stack: kept.layers.get(stack, tuple(range(depth))) for stack, depth in structure.depths.items()}
    cut = {stack: chosen for stack, chosen in layers.items() if len(chosen) < structure.depths[stack]}
    staying = [group for group in subject.groups if group.units.layer in layers[group.units.stack]]
    sizes = _sizes(subject, structure, kept, layers, staying)
    problem: Misfit | None = None
    for explicit in ({}, _explicit(sizes, staying)):
        try:
            config = resized(subject.model.config, sizes, cut, explicit)
            new = built(type(subject.model), config)
            return _match(subject, structure, kept, layers, staying, config, new)
        except Misfit as why:
            problem = why
    assert problem is not None
    raise problem


def _sizes(
    subject: Subject, structure: Structure, kept: Kept, layers: Mapping[str, tuple[int, ...]], staying: list[Grouped]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Every size of every stack: what it is, and what it is to be."""
    sizes = {("layers", stack): (depth, len(layers[stack])) for stack, depth in structure.depths.items()}
    for group in staying:
        units = group.units
        old, new = units.count, len(kept.units.get(units.path, range(units.count)))
        pairs = {"ffn": (old, new)}
        if units.dimension == "heads":
            pairs = {"groups": (old, new), "heads": (group.heads, group.heads // old * new)}
        for what, pair in pairs.items():
            before = sizes.setdefault((what, units.stack), pair)
            if before != pair:
                raise Misfit(
                    f"its blocks have one size in common, and {units.path} would keep {pair[1]} of {pair[0]} where "
                    f"another block keeps {before[1]} of {before[0]}; keep as many in each"
                )
    if kept.channels is not None:
        sizes |= {("hidden", stack): (structure.hidden, len(kept.channels)) for stack in structure.depths}
    return sizes


def _explicit(sizes: Mapping[tuple[str, str], tuple[int, int]], staying: list[Grouped]) -> dict[str, int]:
    """Sizes that a class works out from others where nobody says them, as they are to be."""
    found = {what: new for (what, _), (_, new) in sizes.items() if what == "ffn"}
    for group in staying:
        if group.heads and not any(site.role == "attn.kv_b" for site in group.makers):
            found["head size"] = group.reader.in_features // group.heads
    return found


def _match(
    subject: Subject,
    structure: Structure,
    kept: Kept,
    layers: Mapping[str, tuple[int, ...]],
    staying: list[Grouped],
    config: PreTrainedConfig,
    new: PreTrainedModel,
) -> Fit:
    """The way from the old tensors to the new class's. Raises Misfit unless every shape is met exactly."""
    shapes = {name: tensor.shape for name, tensor in new.state_dict().items()}
    names = _renamed(subject, layers)
    lost, unmet = [names[n] for n in names if n not in shapes], [n for n in shapes if n not in names]
    if lost or unmet:
        what = f"has no place for {listed(lost)}" if lost else f"needs {listed(unmet)}, which nothing is left to fill"
        raise Misfit(f"the class of that size {what}")
    axes = unit_axes(staying, kept.units, subject.modules)
    reserved = unit_axes(staying, {g.units.path: tuple(range(g.units.count)) for g in staying}, subject.modules)
    for name, old in names.items():
        for axis, (before, after) in enumerate(zip(subject.state[old].shape, shapes[name], strict=True)):
            index = axes.get(old, {}).get(axis)
            if index is None and before != after:
                if axis in reserved.get(old, {}):
                    raise Misfit(_tied(subject, old, before, after))
                index = _from_place(subject, structure, kept, staying, old, before)
                axes.setdefault(old, {})[axis] = index
            left = before if index is None else len(index)
            if left != after and axis in reserved.get(old, {}):
                raise Misfit(_tied(subject, old, before, after))
            if left != after:
                raise Misfit(f"its class makes {name} {_shape(shapes[name])}, and {left} of {before} would be left")
    _check_alike(subject, layers, new, is_narrower=kept.channels is not None)
    return Fit(config=config, names=names, axes=axes)


def _tied(subject: Subject, name: str, before: int, after: int) -> str:
    if not any(role.startswith(("attn.", "cross.")) and name.startswith(f"{path}.") for path, role in subject.roles):
        return f"its class takes a multiple of the width for the feed-forward ({name}: {after} of {before})"
    return f"its class takes width / heads for the size of a head ({name}: {after} of {before}); cut both by one share"


def _shape(shape: torch.Size) -> str:
    return " x ".join(str(size) for size in shape)


def _renamed(subject: Subject, layers: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """The names that tensors get where blocks are numbered anew, to the names they have."""
    moved: dict[str, str | None] = {}
    for stack, paths in subject.blocks.items():
        for layer, path in paths.items():
            kept = layer in layers[stack]
            moved[f"{path}."] = f"{paths[layers[stack].index(layer)]}." if kept else None
    found: dict[str, str] = {}
    for name in subject.state:
        inside = next((path for path in moved if name.startswith(path)), None)
        if inside is None:
            found[name] = name
        elif (target := moved[inside]) is not None:
            found[target + name.removeprefix(inside)] = name
    return found


def _from_place(
    subject: Subject, structure: Structure, kept: Kept, staying: list[Grouped], name: str, size: int
) -> list[int]:
    """The entries that stay on an axis that no role explains: one entry for each head, or the residual's channels."""
    for group in staying:
        chosen = kept.units.get(group.units.path, ())
        is_inside = chosen and group.within and name.startswith(f"{group.within}.")
        if is_inside and size in (group.heads, group.units.count):
            return rows_of(group.units, chosen, size)
    if kept.channels is not None and size == structure.hidden:
        return list(kept.channels)
    if any(role in ("norm.q", "norm.k") and name.startswith(f"{path}.") for path, role in subject.roles):
        raise Misfit(f"{name.rpartition('.')[0]} takes the norm over all heads together")
    raise Misfit(f"an axis of {name} changes with that size, and what it counts is not known")


def _check_alike(
    subject: Subject, layers: Mapping[str, tuple[int, ...]], new: PreTrainedModel, *, is_narrower: bool
) -> None:
    """A block must go on as the same kind of block: what its modules say in words, switches and factors."""
    for stack, chosen in layers.items():
        for layer, old in enumerate(chosen):
            path, place = subject.blocks[stack][old], subject.blocks[stack][layer]
            before, after = _traits(subject.modules[path]), _traits(new.get_submodule(place))
            for trait in before.keys() & after.keys():
                if before[trait] != after[trait]:
                    raise Misfit(
                        f"block {old} of the {stack} would become block {layer}, whose {trait} is {after[trait]!r} and "
                        f"not {before[trait]!r}"
                    )


def _traits(block: nn.Module) -> dict[str, Any]:
    """Classes and public attributes of a block's modules that are words, switches or factors; sizes as 'a number'."""
    found: dict[str, Any] = {}
    for path, module in block.named_modules():
        found[f"{path}.class"] = type(module).__name__
        for name, value in _plain(module):
            found[f"{path}.{name}".lstrip(".")] = "a number" if type(value) is int else value
    return found


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        is_said = value is None or type(value) in (bool, int, float, str)
        if is_said and not name.startswith("_") and name not in ("training", "gradient_checkpointing"):
            yield name, value
