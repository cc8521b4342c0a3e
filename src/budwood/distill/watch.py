"""What happens inside a model in one forward, kept for comparison: states, queries, keys, values, attention.

Layer l is the l-th block of a stack, counted from 1, as papers do; layer 0 is what the first block is given. Hooks
stand at the places that the anatomy found, behind those of adapters, and are gone when the forward is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from budwood.anatomy import Anatomy, Site
from budwood.anatomy.probe import first_tensor
from budwood.core.entrance import owner_of
from budwood.core.inputs import text_only
from budwood.errors import BadConfig, WrongOrder

QKV = ("attn.q", "attn.k", "attn.v")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to keep of a forward."""

    states: tuple[int, ...] = ()
    """Layers whose results are kept, before any norm behind the last block; 0 for what the first block is given."""
    projections: tuple[int, ...] = ()
    """Layers whose queries, keys and values are kept, as their projections return them: before rotation and norms."""
    attentions: tuple[int, ...] = ()
    """Layers whose attention probabilities are kept. Only eager attention has them."""
    stack: str = ""
    """Whose layers; where a model has but one stack, that."""


@dataclass
class Seen:
    """What was kept; within the graph where gradients are on. Of the text alone, where a prompt stands in it."""

    states: dict[int, Tensor] = field(default_factory=dict)
    """Layer to [B, S, d]."""
    projections: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    """Layer to "attn.q", "attn.k", "attn.v" to [B, S, heads * size]."""
    attentions: dict[int, Tensor] = field(default_factory=dict)
    """Layer to [B, heads, S, S], after dropout where the model trains; prompts and prefixes are columns more."""


@contextmanager
def watching(model: nn.Module, anatomy: Anatomy, wanted: Wanted) -> Iterator[Seen]:
    """For one forward of the model; a teacher's runs under torch.no_grad.

    Raises BadConfig for layers, projections or attentions that the model does not have or does not show, WrongOrder
    where the forward passed one of them never, or more than once.
    """
    stack = _stack(anatomy, wanted.stack)
    seen, handles = Seen(), list[RemovableHandle]()
    watch = _Watch(model, anatomy, stack, handles)
    try:
        for layer in wanted.states:
            watch.states(layer, seen.states)
        for layer in wanted.projections:
            watch.projections(layer, seen.projections.setdefault(layer, {}))
        for layer in wanted.attentions:
            watch.attention(layer, seen.attentions)
        yield seen
    finally:
        for handle in handles:
            handle.remove()
    missed = [layer for layer in wanted.states if layer not in seen.states]
    missed += [layer for layer in wanted.projections if len(seen.projections[layer]) < len(QKV)]
    missed += [layer for layer in wanted.attentions if layer not in seen.attentions]
    if missed:
        raise WrongOrder(
            f"no forward passed layer {missed[0]} of the {stack}; call the model inside `with watching(...)`"
        )


class _Watch:
    """Puts the hooks on."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, stack: str, handles: list[RemovableHandle]) -> None:
        self.model, self.anatomy, self.stack, self.handles = model, anatomy, stack, handles
        self.owner, self.has_gradient = owner_of(model, anatomy, stack), torch.is_grad_enabled()

    def states(self, layer: int, into: dict[int, Tensor]) -> None:
        """What a block returns, or the first is given."""
        block = self.model.get_submodule(self._sites(max(layer, 1), "block")[0].path)
        if layer:
            self._behind(block, lambda output: self._keep(into, layer, first_tensor(output)))
            return

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(into, 0, args[0] if args else kwargs.get("hidden_states"))

        self.handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))

    def projections(self, layer: int, into: dict[str, Tensor]) -> None:
        """What q, k and v return: modules of their own, or rows of a fused one."""
        for role in QKV:
            site = self._sites(layer, role)[0]
            rows = next((part.rows for part in site.parts if part.role == role), ((0, site.out_features),))

            def keep(output: Any, role: str = role, rows: tuple[tuple[int, int], ...] = rows) -> None:
                self._keep(into, role, torch.cat([output[..., start:stop] for start, stop in rows], dim=-1))

            self._behind(self.model.get_submodule(site.path), keep)

    def attention(self, layer: int, into: dict[int, Tensor]) -> None:
        """The last result of four dimensions that an attention module has beside its states."""
        path = self._sites(layer, "attn")[0].path

        def keep(output: Any) -> None:
            results = output if isinstance(output, tuple) else ()
            found = [r for r in results if isinstance(r, Tensor) and r.dim() == 4]
            if not found or bool((found[-1] < 0).any()):
                raise BadConfig(
                    f"{path} shows no attention probabilities; call model.set_attn_implementation('eager') first, or "
                    "compare relations (queries, keys, values), which every implementation has"
                )
            self._keep(into, layer, found[-1], has_text=False)

        self._behind(self.model.get_submodule(path), keep)

    def _behind(self, module: nn.Module, keep: Callable[[Any], None]) -> None:
        def leave(_: nn.Module, __: Any, output: Any) -> None:
            keep(output)

        self.handles.append(module.register_forward_hook(leave))

    def _keep(self, into: dict[Any, Tensor], key: int | str, value: Tensor | None, *, has_text: bool = True) -> None:
        if value is None:
            raise BadConfig(f"a block of {type(self.model).__name__} shows no states, so none can be compared")
        if key in into:
            raise WrongOrder(
                f"a forward passed layer {key} of the {self.stack} more than once; watch one forward at a time, and no "
                "model whose layers are one block (ALBERT)"
            )
        if self.has_gradient and not torch.is_grad_enabled():
            raise WrongOrder(
                "states inside a reentrant gradient checkpoint have no gradient; call "
                "model.gradient_checkpointing_enable({'use_reentrant': False})"
            )
        into[key] = text_only(self.owner, value) if has_text else value

    def _sites(self, layer: int, role: str) -> tuple[Site, ...]:
        """The sites of a layer with a role, or with a part that has it; at least one."""
        depth = self.anatomy.num_layers(self.stack)
        if not 1 <= layer <= depth:
            raise BadConfig(f"layer {layer} of the {self.stack} was asked for; it has layers 1 to {depth}")
        found = tuple(
            site
            for site in self.anatomy.sites
            if site.stack == self.stack and site.layer == layer - 1
            if site.role == role or any(part.role == role for part in site.parts)
        )
        if not found:
            raise BadConfig(
                f"layer {layer} of the {self.stack} of {type(self.model).__name__} has no {role}; compare its states"
            )
        return found


def _stack(anatomy: Anatomy, name: str) -> str:
    stacks = list(dict.fromkeys(site.stack for site in anatomy.sites if site.layer is not None))
    if name in stacks or (not name and len(stacks) == 1):
        return name or stacks[0]
    raise BadConfig(f"stack is {name!r}; this model has {' and '.join(stacks)}: say which")
