"""Losses of states without their logits: the head, loss and gradients for some positions at a time (`fast.loss`).

At most one slice of positions has logits, of student and teacher; a teacher may be the same model without its adapter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from budwood.distill.losses import Loss
from budwood.errors import BadData
from budwood.fast.loss import sliced

SLICE_BYTES = 1 << 28
"""What one slice of positions may take, unless the caller says. A trained head's gradient is added up once for each
slice, so that slices of few positions take longer: a tenth at 64, a half at 32 (benchmarks/distill_loss.py)."""
LIVE = 16
"""Float32 numbers for each position and token while a slice's loss and gradient are made: 6 to 10 by the losses, and
what the allocator keeps of those before."""


def positions_within(vocabulary: int, budget: int = SLICE_BYTES) -> int:
    """How many positions a slice has, for it to stay within `budget` bytes; at least 1."""
    return max(1, budget // (4 * LIVE * vocabulary))


def chunked(
    loss: Loss,
    states: Tensor,
    head: Callable[[Tensor], Tensor],
    teacher: Tensor | Callable[[slice], Tensor],
    mask: Tensor,
    *,
    size: int | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`loss(head(states), teacher, mask, temperature=...)`, value and gradients, in slices of positions.

    loss:    any of `LOSSES`, or a `functools.partial` of one with its alpha or beta
    states:  [n, d];  head: [m, d] -> [m, vocab]
    teacher: [n, vocab] logits, or a function that gives those of some of the rows
    mask:    [n] bool
    size:    positions of a slice; None is what fits `SLICE_BYTES`
    """
    if not bool(mask.any()):
        raise BadData("no position counts, so there is no loss; give rows in which something is learned")

    def summed(logits: Tensor, rows: slice) -> Tensor:
        count = mask[rows].sum()
        if not bool(count):
            return logits.new_zeros(())
        with torch.no_grad():
            said = teacher(rows) if callable(teacher) else teacher[rows]
        return loss(logits, said, mask[rows], temperature=temperature) * count

    if size is None:
        with torch.no_grad():
            size = positions_within(head(states[:1]).shape[-1])
    return sliced(states, head, summed, size=size) / mask.sum()
