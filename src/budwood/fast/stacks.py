"""A stack of blocks that computes its tokens packed: hooks that are there while a fast forward runs, and no longer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.core.attention import configs_of
from budwood.core.entrance import owner_of
from budwood.core.hooks import named
from budwood.errors import NoSuchSite
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
            hooks.append(
                block.register_forward_pre_hook(
                    self._first if number == 0 else self._next, with_kwargs=True, prepend=True
                )
            )
        hooks.append(self.blocks[-1].register_forward_hook(self._end))
        for module in self.attentions:
            object.__setattr__(module, SLOT, self.packed)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module in self.attentions:
                object.__delattr__(module, SLOT)
            self.packed.packing = None

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The owner's forward begins: what its mask says."""
        mask = named(self.arguments, args, kwargs).get("attention_mask")
        self.packed.packing = Packing.of(mask) if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self.packed.known = {}

    def _first(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """The first block reads its states packed."""
        packing = self.packed.packing
        if packing is None:
            return None
        if args:
            args = (packing.pack(args[0]), *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": packing.pack(kwargs["hidden_states"])}
        return args, self._positions(packing, kwargs)

    def _next(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        packing = self.packed.packing
        return None if packing is None else (args, self._positions(packing, kwargs))

    def _end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The last block's states go on beside each other."""
        packing = self.packed.packing
        if packing is None:
            return output
        if isinstance(output, tuple):
            return (packing.unpack(output[0]), *output[1:])
        return packing.unpack(output)

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
