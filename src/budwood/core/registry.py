"""What is attached to a model: one plain record on the model itself, copied and pickled with it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from budwood.anatomy import Anatomy, Site
from budwood.core.delta import Switch
from budwood.core.method import Method
from budwood.errors import NoSuchAdapter, did_you_mean

_SLOT = "budwood"


@dataclass(frozen=True)
class Adapter:
    """A named, attached set of parameters.

    `sites`:     where it has deltas, in model order (modules trained in full included).
    `unfrozen`:  names of the base's own parameters that it trains in place (full and selective fine-tuning).
    """

    name: str
    method: Method
    sites: tuple[Site, ...]
    unfrozen: tuple[str, ...] = ()


@dataclass
class Registry:
    """All adapters of one model, the plan in force, and what is needed to leave no trace."""

    anatomy: Anatomy
    was_trainable: frozenset[str]
    """Base parameters that required a gradient before the first adapter was attached."""
    adapters: dict[str, Adapter] = field(default_factory=dict)
    switch: Switch = field(default_factory=Switch)
    snapshot: dict[str, Tensor] = field(default_factory=dict)
    """The original values of parameters that are trained in place."""


def root_of(model: nn.Module) -> nn.Module:
    """The user's own model inside `torch.compile` and DDP wrappers."""
    while isinstance(model, OptimizedModule | DistributedDataParallel):
        model = model._orig_mod if isinstance(model, OptimizedModule) else model.module
    return model


def registry_of(model: nn.Module) -> Registry | None:
    """The model's record, None where nothing is attached."""
    return vars(root_of(model)).get(_SLOT)


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a model that has adapters. Raises NoSuchAdapter where it has none."""
    registry = registry_of(model)
    if registry is None:
        raise NoSuchAdapter("no adapter is attached to this model, so nothing is known of it; attach one first")
    return registry.anatomy


def open_registry(model: nn.Module, anatomy: Anatomy) -> Registry:
    """The model's record, made on first use."""
    registry = registry_of(model)
    if registry is None:
        trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        registry = Registry(anatomy, trainable)
        setattr(model, _SLOT, registry)
    return registry


def close_registry(model: nn.Module) -> None:
    """Remove the record."""
    delattr(model, _SLOT)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The attached adapters by name, in the order of attaching."""
    registry = registry_of(model)
    return dict(registry.adapters) if registry else {}


def adapter_of(model: nn.Module, name: str) -> tuple[Registry, Adapter]:
    """The model's record and one adapter. Raises NoSuchAdapter, naming those there are."""
    registry = registry_of(model)
    if registry is None:
        raise NoSuchAdapter(
            f"no adapter is attached to this model; attach one with budwood.attach(model, ..., name={name!r})"
        )
    if name not in registry.adapters:
        raise NoSuchAdapter(f"no adapter is called {name!r}; {did_you_mean(name, registry.adapters)}")
    return registry, registry.adapters[name]
