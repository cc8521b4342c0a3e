"""Positions that start later, or make room: of stacks that are told them, and of those that look them up (BART).

Shapes: B batch, S text length, T embeddings put in.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from budwood.core.entrance import Entrance
from budwood.core.insertion import Block, arranged
from budwood.errors import BadConfig

_SLOT = "budwood_positions"


def counts_of(table: nn.Module | None) -> bool:
    """Whether a table of positions is asked by attention mask (OPT)."""
    return table is not None and "attention_mask" in inspect.signature(table.forward).parameters


def can_listen(table: nn.Module | None) -> bool:
    """Whether the stack's own positions can be changed on their way to its table."""
    return table is not None and "position_ids" in inspect.signature(table.forward).parameters


def listen_at(entrance: Entrance) -> None:
    """Put a hook on the table of a stack that is not told positions."""
    if entrance.table is not None and _SLOT not in vars(entrance.table):
        object.__setattr__(entrance.table, _SLOT, entrance)
        entrance.table.register_forward_pre_hook(look_up_hook, with_kwargs=True)


def stop_listening(entrance: Entrance) -> None:
    """The inverse."""
    table = entrance.table
    if table is not None and _SLOT in vars(table):
        object.__delattr__(table, _SLOT)
        for key in [k for k, hook in table._forward_pre_hooks.items() if hook is look_up_hook]:
            del table._forward_pre_hooks[key], table._forward_pre_hooks_with_kwargs[key]


def look_up_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Positions [S], or the length of the text before them, as many later as the stack's hook has said."""
    entrance: Entrance = vars(module)[_SLOT]
    shift = entrance.inserted.shift
    if not shift:
        return None
    given = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    name = "past_key_values_length" if given.get("position_ids") is None else "position_ids"
    return (), {**given, name: given.get(name, 0) + shift}


def shift_by(entrance: Entrance, given: dict[str, Any], shift: int | Tensor, seen: int) -> None:
    """Have a text start `shift` later, an int or [B, 1]. seen: tokens of it in the cache."""
    if entrance.table is None:
        given["position_ids"] = _numbered(entrance, given, seen, shift)
        return
    if isinstance(shift, Tensor):
        raise BadConfig(
            "rows of this batch start at several positions, and the model numbers all rows alike; activate one adapter"
        )
    entrance.inserted.shift = shift


def _numbered(entrance: Entrance, given: dict[str, Any], seen: int, shift: int | Tensor) -> Tensor:
    """[1 or B, S]: as the model would number the text by itself, and later."""
    positions: Tensor | None = given.get("position_ids")
    if positions is not None:
        return positions + shift
    text: Tensor = given["input_ids"] if given.get("input_ids") is not None else given["inputs_embeds"]
    mask = given.get("attention_mask")
    if entrance.padding is not None and text.dim() == 2:
        real = (text != entrance.padding).to(torch.int64)
        return (real.cumsum(dim=1) + shift) * real + entrance.padding
    if entrance.counts_mask and mask is not None:
        real = mask.to(torch.int64)
        return ((real.cumsum(dim=1) + shift) * real - 1)[:, seen:]
    return torch.arange(seen, seen + text.shape[1], device=text.device).unsqueeze(0) + shift


def positions_with(
    entrance: Entrance, block: Block, positions: Tensor, order: Tensor | None, where: Tensor | None
) -> Tensor:
    """Positions of the text [B, S] with those of the block in between: [B, T + S]."""
    if "position_ids" not in entrance.arguments:
        raise BadConfig(
            "this batch has prompts of several lengths and the model takes no position_ids; use prompts of one length"
        )
    if positions.dim() != 2:
        raise BadConfig("a prompt can be put into texts with one position for each token, and this model has several")
    steps = torch.arange(block.ids.shape[1], device=positions.device).expand(block.ids.shape)
    if block.visible is not None:
        steps = (block.visible.cumsum(dim=1) - 1).clamp(min=0)
    if where is None:
        return torch.cat([steps, positions + block.counts], dim=1)
    kept = where == torch.arange(where.shape[1], device=where.device)  # tokens in front of the block: [B, S]
    begin = torch.where(kept, positions, -1).amax(dim=1, keepdim=True) + 1
    return arranged(begin + steps, torch.where(kept, positions, positions + block.counts), order)
