"""Attach a method to a model, take it off again, choose what is active, and fold it into the base's weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from budwood.anatomy import Anatomy, Site, discover
from budwood.core.checkpointing import unwatch, watch
from budwood.core.compose import check_composition
from budwood.core.delta import (
    Delta,
    Deltas,
    deltas_of,
    forget_source,
    install,
    listen,
    uninstall,
    watch_source,
)  # fmt: skip
from budwood.core.method import Method
from budwood.core.plan import Plan, names, without
from budwood.core.registry import (
    Adapter,
    Registry,
    adapter_of,
    close_registry,
    open_registry,
    registry_of,
    root_of,
)
from budwood.core.trained import Trained, trainable_dtype
from budwood.errors import BadConfig, CannotFold, NoSuchAdapter, NoSuchSite, WrongOrder

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def attach(
    model: nn.Module,
    method: Method,
    *,
    name: str,
    anatomy: Anatomy | None = None,
    tokenizer: Any = None,
    labels: Sequence[str] = (),
) -> Adapter:
    """Put an adapter on the model, make it active and trainable, and freeze everything else.

    The model stays the user's own object and class; its weights and their names do not change.
    anatomy: what `discover(model)` returned, or None to find it here.
    tokenizer, labels: only for a method that starts from words (a prompt's text, names of classes).
    Raises BadConfig for a name that is taken or not usable, NoSuchSite where a target matches nothing, WrongOrder for a
    model that is already compiled or sharded, or that another adapter trains in place.
    """
    _check(model, method, name)
    registry = registry_of(model)
    if registry is not None:
        anatomy = anatomy or registry.anatomy
    anatomy = anatomy or discover(model)
    method = method.worded(tokenizer, labels).resolved(model, anatomy)
    unfrozen = method.unfreeze(model, anatomy)
    _check_exclusive(registry, name, unfrozen)
    built = _build(model, method, anatomy, unfrozen)

    first = registry is None
    registry = open_registry(model, anatomy)
    if first:
        watch(model)
    for site, delta in built:
        module = model.get_submodule(site.path)
        install(module, registry.switch, site.layer, site.stack)[name] = delta.train(module.training)
        if delta.enters:
            listen(module)
    parameters_by_name = dict(model.named_parameters())
    registry.snapshot.update({n: parameters_by_name[n].detach().clone() for n in unfrozen})
    adapter = Adapter(name, method, tuple(site for site, _ in built), unfrozen)
    registry.adapters[name] = adapter
    try:
        _settle(model, registry, name, [delta for _, delta in built])
    except BaseException:
        _detach(model, name, restore=True)
        raise
    activate(model, method.plan(name), trainable=name)
    return adapter


def detach(model: nn.Module, name: str) -> None:
    """Take an adapter off. The base is bit for bit what it was, and after the last one no hook is left behind.

    Where the plan in force names it, what is left of the plan stays in force.
    """
    _detach(root_of(model), name, restore=True)


def activate(model: nn.Module, plan: Plan, *, trainable: Sequence[str] | str | None = None) -> None:
    """Put a plan in force and make its adapters' parameters, and no others, require gradients.

    trainable: train only these adapters, as the upper one of Stack(("language", "task")); all of the plan by default.
    """
    model = root_of(model)
    registry = _check_plan(model, plan)
    chosen = set(names(plan) if trainable is None else (trainable,) if isinstance(trainable, str) else trainable)
    for name in chosen:
        adapter_of(model, name)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in sorted(chosen):
        for parameter in parameters(model, name):
            parameter.requires_grad_(True)
    registry.switch.plan = plan


@contextmanager
def using(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Run under another plan for a while; None is the base model. What is trainable does not change.

    The plan belongs to the model: threads that share a model share it.
    """
    registry = _check_plan(root_of(model), plan)
    before, registry.switch.plan = registry.switch.plan, plan
    try:
        yield
    finally:
        for gone in set(names(before)) - registry.adapters.keys():
            before = without(before, gone)
        registry.switch.plan = before


def parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    """The adapter's parameters, each once, in model order."""
    return list(named_parameters(model, name).values())


def named_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The adapter's parameters by the name they are saved under: `<site path>.<letter>`, or the base's own name."""
    model = root_of(model)
    _, adapter = adapter_of(model, name)
    found = {
        f"{site.path}.{key}": parameter
        for site in adapter.sites
        for key, parameter in delta_at(model, site, name).named_parameters()
    }
    if adapter.unfrozen:
        base = dict(model.named_parameters())
        found.update({n: base[n] for n in adapter.unfrozen})
    return found


def delta_at(model: nn.Module, site: Site, name: str) -> Delta:
    """The adapter's delta at a site. Raises WrongOrder where something replaced the module after attaching."""
    deltas = deltas_of(model.get_submodule(site.path))
    if deltas is None or name not in deltas:
        raise WrongOrder(
            f"adapter {name!r} is gone from {site.path}: the module was replaced after attaching; "
            "load, then quantise, then attach"
        )
    return deltas[name]


def merge(model: nn.Module, name: str) -> None:
    """Fold an adapter into the base's weights and take it off. One way: keep the original if you need it.

    Every site is asked before anything is written. Updates are computed in float32 and rounded once, to the base's
    dtype. Raises CannotFold, naming the site, for a method, a storage or a tied weight that does not allow it.
    """
    model = root_of(model)
    _, adapter = adapter_of(model, name)
    deltas = [(site, model.get_submodule(site.path), delta_at(model, site, name)) for site in adapter.sites]
    with torch.no_grad():
        for site, base, delta in deltas:
            _folded(model, site, base, delta, adapter.method.name)
        for site, base, delta in deltas:
            for key, value in _folded(model, site, base, delta, adapter.method.name).items():
                base.get_parameter(key).copy_(value)
    _detach(model, name, restore=False)


def unfired(model: nn.Module, batch: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of adapted modules that one forward on `batch` does not run, or that lost their adapter since attaching."""
    model = root_of(model)
    registry = registry_of(model)
    sites = [s.path for a in registry.adapters.values() for s in a.sites] if registry else []
    modules = dict(model.named_modules())
    adapted = {path: modules[path] for path in sites if path in modules and deltas_of(modules[path]) is not None}
    fired: set[nn.Module] = set()
    handles = [m.register_forward_hook(lambda module, args, output: fired.add(module)) for m in adapted.values()]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    return tuple(path for path in dict.fromkeys(sites) if path not in adapted or adapted[path] not in fired)


def base_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without any adapter: the base's own names and original values."""
    model = root_of(model)
    registry = registry_of(model)
    inside = {f"{path}." for path, m in model.named_modules() if isinstance(m, Deltas)}
    state = {k: v for k, v in model.state_dict().items() if not any(k.startswith(p) for p in inside)}
    if registry is None or not registry.snapshot:
        return state
    originals = {id(p): registry.snapshot[name] for name, p in model.named_parameters() if name in registry.snapshot}
    tied = model.named_parameters(remove_duplicate=False)
    return state | {name: originals[id(p)] for name, p in tied if id(p) in originals}


def _check(model: nn.Module, method: Method, name: str) -> None:
    if not isinstance(method, Method):
        raise BadConfig(
            f"method is {method!r}; give a method object, as budwood.LoRA(rank=8) or budwood.parse_method('lora')"
        )
    if root_of(model) is not model:
        raise WrongOrder("the model is already compiled or wrapped for DDP; attach first, then compile and wrap")
    if any(isinstance(p, DTensor) for p in model.parameters()):
        raise WrongOrder(
            "the model is already sharded (it holds DTensors), so an adapter would not be; attach, then shard"
        )
    if any("_hf_hook" in vars(m) and any(p.is_meta for p in m.parameters(recurse=False)) for m in model.modules()):
        raise WrongOrder(
            "parts of the model are offloaded, so an adapter would have no device; load it without offloading"
        )
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadConfig(f"adapter name {name!r}: use letters, digits, - and _ (it names a folder and a child module)")
    registry = registry_of(model)
    for path, module in model.named_modules():
        if isinstance(module, Deltas) and (registry is None or module.switch is not registry.switch):
            raise WrongOrder(
                f"{path.removesuffix('.deltas')} has an adapter that was attached to a part of this model; "
                "detach it there, or attach to that part again"
            )
    if registry and name in registry.adapters:
        raise BadConfig(f"an adapter called {name!r} is attached already; detach it first or choose another name")


def _check_exclusive(registry: Registry | None, name: str, unfrozen: tuple[str, ...]) -> None:
    if registry is None:
        return
    for other in registry.adapters.values():
        if other.unfrozen or unfrozen:
            raise WrongOrder(
                f"{other.name!r} ({other.method.name}) is attached and {'it' if other.unfrozen else repr(name)} "
                "trains the base's own weights, which admits no other adapter; detach or merge first"
            )


def _build(model: nn.Module, method: Method, anatomy: Anatomy, unfrozen: tuple[str, ...]) -> list[tuple[Site, Delta]]:
    if unfrozen:
        return []
    heads = method.trained_sites(anatomy)
    taken = {site.path for site in heads}
    acting = tuple(s for s in method.sites(model, anatomy) if s.path not in taken)
    built: list[tuple[Site, Delta]] = []
    modules: set[nn.Module] = set()
    for site in (*acting, *heads):
        if site.kind == "parameter":
            raise NoSuchSite(
                f"{site.path} is a bare parameter (experts in one tensor), not a module; leave {site.role} out"
            )
        base = model.get_submodule(site.path)
        if base in modules:  # one module under two names, as T5's shared embedding
            continue
        if "deltas" in vars(base) or ("deltas" in base._modules and deltas_of(base) is None):
            raise NoSuchSite(f"{site.path} has a child of its own called 'deltas', so nothing can be attached there")
        modules.add(base)
        delta = Trained(site, base) if site.path in taken else method.build(site, base)
        built.append(
            (site, _place(delta, base if site.sublayer is None else model.get_submodule(site.sublayer.linear)))
        )
    if not built:
        raise NoSuchSite(
            f"{method.name} found nothing to train in this model; roles there are: {', '.join(anatomy.roles)}"
        )
    return built


def _settle(model: nn.Module, registry: Registry, name: str, deltas: list[Delta]) -> None:
    for delta in deltas:
        delta.settle(model, name)
        for source in delta.sources:
            watch_source(model.get_submodule(source.path), registry.switch, source)


def _place(delta: Delta, base: nn.Module) -> Delta:
    """On the base's device; in float32, or float64 on a float64 base."""
    weight = next((p for p in base.parameters() if p.is_floating_point()), None)
    if weight is None:
        return delta if (first := next(base.parameters(), None)) is None else delta.to(first.device)
    return delta.to(device=weight.device, dtype=trainable_dtype(weight))


def _check_plan(model: nn.Module, plan: Plan) -> Registry:
    registry = registry_of(model)
    if registry is None:
        raise NoSuchAdapter(
            "no adapter is attached to this model; attach one with budwood.attach(model, ..., name=...)"
        )
    for name in names(plan):
        adapter_of(model, name)
    check_composition(plan, registry.adapters, registry.anatomy)
    for adapter in registry.adapters.values():
        if adapter.unfrozen and plan != adapter.name:
            raise WrongOrder(
                f"{adapter.name!r} ({adapter.method.name}) trains the base's own weights, so there is nothing to "
                "switch to; budwood.detach gives the base back"
            )
    return registry


def _folded(model: nn.Module, site: Site, base: nn.Module, delta: Delta, what: str) -> dict[str, Tensor]:
    """The checked result of `delta.fold`."""
    strange = [
        k for k, p in base.named_parameters(recurse=False) if type(p) is not nn.Parameter or not p.is_floating_point()
    ]
    if strange:
        raise CannotFold(f"{site.path}.{strange[0]} is stored as {type(base).__name__}; merge into an unquantised base")
    values = delta.fold(base)
    if values is None:
        raise CannotFold(f"{what} at {site.path} cannot be folded into weights; keep the adapter unmerged")
    own = dict(base.named_parameters(recurse=False))
    for key in values:
        if key not in own:
            raise CannotFold(f"{site.path} has no {key} to fold into; keep the adapter unmerged")
        others = [
            f"{path}.{k}" if path else k
            for path, m in model.named_modules(remove_duplicate=True)
            for k, p in m._parameters.items()
            if p is own[key] and m is not base
        ]
        if others:
            raise CannotFold(
                f"{site.path}.{key} is tied to {others[0]}: merging would change both; untie them "
                "(config.tie_word_embeddings = False and a copy of the weight) or keep the adapter unmerged"
            )
    return values


def _detach(model: nn.Module, name: str, *, restore: bool) -> None:
    registry, adapter = adapter_of(model, name)
    for site in adapter.sites:
        module = model.get_submodule(site.path)
        deltas = deltas_of(module)
        if deltas is not None and name in deltas:
            delta = deltas[name]
            del deltas[name]
            if deltas.is_idle:
                uninstall(module)
            for source in delta.sources:
                forget_source(model.get_submodule(source.path), source)
            delta.unsettle(model)
    if adapter.unfrozen and restore:
        own = dict(model.named_parameters())
        with torch.no_grad():
            for key in adapter.unfrozen:
                own[key].data = registry.snapshot[key].to(own[key].device)
    for key in adapter.unfrozen:
        del registry.snapshot[key]
    del registry.adapters[name]
    registry.switch.plan = without(registry.switch.plan, name)
    if not registry.adapters:
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(key in registry.was_trainable)
        unwatch(model)
        close_registry(model)
