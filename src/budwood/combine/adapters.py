"""`combine`: attached LoRA adapters into one new LoRA adapter on the same model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from budwood.anatomy import Anatomy, Site
from budwood.combine.arithmetic import Pair
from budwood.combine.recipe import Recipe, check_weights
from budwood.core import Adapter, attach, delta_at
from budwood.core.registry import adapter_of, root_of
from budwood.core.trained import Trained
from budwood.errors import BadConfig
from budwood.methods.lora import LoRA, LoRADelta, LoRAEmbedding, LoRAParts


@dataclass(frozen=True, kw_only=True)
class Combined:
    """What was made of several adapters."""

    adapter: Adapter
    """The new one, attached and active."""
    recipe: Recipe
    """How it was made."""
    weights: dict[str, float]
    """Of each adapter that went into it."""
    errors: dict[str, float]
    """By path of the site: how far the new update is from what was asked for, |D - s B A| / |D| (Frobenius)."""
    ranks: dict[str, int]
    """Its rank by path of the site."""

    @property
    def worst(self) -> tuple[str, float]:
        """The site with the largest error, and that error."""
        return max(self.errors.items(), key=lambda item: item[1])

    @property
    def mean(self) -> float:
        """The mean error over sites."""
        return sum(self.errors.values()) / len(self.errors)


def combine(
    model: nn.Module, names: Sequence[str], *, name: str, how: str = "linear", weights: Sequence[float] | None = None,
    density: float | None = None, rank: int | None = None, sign: str | None = None, seed: int = 0,
    head: str | None = None,
) -> Combined:  # fmt: skip
    """Merge attached LoRA adapters into a new one, `name`, which is attached, active and trainable afterwards.

    It acts wherever one of them does; an adapter that is absent from a site counts as zero there. The originals stay.
    head:  whose copy of modules trained in full (a task head) the new adapter gets, where their copies differ.
    The others are the fields of `Recipe`; weights are 1 each by default, and nothing is divided by their number.
    Raises BadConfig for settings that do not fit, adapters that are not plain LoRA, and heads that differ;
    NoSuchAdapter for names that are not attached.
    """
    root = root_of(model)
    recipe = Recipe(how=how, density=density, rank=rank, sign=sign, seed=seed)
    _check_names(names)
    scales = dict(zip(names, check_weights(names, weights), strict=True))
    registry, _ = adapter_of(root, names[0])
    if name in registry.adapters:
        raise BadConfig(f"an adapter called {name!r} is attached already; choose another name for the result")
    sources = [_read(root, one, names) for one in names]
    heads = _heads(sources, head)
    places = _places(root, sources, heads, registry.anatomy)
    _check_rank(recipe, places)
    with torch.no_grad():
        merged = {
            site.path: recipe.merge(
                list(pairs.values()), [scales[n] for n in pairs], [f"{site.path} {n}" for n in pairs]
            )
            for site, pairs in places
        }
    ranks = {path: pair[0].shape[0] for path, (pair, _) in merged.items()}
    method = _method(registry.anatomy, [site for site, _ in places], ranks, tuple(heads))
    adapter = attach(root, method, name=name, anatomy=registry.anatomy)
    _fill(root, adapter, {path: pair for path, (pair, _) in merged.items()}, heads)
    errors = {path: error for path, (_, error) in merged.items()}
    return Combined(adapter=adapter, recipe=recipe, weights=scales, errors=errors, ranks=ranks)


@dataclass(frozen=True)
class _Source:
    """An adapter to merge: its pairs, with their scale in A, and its trained modules, by site."""

    name: str
    pairs: dict[Site, Pair]
    heads: dict[str, Trained]


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or len(names) < 2:
        raise BadConfig(f"names is {names!r}; give two adapters or more, as ('style', 'facts')")
    repeated = next((name for name, count in Counter(names).items() if count > 1), None)
    if repeated:
        raise BadConfig(f"{repeated!r} is named twice; name it once, with a larger weight")


def _read(model: nn.Module, name: str, names: Sequence[str]) -> _Source:
    _, adapter = adapter_of(model, name)
    instead = f"run them together with budwood.activate(model, budwood.Sum({tuple(names)!r}))"
    if not isinstance(adapter.method, LoRA):
        raise BadConfig(f"{name!r} is {adapter.method.name}, and only LoRA adapters merge into one; {instead}")
    if adapter.method.dora or adapter.method.bias:
        what = "rescales the rows of the weight (dora)" if adapter.method.dora else "trains a bias of B (bias)"
        raise BadConfig(f"{name!r} {what}, which is no low-rank update to be merged; {instead}")
    pairs: dict[Site, Pair] = {}
    heads: dict[str, Trained] = {}
    for site in adapter.sites:
        delta = delta_at(model, site, name)
        if isinstance(delta, Trained):
            heads[site.path] = delta
        else:
            pairs[site] = A, B = _pair(delta)
            if not (A.isfinite().all() and B.isfinite().all()):
                raise BadConfig(f"{name!r} holds NaN or infinity at {site.path}; leave it out, or train it again")
    return _Source(name, pairs, heads)


def _pair(delta: nn.Module) -> Pair:
    """A delta as one pair over the whole site, with its scale in A."""
    match delta:
        case LoRADelta():
            A, B = delta.pair()
        case LoRAParts():
            A, B = delta.whole()
        case LoRAEmbedding():
            A, B = delta.A, delta.B
        case _:
            raise AssertionError(type(delta))
    dtype = torch.promote_types(A.dtype, torch.float32)  # a model made .half() after attaching has its adapters along
    return A.detach().to(dtype) * delta.scale, B.detach().to(dtype)


def _heads(sources: Sequence[_Source], chosen: str | None) -> dict[str, Trained]:
    """The modules trained in full that the result carries: those that all agree on, or those of the chosen adapter."""
    having = [source for source in sources if source.heads]
    if chosen is not None:
        found = next((source for source in having if source.name == chosen), None)
        if found is None:
            raise BadConfig(
                f"head is {chosen!r}, which is not merged here or has no module trained in full; "
                f"these have: {', '.join(s.name for s in having) or 'none'}"
            )
        having = [found, *(source for source in having if source is not found)]
    for other in having[1:]:
        first = having[0]
        if first.heads.keys() != other.heads.keys():
            path = min(first.heads.keys() ^ other.heads.keys())
            one, none = (first, other) if path in first.heads else (other, first)
            raise BadConfig(
                f"{one.name!r} trains {path} in full and {none.name!r} does not, so no head fits both; "
                "merge adapters that train the same modules"
            )
        differing = [path for path in first.heads if not _same(first.heads[path], other.heads[path])]
        if differing and chosen is None:
            raise BadConfig(
                f"{first.name!r} and {other.name!r} have trained {differing[0]} to different values, and only updates "
                f"are merged; say whose to take, as head={first.name!r}"
            )
    return dict(having[0].heads) if having else {}


def _same(one: Trained, other: Trained) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _places(
    model: nn.Module, sources: Sequence[_Source], heads: Mapping[str, Trained], anatomy: Anatomy
) -> list[tuple[Site, dict[str, Pair]]]:
    """The union of the sites, in model order, each with the pairs that are there by adapter.

    A module that two adapters know under two paths (T5's shared embedding) is one place.
    """
    by_module: dict[nn.Module, tuple[str, dict[str, Pair]]] = {}
    for source in sources:
        for site, pair in source.pairs.items():
            if site.path in heads:
                raise BadConfig(
                    f"{source.name!r} adapts {site.path} by LoRA, and another one trains all of it; "
                    "merge adapters that treat it alike"
                )
            _, there = by_module.setdefault(model.get_submodule(site.path), (site.path, {}))
            there[source.name] = pair
    by_path = dict(by_module.values())
    return [(site, by_path[site.path]) for site in anatomy.sites if site.path in by_path]


def _check_rank(recipe: Recipe, places: Sequence[tuple[Site, Mapping[str, Pair]]]) -> None:
    largest = max(recipe.possible(list(pairs.values())) for _, pairs in places)
    if recipe.rank is not None and recipe.rank > largest:
        raise BadConfig(
            f"rank is {recipe.rank}, and {recipe.how} of these has a rank of at most {largest}; "
            f"give 1 to {largest}, or leave rank out"
        )


def _method(anatomy: Anatomy, sites: Sequence[Site], ranks: Mapping[str, int], heads: tuple[str, ...]) -> LoRA:
    """A LoRA that builds exactly these sites with these ranks, told as briefly as that can be."""
    rank = Counter(ranks.values()).most_common(1)[0][0]
    targets, layers = _where(anatomy, sites)
    default = tuple(site.path for site in anatomy.sites if site.role == "head")
    method = LoRA(
        targets=targets, layers=layers, rank=rank, alpha=float(rank), ranks=_by_role(sites, ranks, rank),
        trained=None if heads and heads == default else heads,
    )  # fmt: skip
    if all(method.rank_at(site) == ranks[site.path] for site in sites):
        return method
    return replace(method, ranks={path: ranks[path] for path in _longest_first(ranks) if ranks[path] != rank})


def _where(anatomy: Anatomy, sites: Sequence[Site]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Targets and layers that select these sites and no others: roles where that works, else paths."""
    wanted, roles = {site.path for site in sites}, tuple(dict.fromkeys(site.role for site in sites))
    some = tuple(sorted({site.layer for site in sites if site.layer is not None})) or None
    for layers in (None, some):
        if {site.path for site in anatomy.select(*roles, layers=layers)} == wanted:
            return roles, layers
    return tuple(_longest_first(wanted)), None


def _by_role(sites: Sequence[Site], ranks: Mapping[str, int], common: int) -> dict[str, int]:
    """The ranks of roles that have one rank throughout, and not the common one."""
    found: dict[str, set[int]] = {}
    for site in sites:
        found.setdefault(site.role, set()).add(ranks[site.path])
    return {role: only for role, values in found.items() if len(values) == 1 and (only := min(values)) != common}


def _longest_first(paths: Iterable[str]) -> list[str]:
    """A path as a target also means the paths that end in it, so those have to come first."""
    return sorted(paths, key=lambda path: (-len(path), path))


def _fill(model: nn.Module, adapter: Adapter, pairs: Mapping[str, Pair], heads: Mapping[str, Trained]) -> None:
    """Give the new adapter its values."""
    with torch.no_grad():
        for site in adapter.sites:
            delta = delta_at(model, site, adapter.name)
            if isinstance(delta, Trained):
                delta.load_state_dict(heads[site.path].state_dict())
                continue
            assert isinstance(delta, LoRADelta | LoRAEmbedding)
            A, B = pairs[site.path]
            delta.A.copy_(A)
            delta.B.copy_(B / delta.scale)
