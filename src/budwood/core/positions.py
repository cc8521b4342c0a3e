"""Positions that start later, or make room: of stacks that are told them, and of those that look them up (BART).

Shapes: B batch, S text length, T embeddings put in.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from budwood.core.entrance import Entrance
from budwood.core.hooks import named, remove
from budwood.core.insertion import Block, arranged, ends_hidden, order_of
from budwood.core.plan import Fuse, Plan, Route, Skip, Stack, Sum, Tasks
from budwood.core.registry import Adapter, registry_of
from budwood.errors import BadConfig

_SLOT = "budwood_positions"


def positions_taken(model: nn.Module) -> int:
    """How many positions the plan in force takes from a text: of a `Route`, where most are taken."""
    registry = registry_of(model)
    return 0 if registry is None else _taken(registry.switch.plan, registry.adapters)


def _taken(plan: Plan, adapters: Mapping[str, Adapter]) -> int:
    match plan:
        case str():
            return adapters[plan].method.positions_taken
        case Skip() | Tasks():
            return _taken(plan.part, adapters)
        case Route():
            return max(_taken(part, adapters) for part in plan.parts)
        case Stack() | Sum() | Fuse():
            return sum(_taken(part, adapters) for part in plan.parts)
        case _:
            return 0


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
        remove(table, look_up_hook)


def look_up_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Positions [S], or the length of the text before them, as many later as the stack's hook has said."""
    entrance: Entrance = vars(module)[_SLOT]
    shift = entrance.inserted.shift
    if not shift:
        return None
    given = named(inspect.signature(module.forward).parameters, args, kwargs)
    name = "past_key_values_length" if given.get("position_ids") is None else "position_ids"
    return (), {**given, name: given.get(name, 0) + shift}


def shift_by(entrance: Entrance, given: dict[str, Any], shift: int | Tensor, seen: int) -> None:
    """Have a text start `shift` later, an int or [B, 1]. seen: tokens of it in the cache."""
    if entrance.table is None:
        given["position_ids"] = _numbered(entrance, given, seen, shift)
        _check_last(entrance, given["position_ids"], shift)
        return
    if isinstance(shift, Tensor):
        raise BadConfig(
            "rows of this batch start at several positions, and the model numbers all rows alike; activate one adapter"
        )
    entrance.inserted.shift = shift


def _check_last(entrance: Entrance, positions: Tensor, shift: int | Tensor) -> None:
    """Raises BadConfig where a table has no such position."""
    if entrance.limit is None or torch.compiler.is_compiling() or positions.device.type == "meta":
        return
    last = int(positions.max()) - (0 if entrance.padding is None else entrance.padding + 1)
    if last >= entrance.limit:
        raise BadConfig(
            f"a text that starts at position {int(torch.as_tensor(shift).max())} ends at {last}, and the model has "
            f"{entrance.limit} positions; cut the text by {last + 1 - entrance.limit} tokens (max_length), or use "
            "positions=kept"
        )


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
    first = kept.sum(dim=1, keepdim=True) - int(block.after)  # the text's own
    begin = positions.gather(1, first.clamp(max=where.shape[1] - 1)) + int(block.after)
    return arranged(begin + steps, torch.where(kept, positions, positions + block.counts), order)


def order_in(
    entrance: Entrance, given: dict[str, Any], block: Block, mask: Tensor | None, length: int
) -> tuple[Tensor | None, Tensor | None]:
    """As `order_of`: behind the padding of a text that is padded on the left, where the model numbers no columns."""
    if entrance.pools_first:
        front = block.visible is not None and not block.after
        return ends_hidden(block, length) if front else order_of(block, mask, length, False)
    told = given.get("position_ids") is not None
    return order_of(block, mask, length, told or entrance.counts_mask or "position_ids" not in entrance.arguments)


def counts_columns(entrance: Entrance, block: Block) -> bool:
    """Whether the model would number columns that are hidden, too."""
    by_text = entrance.counts_mask or entrance.padding is not None
    return block.visible is not None and entrance.has_positions and not by_text


def check_room(cache: Any, length: int, count: int) -> None:
    """Raises BadConfig where a static cache is too short for a text and its block of `count`."""
    if cache is None or not cache.is_compileable:
        return
    layers = zip(cache.layers, cache.is_sliding, strict=True)
    room = max((layer.get_max_length() for layer, is_sliding in layers if not is_sliding), default=-1)
    if 0 < room < length:
        raise BadConfig(
            f"the static cache holds {room} tokens, and the prompt of {count} and the text are {length}; pass "
            "past_key_values=StaticCache(model.config, max_cache_len=...) with room for both, or a dynamic cache"
        )


def check_continued(mask: Tensor | None, positions: Tensor | None, whole: int, count: int) -> None:
    """generate takes all that is in a cache for text, and so hands on too few tokens of a text that goes on."""
    found = whole if mask is None else mask.shape[1]
    if mask is None and positions is not None and positions.dim() == 2 and not torch.compiler.is_compiling():
        found = int(positions[0, -1]) + 1
    if found != whole:
        raise BadConfig(
            f"a text of {found} tokens goes on from a cache; its text and the tokens given make {whole}: the cache has "
            f"a prompt of {count}, too, and generate counts it as text; give the whole text without past_key_values"
        )
