"""What an adapter does at one site (`Delta`), and the child module in which a site keeps its deltas (`Deltas`).

The only forward hooks on sites in the package are the two functions at the end of this file. They hold no state:
everything they need lives in the module they run on, so `deepcopy`, pickle and `torch.save` of an adapted model work.
"""

from __future__ import annotations

from collections.abc import Mapping
from threading import local
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from budwood.core.hooks import remove
from budwood.core.plan import Part, Place, Plan, parts_of, run
from budwood.errors import BadConfig, WrongOrder


class Source(local):
    """What another module reads or returns in the same forward, kept until the site that asked for it is done.

    path: of that module;  end: `input` is its first argument, `output` its (first) result, both before deltas there
    act on what it reads and after they act on what it returns. Every thread has a value of its own.
    """

    def __init__(self, path: str, end: Literal["input", "output"]) -> None:
        self.path, self.end = path, end
        self.value: Tensor | None = None

    def read(self) -> Tensor:
        """The value. Raises WrongOrder where this forward did not pass there."""
        if self.value is None:
            raise WrongOrder(
                f"nothing went through {self.path} in this forward, and an adapter reads its {self.end}: the module "
                "was replaced after attaching, or is called by itself; load, then quantise, then attach"
            )
        return self.value

    def __reduce__(self) -> tuple[type[Source], tuple[str, str]]:
        return Source, (self.path, self.end)


