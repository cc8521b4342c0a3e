"""The arithmetic of putting embeddings into texts: which ids, in which order, and masks to go with them.

Shapes: B batch, S text length, T embeddings put in (the longest of the batch), P those of one adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budwood.core.plan import Part
from budwood.errors import BadConfig

SPAN = 1 << 20
"""Ids of one prompt: -1 - (slot * SPAN + row). Slot 0 is that of pseudo tokens, which stand in a text by themselves."""


@dataclass(frozen=True)
class Inset:
    """One adapter's prompt in a forward."""

    part: Part
    slot: int
    length: int
    after: bool
    """Behind the first token, not in front of it."""


@dataclass(frozen=True)
class Block:
    """What is put into each row of a batch."""

    ids: Tensor
    """[B, T] int64, negative; 0 where a row has fewer."""
    visible: Tensor | None
    """[B, T] bool: false where a row has fewer; None for all."""
    after: bool
    """Behind the first token, not in front of it."""

    @property
    def counts(self) -> Tensor | int:
        """How many of a row count: [B, 1], or one number."""
        return self.ids.shape[1] if self.visible is None else self.visible.sum(dim=1, keepdim=True)


def order_of(
    block: Block, mask: Tensor | None, length: int, behind_padding: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(for each of T + S places its index in [block, text], for each token of the text its place); None in front.

    behind_padding: of a text that is padded on the left, the block stands between padding and text
    """
    if not block.after and (mask is None or not behind_padding):
        return None, None
    (batch, count), device = block.ids.shape, block.ids.device
    begin = torch.full((batch, 1), int(block.after), device=device)
    if mask is not None:
        begin = begin + mask.to(device, torch.int64).argmax(dim=1, keepdim=True)
    place = torch.arange(count + length, device=device).expand(batch, -1)
    behind = place >= begin + count
    order = torch.where(place < begin, count + place, torch.where(behind, place, place - begin))
    token = torch.arange(length, device=device).expand(batch, -1)
    return order, torch.where(token < begin, token, token + count)


def ends_hidden(block: Block, length: int) -> tuple[Tensor, Tensor]:
    """As `order_of` in front, but hidden columns stand at the end: the first of a row is what is read first."""
    count, shown = block.ids.shape[1], block.counts
    place = torch.arange(count + length, device=block.ids.device).expand(len(block.ids), -1)
    behind = torch.where(place < shown + length, count + place - shown, place - shown - length)
    return torch.where(place < shown, count - shown + place, behind), place[:, :length] + shown


def arranged(block: Tensor, text: Tensor, order: Tensor | None) -> Tensor:
    """[B, T] and [B, S] -> [B, T + S]."""
    whole = torch.cat([block, text], dim=1)
    return whole if order is None else whole.gather(1, order)


def mask_for(block: Block, mask: Tensor) -> Tensor:
    """The block's part of a mask: [B, T]."""
    if block.visible is None:
        return mask.new_ones(block.ids.shape)
    return block.visible.to(mask.device).to(mask.dtype)


def mask_of(mask: Any) -> Tensor | None:
    """The mask of a text: [B, S]. Raises BadConfig for any other kind."""
    if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
        return mask
    found = f"of {mask.dim()} dimensions" if isinstance(mask, Tensor) else f"as a {type(mask).__name__}"
    raise BadConfig(
        f"a prompt is put into texts with an attention_mask [batch, tokens]; this one comes {found} (generate makes "
        "such masks for a static cache: leave cache_implementation out)"
    )


def without_block(states: Tensor, count: int, text: Tensor | None) -> Tensor:
    """[B, T + S, d] -> [B, S, d]."""
    if text is None:
        return states[:, count:]
    return states.gather(1, text.unsqueeze(-1).expand(-1, -1, states.shape[-1]))


def block_of(insets: Sequence[Inset], batch: int, padding: int, device: torch.device) -> Block | None:
    """The ids of all prompts of each row, at the right end of T columns; `padding` where a row has fewer.

    Raises BadConfig where some stand in front and some behind the first token.
    """
    if not insets:
        return None
    if len({inset.after for inset in insets}) > 1:
        raise BadConfig("one plan has prompts in front and behind the first token; use one place for them")
    every = torch.ones(batch, dtype=torch.bool, device=device)
    ids, shown = [], []
    for inset in insets:
        rows = torch.arange(inset.length, device=device).expand(batch, -1)  # [B, P]
        if inset.part.tasks is not None:
            rows = rows + inset.part.tasks.to(device).unsqueeze(1) * inset.length
        ids.append(-1 - inset.slot * SPAN - rows)
        acting = every if inset.part.rows is None else inset.part.rows.to(device)
        shown.append(acting.unsqueeze(1).expand(-1, inset.length))
    block = Block(torch.cat(ids, dim=1), None, insets[0].after)
    if all(inset.part.rows is None for inset in insets):
        return block
    return _right_aligned(block, torch.cat(shown, dim=1), padding)


def _right_aligned(block: Block, shown: Tensor, padding: int) -> Block | None:
    """Each row's own columns at the right end, and no more columns than the row with most has."""
    longest = int(shown.sum(dim=1).max())
    if longest == 0:
        return None
    order = shown.to(torch.int64).argsort(dim=1, stable=True)[:, -longest:]  # hidden ones first, the others in order
    ids, shown = block.ids.gather(1, order), shown.gather(1, order)
    return Block(ids.where(shown, padding), None if bool(shown.all()) else shown, block.after)
