"""Gradient checkpointing recomputes a block under the plan that its forward ran with, whatever is active by then.

transformers hands each block's forward to `module._gradient_checkpointing_func`. On the user's instance we put a
`Replaying` around that function; it remembers the plan and re-enters it whenever the block is run again. Works for
reentrant and non-reentrant checkpointing, and does nothing for a model that does not checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from budwood.core.delta import Switch
from budwood.core.hooks import remove
from budwood.core.plan import Plan

_SLOT = "_gradient_checkpointing_func"


class _Replay:
    """A block's forward, tied to the plan and the attention masks of its first run."""

    def __init__(self, function: Callable[..., Any], switch: Switch, plan: Plan) -> None:
        self.function, self.switch, self.plan, self.masks = function, switch, plan, switch.text.masks

    def __call__(self, *args: Any) -> Any:
        text = self.switch.text
        current, self.switch.plan = self.switch.plan, self.plan
        masks, text.masks = text.masks, self.masks
        try:
            return self.function(*args)
        finally:
            self.switch.plan, text.masks = current, masks
            self.switch.forget()  # a recomputation stops at the last tensor that is needed, often before h is complete


class Replaying:
    """A checkpoint function whose recomputation re-enters the plan of its forward."""

    def __init__(self, checkpoint: Callable[..., Any], switch: Switch) -> None:
        self.checkpoint, self.switch = checkpoint, switch

    def __call__(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run `function(*args)` under the checkpoint function, tied to the plan now in force."""
        return self.checkpoint(_Replay(function, self.switch, self.switch.plan), *args)


def watch_hook(model: nn.Module, args: tuple[Any, ...]) -> None:
    """The model-level pre-hook: before a forward that will be recomputed, make the recomputation remember its plan.

    What a forward that failed has left goes first: it holds that forward's graph, when memory ran out of all times.
    """
    if torch.compiler.is_compiling():
        return
    switch = vars(model)["budwood"].switch
    switch.forget()
    if not (model.training and torch.is_grad_enabled()):
        return
    for module in model.modules():
        checkpoint = vars(module).get(_SLOT)
        if checkpoint is not None and not isinstance(checkpoint, Replaying):
            setattr(module, _SLOT, Replaying(checkpoint, switch))


def watch(model: nn.Module) -> None:
    """Register the model-level pre-hook."""
    model.register_forward_pre_hook(watch_hook)


def unwatch(model: nn.Module) -> None:
    """Remove the pre-hook and give every block its own checkpoint function back."""
    remove(model, watch_hook)
    for module in model.modules():
        checkpoint = vars(module).get(_SLOT)
        if isinstance(checkpoint, Replaying):
            setattr(module, _SLOT, checkpoint.checkpoint)
