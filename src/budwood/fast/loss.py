"""The loss of some states without the logits of all: the head, the loss and their gradients a slice at a time.

At most one slice of positions has logits. The gradients of a slice are taken at once, while its logits are there; so
nothing is computed twice, and a plan that changes between forward and backward cannot make them another model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from budwood.errors import BadData

SLICE_BYTES = 1 << 26
"""What the float32 logits of one slice may take: wide enough for the head's product to run at full speed."""


def slice_size(vocabulary: int) -> int:
    """How many positions a slice has, for its float32 logits to stay within `SLICE_BYTES`; at least 1."""
    return max(1, SLICE_BYTES // (4 * vocabulary))


def token_loss(states: Tensor, head: Callable[[Tensor], Tensor], labels: Tensor, *, size: int | None = None) -> Tensor:
    """Cross-entropy of labels [n] given states [n, d], summed: [] float32, in nats. Other arguments: see `sliced`."""

    def summed(logits: Tensor, rows: slice) -> Tensor:
        return F.cross_entropy(logits.float(), labels[rows], reduction="sum")

    if size is None:
        with torch.no_grad():
            size = slice_size(head(states[:1]).shape[-1])
    return sliced(states, head, summed, size=size)


def sliced(
    states: Tensor, head: Callable[[Tensor], Tensor], loss: Callable[[Tensor, slice], Tensor], *, size: int
) -> Tensor:
    """The sum of the losses of slices of positions, with gradients to states and to whatever the head reads.

    states: [n, d], of positions that count
    head:   [m, d] -> [m, vocab] logits; its parameters are found in what it computes, frozen or trained, tied or not.
            What it reads that wants a gradient must be a parameter, not computed from some before
    loss:   (logits [m, vocab], which of the n rows they are) -> [], summed over them; called once for each slice
    size:   positions of a slice
    Returns [] that can be differentiated once; the same as loss(head(states), slice(0, n)) up to the order of sums.
    """
    total: Tensor | None = None
    wanted = torch.is_grad_enabled()
    gradient = torch.zeros_like(states) if wanted and states.requires_grad else None
    found: dict[Tensor, Tensor] = {}
    for start in range(0, len(states), size):
        rows = slice(start, min(start + size, len(states)))
        part = states[rows].detach().requires_grad_(gradient is not None)
        value = loss(head(part), rows)
        if value.requires_grad:
            _collect(value, part, None if gradient is None else gradient[rows], found)
        total = value.detach() if total is None else total + value.detach()
    if total is None:
        raise BadData("no position counts, so there is no loss; give rows in which something is learned")
    if gradient is not None:
        found[states] = gradient
    result: Tensor = _Known.apply(total, tuple(found.values()), *found) if found else total
    return result


def _collect(value: Tensor, part: Tensor, gradient: Tensor | None, found: dict[Tensor, Tensor]) -> None:
    """Adds a slice's gradients: into `gradient` for its states, into `found` for each leaf that it was made of."""
    leaves = [leaf for leaf in _leaves(value) if leaf is not part]
    given = [part, *leaves] if gradient is not None else leaves
    gradients = iter(torch.autograd.grad(value, given, allow_unused=True))
    if gradient is not None:
        own = next(gradients)
        if own is not None:
            gradient.copy_(own)
    for leaf, new in zip(leaves, gradients, strict=True):
        if new is not None:
            found[leaf] = found[leaf].add_(new) if leaf in found else new.clone()


def _leaves(value: Tensor) -> Iterator[Tensor]:
    """The tensors that a value was computed from and that want a gradient."""
    ahead, seen = [value.grad_fn], {value.grad_fn}
    while ahead:
        node: Any = ahead.pop()
        if node is None:
            continue
        if node.name().endswith("AccumulateGrad"):
            yield node.variable
        new = {below for below, _ in node.next_functions} - seen
        seen |= new
        ahead += new


class _Known(torch.autograd.Function):
    """A number whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *above: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(gradient * above[0].to(gradient.dtype) for gradient in ctx.gradients)
