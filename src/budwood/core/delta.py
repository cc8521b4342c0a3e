"""What an adapter does at one site (`Delta`), and the child module in which a site keeps its deltas (`Deltas`).

The only forward hooks on sites in the package are the two functions at the end of this file. They hold no state:
everything they need lives in the module they run on, so `deepcopy`, pickle and `torch.save` of an adapted model work.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from budwood.core.plan import Plan, run


class Delta(nn.Module):
    """What one adapter does at one site. Subclasses are final.

    `base` comes as an argument: a delta never owns, copies or registers the base's weights.
    """

    def enter(self, x: Tensor) -> Tensor:
        """What the site reads instead of x: [*, in] -> [*, in]. Override only where the method changes inputs."""
        return x

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The new y. x: [*, in] what the site read; y: [*, out] what it returned so far."""
        raise NotImplementedError

    def fold(self, base: nn.Module) -> dict[str, Tensor] | None:
        """New values for `base`'s parameters that make this delta redundant; None where there are none."""
        return None

    @property
    def enters(self) -> bool:
        """True where this class overrides `enter`."""
        return type(self).enter is not Delta.enter


class Switch:
    """The plan in force, shared by all sites of one model (copied with the model, never between models)."""

    def __init__(self) -> None:
        self.plan: Plan = None


class Deltas(nn.Module):
    """The resident child of an adapted module: its deltas by adapter name.

    Any name without a dot is allowed, also one that `nn.Module` uses itself (`train`, `type`).
    """

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self.switch = switch

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

    def enter(self, x: Tensor) -> Tensor:
        """What the plan makes of the site's input."""
        return run(self.switch.plan, self._enter_one, x)

    def leave(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What the plan makes of the site's output."""
        return run(self.switch.plan, lambda name, y: self[name](base, x, y) if name in self else y, y)

    def _enter_one(self, name: str, x: Tensor) -> Tensor:
        return self[name].enter(x) if name in self else x


def deltas_of(module: nn.Module) -> Deltas | None:
    """The module's resident deltas, None where it has none."""
    child = module._modules.get("deltas")
    return child if isinstance(child, Deltas) else None


def install(module: nn.Module, switch: Switch) -> Deltas:
    """Give the module its child and the output hook, once; returns the child."""
    deltas = deltas_of(module)
    if deltas is None:
        deltas = Deltas(switch).train(module.training)
        module.add_module("deltas", deltas)
        module.register_forward_hook(leave_hook, with_kwargs=True)
    return deltas


def listen(module: nn.Module) -> None:
    """Add the input hook, once."""
    if enter_hook not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(enter_hook, with_kwargs=True)


def uninstall(module: nn.Module) -> None:
    """Take the child and both hooks away, leaving other people's hooks as they are."""
    del module._modules["deltas"]
    for key in [k for k, hook in module._forward_hooks.items() if hook is leave_hook]:
        del module._forward_hooks[key], module._forward_hooks_with_kwargs[key]
    for key in [k for k, hook in module._forward_pre_hooks.items() if hook is enter_hook]:
        del module._forward_pre_hooks[key], module._forward_pre_hooks_with_kwargs[key]


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
