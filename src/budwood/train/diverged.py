"""Finding what made a loss or a gradient stop being a number: the rows, and the first module that shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from budwood.data import Batch
from budwood.errors import Diverged
from budwood.train.checkpoint import Standing
from budwood.train.feed import Feed
from budwood.train.objective import Objective
from budwood.train.setup import Prepared


def bad_loss(
    prepared: Prepared, objective: Objective, feed: Feed, indices: Sequence[int], standing: Standing, *, loss: float
) -> Diverged:
    """The error for a step whose loss is `loss`: each of its rows is tried alone to name the guilty ones."""
    guilty: list[int] = []
    place: str | None = None
    for index in indices:
        batch = feed.batch([index], epoch=standing.position.epoch).to(prepared.device)
        value, module = _trial(prepared, objective, batch)
        if not math.isfinite(value):
            guilty.append(index)
            place = place or module
    rows = _rows(feed, guilty or list(indices))
    where = f", first in the output of {place}" if place else ""
    together = "" if guilty else " (each alone is fine: only the sum is not)"
    return Diverged(
        f"the loss of step {standing.step + 1} is {loss}{where}. Rows: {rows}{together}. {_advice(prepared)}"
    )


def bad_gradient(prepared: Prepared, feed: Feed, indices: Sequence[int], *, step: int, norm: float) -> Diverged:
    """The error for a step whose gradient's norm is `norm`, naming the first tensor that is not finite."""
    names = (n for n, p in prepared.parameters.items() if p.grad is not None and not _finite(p.grad))
    place = next(names, "the sum of all gradients")
    return Diverged(
        f"the gradient of step {step} is {norm}, first at {place}. Rows: {_rows(feed, indices)}. {_advice(prepared)}"
    )


def _trial(prepared: Prepared, objective: Objective, batch: Batch) -> tuple[float, str | None]:
    """The loss of one batch without gradients, and the first module whose output is not finite."""
    found: list[str] = []
    handles: list[RemovableHandle] = []

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not found and isinstance(tensor, Tensor) and tensor.is_floating_point() and not _finite(tensor):
                found.append(name)

        return listen

    for name, module in prepared.model.named_modules():
        if not any(True for _ in module.children()) or "deltas" in module._modules:
            handles.append(module.register_forward_hook(listener(name)))
    try:
        with torch.no_grad(), prepared.arithmetic():
            return objective(prepared.model, batch).total.item(), next(iter(found), None)
    finally:
        for handle in handles:
            handle.remove()


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _rows(feed: Feed, indices: Sequence[int]) -> str:
    shown = "; ".join(feed.where(feed.examples[index].row) for index in indices[:8])
    return shown + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def _advice(prepared: Prepared) -> str:
    lower = prepared.learning_rate / 4
    return (
        "Nothing was changed by this step. "
        f"Take the rows out if they are odd, or lower the learning rate (learning_rate: {lower:g})"
    )
