"""A stack of blocks that computes its tokens packed: hooks that are there while a fast forward runs, and no longer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.core.attention import configs_of
from budwood.core.delta import Deltas
from budwood.core.entrance import owner_of
from budwood.core.hooks import named
from budwood.errors import NoSuchSite, NotAvailable
from budwood.fast.attention import NAMES, PACKED, SLOT
from budwood.fast.packing import Packed, Packing


@dataclass(frozen=True)
class Stack:
    """The blocks of one stack, in order, and the module that is given their mask."""

    name: str
    owner: nn.Module
    blocks: tuple[nn.Module, ...]
    attentions: tuple[nn.Module, ...]
    arguments: tuple[str, ...]
    """Of the owner's forward."""
    packed: Packed

    @contextmanager
    def packing(self) -> Iterator[None]:
        """Forwards inside pack the tokens of this stack."""
        hooks = [self.owner.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for number, block in enumerate(self.blocks):
            enter = partial(self._enter, number)
            hooks.append(block.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
        hooks.append(self.blocks[-1].register_forward_hook(self._end))
        for module in self.attentions:
            object.__setattr__(module, SLOT, self.packed)
        skipped = self.blocks[: self.packed.lower.cut if self.packed.lower else 0]
        for block in skipped:
            block.forward = partial(_or_as_it_is, self.packed, block.forward)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in self.attentions:
                object.__delattr__(module, SLOT)
            for block in skipped:
                del block.forward  # the instance's own; the class has the true one
            self.packed.packing = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The owner's forward begins: what its mask says, and whether the rows are known."""
        packed = self.packed
        mask = named(self.arguments, args, kwargs).get("attention_mask")
        lengths: list[int] = []
        packed.packing, packed.known = None, {}
        if isinstance(mask, Tensor) and mask.ndim == 2:
            packed.packing, lengths = Packing.of(mask), mask.sum(dim=1).tolist()
        lower, rows = packed.lower, packed.rows
        if lower is None or lengths != [lower.lengths[row] for row in rows]:
            packed.rows = ()  # rows that nobody named, or that a prompt made longer
        packed.is_known = lower is not None and bool(packed.rows) and lower.has(rows)

    def _enter(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        """A block reads packed states: the first packs them, or takes up what is known; the one above the cut keeps."""
        packed, lower = self.packed, self.packed.lower
        states = args[0] if args else kwargs["hidden_states"]
        if number == 0 and packed.packing is not None:
            states = packed.packing.pack(states)
        if lower is not None and packed.rows:
            if number == 0 and packed.is_known:
                states = lower.get(packed.rows).view(states.shape)
            elif number == lower.cut:
                self._keep(states)
        if packed.packing is not None:
            kwargs = self._positions(packed.packing, kwargs)
        return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})

    def _keep(self, states: Tensor) -> None:
        """What the frozen blocks made of rows; where there is no room for it, nothing is kept any more."""
        packed, lower = self.packed, self.packed.lower
        if lower is None or packed.is_known or not packed.rows or states.requires_grad:
            return
        try:
            lower.put(packed.rows, states.reshape(-1, states.shape[-1]))
        except NotAvailable:
            packed.lower = None

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The last block's states go on beside each other."""
        packing, states = self.packed.packing, output[0] if isinstance(output, tuple) else output
        if self.packed.lower is not None and self.packed.lower.cut == len(self.blocks):
            self._keep(states)
        if packing is None:
            return output
        states = packing.unpack(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    def _positions(self, packing: Packing, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What says where tokens stand, packed once for all blocks."""
        return {
            key: self._packed(packing, value) if "position" in key else value
            for key, value in kwargs.items()
        }  # fmt: skip

    def _packed(self, packing: Packing, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._packed(packing, one) for one in value)
        if isinstance(value, dict):
            return {key: self._packed(packing, one) for key, one in value.items()}
        fits = isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == packing.width
        if not fits or value.shape[0] not in (1, packing.rows):
            return value
        known = self.packed.known
        if id(value) not in known:
            known[id(value)] = (value, packing.pack(value))
        return known[id(value)][1]


def _or_as_it_is(packed: Packed, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A frozen block's forward, unless what it would come to is known."""
    if packed.is_known:
        return args[0] if args else kwargs["hidden_states"]
    return forward(*args, **kwargs)


def stacks_of(model: nn.Module, anatomy: Anatomy) -> tuple[Stack, ...]:
    """The stacks whose tokens can be packed. Raises NoSuchSite, saying why, where this is not known of one."""
    if anatomy.repeated:
        raise NoSuchSite(f"{anatomy.repeated[0]} runs several times in a forward")
    blocks = [site for site in anatomy.sites if site.role == "block"]
    if not blocks:
        raise NoSuchSite("it has no blocks")
    if any(site.role == "mixer" for site in anatomy.sites):
        raise NoSuchSite("its mixers carry a state from token to token")
    found = []
    for name in dict.fromkeys(site.stack for site in blocks):
        own = sorted((site for site in blocks if site.stack == name), key=lambda site: site.layer or 0)
        attentions = [s for s in anatomy.sites if s.stack == name and s.role in ("attn", "cross")]
        owner = owner_of(model, anatomy, name)
        found.append(Stack(
            name, owner, tuple(model.get_submodule(site.path) for site in own),
            tuple(model.get_submodule(site.path) for site in attentions),
            tuple(inspect.signature(owner.forward).parameters), Packed(),
        ))  # fmt: skip
    return tuple(found)


def frozen_below(stack: Stack) -> int:
    """How many of the first blocks hold nothing that is trained, and nothing of an adapter."""
    for number, block in enumerate(stack.blocks):
        inside = list(block.modules())
        if any(isinstance(module, Deltas) for module in inside) or any(p.requires_grad for p in block.parameters()):
            return number
    return len(stack.blocks)


@contextmanager
def packing(model: nn.Module, stacks: tuple[Stack, ...]) -> Iterator[None]:
    """Forwards inside compute every stack packed, and attention by `NAMES` on a CPU."""
    configs = [config for config in configs_of(model) if config._attn_implementation_internal in NAMES]
    before = [config._attn_implementation_internal for config in configs]
    on_cpu = next(model.parameters()).device.type == "cpu"
    with ExitStack() as inside:
        for stack in stacks:
            inside.enter_context(stack.packing())
        try:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = PACKED + (NAMES[name] if on_cpu else name)
            yield
        finally:
            for config, name in zip(configs, before, strict=True):
                config._attn_implementation_internal = name
