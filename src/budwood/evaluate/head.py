"""The output embedding by itself: hidden states of a forward without its logits, then logits where they are wanted.

The model's own forward runs, with every hook on it, so that adapters and soft prompts act as they always do.  Only
the output embedding is handed one position instead of all of them; what it would have been handed is kept.  Its
module, with the adapters on it, is then called on chosen positions, and what the model does to logits after it (a
scale, a soft cap: both from the configuration) is repeated.  Every forward shows whether that is all the model
does: the logits of the one position, from the model and from here, must be the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from budwood.evaluate.inputs import bare


@dataclass(frozen=True)
class Tail:
    """What a model does to the logits that its output embedding returns."""

    scale: float
    """They are multiplied by it."""
    divisor: float
    """They are divided by it."""
    cap: float | None
    """Then cap * tanh(logits / cap)."""

    def __call__(self, logits: Tensor) -> Tensor:
        """[*, vocab] -> [*, vocab], in the dtype it comes in, as models do it."""
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.divisor != 1.0:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


@dataclass(frozen=True)
class Captured:
    """What one forward gave: the states that the output embedding would have read, and how to go on from them."""

    hidden: Tensor
    """[batch, length', hidden]; length' is longer than the input where a soft prompt stands in front."""
    autocast: tuple[str, torch.dtype] | None
    """Device type and dtype of the autocast in force at the output embedding."""

    @property
    def is_exact(self) -> bool:
        """Whether the states came out of, and go on in, float32."""
        return self.autocast is None and self.hidden.dtype == torch.float32


class Head:
    """The output embedding of a model and what comes after it."""

    def __init__(self, model: Any, module: nn.Module) -> None:
        self.model, self.module = model, module
        self.tail = _tail(bare(model).config.get_text_config().to_dict())

    def capture(self, inputs: Mapping[str, Tensor]) -> Captured | None:
        """Run the model but for its logits.  None if it does more after the output embedding than is known here."""
        caught: list[Captured] = []

        def shorten(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            device = args[0].device.type
            autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
            caught.append(Captured(args[0], autocast))
            return (args[0][:, :1], *args[1:])

        handle = self.module.register_forward_pre_hook(shorten, prepend=True)
        try:
            logits = self.model(**inputs, **without_cache(self.model)).logits  # [batch, 1, vocab]
        finally:
            handle.remove()
        if len(caught) != 1 or caught[0].hidden.ndim != 3:
            return None
        with torch.no_grad():
            own, logits = self.logits(caught[0], caught[0].hidden[:, :1]), logits.detach()
        if own.shape != logits.shape or not _same(own, logits):
            return None
        return caught[0]

    def logits(self, captured: Captured, hidden: Tensor) -> Tensor:
        """[*, hidden] -> [*, vocab], as the model would."""
        with _autocast(captured.autocast):
            return self.tail(self.module(hidden))


def head_of(model: Any) -> Head | None:
    """The head of a language model; None where the model declares no output embedding."""
    module = bare(model).get_output_embeddings()
    return None if module is None else Head(model, module)


def without_cache(model: Any) -> dict[str, bool]:
    """{"use_cache": False} for models whose forward takes it: a single forward needs no keys and values kept."""
    return {"use_cache": False} if "use_cache" in inspect.signature(bare(model).forward).parameters else {}


def _tail(config: Mapping[str, Any]) -> Tail:
    """From the names that configurations have for it: Cohere and Falcon-H1, Granite, Gemma."""
    return Tail(
        scale=float(config.get("logit_scale") or config.get("lm_head_multiplier") or 1.0),
        divisor=float(config.get("logits_scaling") or 1.0),
        cap=config.get("final_logit_softcapping"),
    )


def _same(own: Tensor, logits: Tensor) -> bool:
    """Equal but for rounding in the narrower of the two dtypes."""
    exact = own.dtype == logits.dtype == torch.float32
    tolerance = 1e-5 if exact else 1e-2
    own, logits = own.float(), logits.float()
    if not (own.isfinite().all() and logits.isfinite().all()):
        return False
    return torch.allclose(own, logits, rtol=tolerance, atol=tolerance * float(logits.abs().max().clamp(min=1e-6)))


def _autocast(settings: tuple[str, torch.dtype] | None) -> AbstractContextManager[Any]:
    if settings is None:
        return nullcontext()
    device, dtype = settings
    return torch.autocast(device, dtype=dtype)