class Delta(nn.Module):
    """What one adapter does at one site. Subclasses are final; they override `forward` or `change`, or both.

    `base` comes as an argument: a delta never owns, copies or registers the base's weights.
    """

    sources: tuple[Source, ...] = ()
    """What it reads elsewhere in the model."""

    def settle(self, model: nn.Module, name: str) -> None:
        """Look up what it needs of the model; called once when every delta of the adapter `name` is in place."""

    def unsettle(self, model: nn.Module) -> None:
        """Undo what `settle` did to the model; called once this delta is gone from it."""

    def stored(self) -> dict[str, Tensor]:
        """What is saved of it, by letter: parameters and persistent buffers, as a delta of `Method.deployed` has."""
        return dict(self.state_dict(keep_vars=True))

    def enter(self, x: Tensor) -> Tensor:
        """What the site reads instead of x: [*, in] -> [*, in]. Override only where the method changes inputs."""
        return x

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The new y. x: [*, in] what the site read; y: [*, out] what it returned so far."""
        return y + self.change(base, x, y)

    def change(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What it adds to y: [*, out]. Sums of adapters are sums of these."""
        return self(base, x, y) - y

    @property
    def mixes_tokens(self) -> bool:
        """Whether what it does to a token depends on others of its row, or on which row it is in."""
        return False

    def query(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What a fusion of this and other adapters asks with: [*, out]."""
        return y

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss while it is trained: [], None for nothing."""
        return None

    def fold(self, base: nn.Module) -> dict[str, Tensor] | None:
        """New values for `base`'s parameters that make this delta redundant; None where there are none."""
        return None

    @property
    def enters(self) -> bool:
        """True where this class overrides `enter`."""
        return type(self).enter is not Delta.enter


class Texts(local):
    """The attention masks that this thread's forward gave to stacks of blocks, by stack."""

    masks: Mapping[str, Tensor | None] = {}

    def __reduce__(self) -> tuple[type[Texts], tuple[()]]:
        return Texts, ()


Kind = TypeVar("Kind", bound=Delta)


class Switch:
    """The plan in force, shared by all sites of one model (copied with the model, never between models)."""

    def __init__(self) -> None:
        self.plan: Plan = None
        self.sources: list[Source] = []
        """All that deltas of this model read elsewhere in it."""
        self.text = Texts()

    def forget(self) -> None:
        """Let go of what this thread's forward kept for sites that it did not come to."""
        for source in self.sources:
            source.value = None


class Deltas(nn.Module):
    """The resident child of an adapted module: its deltas by adapter name.

    Any name without a dot is allowed, also one that `nn.Module` uses itself (`train`, `type`).
    """

    def __init__(self, switch: Switch, layer: int | None = None, stack: str = "") -> None:
        super().__init__()
        self.switch, self.layer, self.stack = switch, layer, stack
        self.watched: list[Source] = []
        """What deltas elsewhere want to know of this module."""

    def __contains__(self, name: str) -> bool:
        return name in self._modules

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, name: str) -> Delta:
        delta = self._modules[name]
        assert isinstance(delta, Delta)
        return delta

    def __setitem__(self, name: str, delta: Delta) -> None:
        self._modules[name] = delta

    def __delitem__(self, name: str) -> None:
        del self._modules[name]

    @property
    def is_idle(self) -> bool:
        """Whether nothing needs this child any more."""
        return not self._modules and not self.watched

    def enter(self, x: Tensor) -> Tensor:
        """What the plan makes of the site's input."""
        self._tell("input", x)
        return run(self.switch.plan, _Entry(self), x)

    def leave(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What the plan makes of the site's output."""
        y = run(self.switch.plan, _Exit(self, base, x), y)
        for name in self._modules:
            for source in self[name].sources:
                source.value = None
        self._tell("output", y)
        return y

    def _tell(self, end: str, value: Tensor) -> None:
        for source in self.watched:
            if source.end == end:
                source.value = value


class _Entry(Place):
    """The input of a site."""

    def __init__(self, deltas: Deltas) -> None:
        self.deltas, self.layer, self.stack = deltas, deltas.layer, deltas.stack

    def has(self, name: str) -> bool:
        """True where the adapter changes the input."""
        return name in self.deltas and self.deltas[name].enters

    def step(self, name: str, y: Tensor) -> Tensor:
        """y: [*, in], which the plan calls so at either end."""
        return self.deltas[name].enter(y) if self.has(name) else y

    def fuses(self, by: str) -> bool:
        """Inputs are never fused."""
        return False

    def fuse(self, by: str, last: str, changes: list[Tensor], y: Tensor) -> Tensor:
        """Never asked."""
        raise AssertionError(by)


class _Exit(Place):
    """The output of a site that read x."""

    def __init__(self, deltas: Deltas, base: nn.Module, x: Tensor) -> None:
        self.deltas, self.base, self.x = deltas, base, x
        self.layer, self.stack = deltas.layer, deltas.stack

    def has(self, name: str) -> bool:
        """True where the adapter has a delta."""
        return name in self.deltas

    def step(self, name: str, y: Tensor) -> Tensor:
        """y: [*, out] -> [*, out]."""
        return self.deltas[name](self.base, self.x, y) if name in self.deltas else y

    def change(self, name: str, y: Tensor) -> Tensor:
        """y: [*, out] -> [*, out]."""
        return self.deltas[name].change(self.base, self.x, y) if name in self.deltas else torch.zeros_like(y)

    def fuses(self, by: str) -> bool:
        """True where the adapter has a `Mixer`."""
        return by in self.deltas and isinstance(self.deltas[by], Mixer)

    def fuse(self, by: str, last: str, changes: list[Tensor], y: Tensor) -> Tensor:
        """changes: each [*, out] -> [*, out]."""
        mixer = self.deltas[by]
        assert isinstance(mixer, Mixer)
        return mixer.mix(self.deltas[last].query(self.base, self.x, y), changes, y)


class Mixer(Delta):
    """A delta that acts only through `Fuse`: it mixes what other adapters add."""

    def mix(self, query: Tensor, changes: list[Tensor], y: Tensor) -> Tensor:
        """What is added to y. All tensors [*, out]."""
        raise NotImplementedError

    def change(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Raises BadConfig: a fusion by itself has nothing to mix."""
        raise BadConfig("a fusion acts through Fuse(parts, by=its name), not by itself; activate that plan")


def deltas_of(module: nn.Module) -> Deltas | None:
    """The module's resident deltas, None where it has none."""
    child = module._modules.get("deltas")
    return child if isinstance(child, Deltas) else None


def acting_at(module: nn.Module, batch: int, kind: type[Kind]) -> list[tuple[Part, Kind]]:
    """The deltas of one kind that the plan in force lets act at a module, in order, with their rows of the batch."""
    deltas = deltas_of(module)
    if deltas is None or deltas.switch.plan is None:
        return []
    parts = parts_of(deltas.switch.plan, batch, deltas.layer, deltas.stack)
    found = [(part, deltas[part.name]) for part in parts if part.name in deltas]
    return [(part, delta) for part, delta in found if isinstance(delta, kind)]


def install(module: nn.Module, switch: Switch, layer: int | None = None, stack: str = "") -> Deltas:
    """Give the module its child and the output hook, once; returns the child."""
    deltas = deltas_of(module)
    if deltas is None:
        deltas = Deltas(switch).train(module.training)
        module.add_module("deltas", deltas)
        module.register_forward_hook(leave_hook, with_kwargs=True)
    deltas.layer, deltas.stack = layer if deltas.layer is None else deltas.layer, stack or deltas.stack
    return deltas


def watch_source(module: nn.Module, switch: Switch, source: Source) -> None:
    """Have the module tell `source` what it reads or returns."""
    install(module, switch).watched.append(source)
    switch.sources.append(source)
    if source.end == "input":
        listen(module)


def forget_source(module: nn.Module, source: Source) -> None:
    """The inverse of `watch_source`."""
    deltas = deltas_of(module)
    if deltas is not None:
        deltas.watched = [other for other in deltas.watched if other is not source]
        deltas.switch.sources = [other for other in deltas.switch.sources if other is not source]
        if deltas.is_idle:
            uninstall(module)


def listen(module: nn.Module) -> None:
    """Add the input hook, once."""
    if enter_hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(enter_hook, with_kwargs=True)


def uninstall(module: nn.Module) -> None:
    """Take the child and both hooks away, leaving other people's hooks as they are."""
    del module._modules["deltas"]
    remove(module, enter_hook, leave_hook)


def enter_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """The one input hook: the site reads what the plan makes of its first argument."""
    deltas = deltas_of(module)
    if deltas is None or deltas.switch.plan is None:
        return None
    if args:
        return (deltas.enter(args[0]), *args[1:]), kwargs
    key = _read_from(kwargs)
    return args, {**kwargs, key: deltas.enter(kwargs[key])}


def leave_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """The one output hook: the site returns what the plan makes of its (first) output."""
    deltas = deltas_of(module)
    if deltas is None or deltas.switch.plan is None:
        return output
    x = args[0] if args else kwargs[_read_from(kwargs)]
    if isinstance(output, tuple):
        return (deltas.leave(module, x, output[0]), *output[1:])
    return deltas.leave(module, x, output)


def _read_from(kwargs: dict[str, Any]) -> str:
    return "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs))
