"""Which tokens of a batch are text and which are padding, for deltas that average over a text.

A hook on the module that takes token ids and holds a stack's blocks keeps the attention_mask that the stack is given,
prompts that stand in the text included, for this thread's forward. It is kept beside the plan, and a block that
gradient checkpointing runs again has the mask of its first run.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from budwood.core.delta import Delta, Switch, deltas_of
from budwood.core.entrance import owner_of
from budwood.core.hooks import named, remove
from budwood.core.registry import registry_of
from budwood.errors import BadConfig, WrongOrder

_SLOT = "budwood_mask"


@dataclass
class _Ear:
    """What the hook of one stack needs to know: a plain object on the stack's module, copied and pickled with it."""

    stack: str
    switch: Switch
    arguments: tuple[str, ...]


class ReadsText(Delta):
    """A delta that asks which tokens are text.

    reading: of which stack;  none for one that does not ask
    """

    reading: str | None = None
    _ear: _Ear | None = None

    def settle(self, model: nn.Module, name: str) -> None:
        """Put the hook on the stack."""
        super().settle(model, name)
        if self.reading is not None:
            self._ear = _open(model, self.reading)

    def unsettle(self, model: nn.Module) -> None:
        """Take the hook off, once nothing else needs it."""
        super().unsettle(model)
        if self.reading is not None:
            _close(model)

    def text(self, states: Tensor) -> Tensor | None:
        """Where states [B, T, d] of the stack are text: [B, T] bool, None where all is.

        Raises WrongOrder where the stack has not run, BadConfig for masks that are not one number for each token.
        """
        assert self._ear is not None
        masks = self._ear.switch.text.masks
        if self._ear.stack not in masks:
            raise WrongOrder(
                f"an adapter averages over the text, and a block ran without its {self._ear.stack}; call the model"
            )
        mask = masks[self._ear.stack]
        if mask is None:
            return None
        if not isinstance(mask, Tensor) or mask.shape != states.shape[:2]:
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise BadConfig(
                f"an adapter averages over the text, and the attention_mask is {found} where it reads "
                f"{list(states.shape)}; give one number for each token, or use gate_over=all"
            )
        return mask.to(states.device) != 0


def _open(model: nn.Module, stack: str) -> _Ear:
    registry = registry_of(model)
    assert registry is not None
    owner = owner_of(model, registry.anatomy, stack)
    ear: _Ear | None = vars(owner).get(_SLOT)
    if ear is None:
        ear = _Ear(stack, registry.switch, tuple(inspect.signature(owner.forward).parameters))
        object.__setattr__(owner, _SLOT, ear)
        owner.register_forward_pre_hook(listen_hook, with_kwargs=True)
    return ear


def _close(model: nn.Module) -> None:
    inside = [deltas for module in model.modules() if (deltas := deltas_of(module)) is not None]
    needed = {d.reading for deltas in inside for d in deltas.children() if isinstance(d, ReadsText)}
    for module in model.modules():
        ear = vars(module).get(_SLOT)
        if ear is not None and ear.stack not in needed:
            object.__delattr__(module, _SLOT)
            remove(module, listen_hook)


def listen_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before a stack's forward: keep the mask that it is given."""
    ear: _Ear = vars(module)[_SLOT]
    given = named(ear.arguments, args, kwargs)
    ear.switch.text.masks = {**ear.switch.text.masks, ear.stack: given.get("attention_mask")}
