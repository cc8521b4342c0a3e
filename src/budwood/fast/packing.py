"""Rows without their padding: outside of attention, blocks compute the tokens of a batch one after the other.

A model's embeddings, masks, positions and head stay as they are, padded; only what goes through its blocks is packed,
[B, T, d] -> [1, N, d], and attention alone puts the rows back beside each other (`fast.attention`). So prompts,
prefixes, position biases and masks of any family act as they do without packing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budwood.fast.lower import Lower


@dataclass(frozen=True, slots=True)
class Packing:
    """Which places of a padded batch [B, T] hold tokens."""

    index: Tensor
    """[N] int64: places b * T + t of tokens, in order."""
    rows: int
    """B."""
    width: int
    """T."""

    @classmethod
    def of(cls, mask: Tensor) -> Packing | None:
        """Of an attention mask [B, T], 0 at padding; None where there is no padding."""
        index = mask.reshape(-1).nonzero().flatten()
        return None if len(index) == mask.numel() else cls(index, mask.shape[0], mask.shape[1])

    @property
    def tokens(self) -> int:
        """N."""
        return len(self.index)

    def pack(self, x: Tensor) -> Tensor:
        """x: [B or 1, T, ...] -> [1, N, ...]."""
        if x.shape[0] != self.rows:
            x = x.expand(self.rows, *x.shape[1:])
        packed: Tensor = _Pack.apply(x, self.index)
        return packed

    def unpack(self, x: Tensor) -> Tensor:
        """x: [1, N, ...] -> [B, T, ...], zero at padding."""
        unpacked: Tensor = _Unpack.apply(x, self.index, self.rows, self.width)
        return unpacked

    def unpack_heads(self, x: Tensor) -> Tensor:
        """x: [1, heads, N, D] -> [B, heads, T, D]; what is not packed, as it is."""
        if x.shape[0] != 1 or x.shape[2] != self.tokens:
            return x
        return self.unpack(x.transpose(1, 2)).transpose(1, 2)


class Packed:
    """One stack of blocks while a fast forward runs: what its attentions need to know."""

    def __init__(self) -> None:
        self.packing: Packing | None = None
        self.calls = 0
        """How often an attention of the stack was computed here."""
        self.lower: Lower | None = None
        """What its frozen blocks made of rows before, where there are some."""
        self.rows: tuple[int, ...] = ()
        """Which rows this forward reads, as `lower` counts them; none where nobody says."""
        self.is_known = False
        """Whether `lower` knows all of these."""
        self.known: dict[int, tuple[Tensor, Tensor]] = {}
        """Positions of this forward, by the identity of the tensor that was packed: it and the packed one."""


class _Pack(torch.autograd.Function):
    """Gather; its gradient is put back where it came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        """x: [B, T, ...] -> [1, N, ...]."""
        ctx.shape = x.shape[:2]
        ctx.save_for_backward(index)
        return x.flatten(0, 1).index_select(0, index).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """[1, N, ...] -> [B, T, ...]."""
        (index,) = ctx.saved_tensors
        return _spread(gradients[0], index, *ctx.shape), None


class _Unpack(torch.autograd.Function):
    """The inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, rows: int, width: int) -> Tensor:
        """x: [1, N, ...] -> [B, T, ...]."""
        ctx.save_for_backward(index)
        return _spread(x, index, rows, width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """[B, T, ...] -> [1, N, ...]."""
        (index,) = ctx.saved_tensors
        return gradients[0].flatten(0, 1).index_select(0, index).unsqueeze(0), None, None, None


def _spread(x: Tensor, index: Tensor, rows: int, width: int) -> Tensor:
    """x: [1, N, ...] -> [rows, width, ...], zero elsewhere."""
    out = x.new_zeros(rows * width, *x.shape[2:])
    return out.index_copy_(0, index, x[0]).view(rows, width, *x.shape[2:])
