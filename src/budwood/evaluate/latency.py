"""How long a model takes to read a prompt and to write a token."""

from __future__ import annotations

from torch import nn

from budwood.records import Timing


def latency(
    model: nn.Module,
    *,
    batch: int = 1,
    prompt_tokens: int = 64,
    new_tokens: int = 16,
    repeats: int = 5,
    warmup: int = 1,
) -> Timing:
    """Median times with the adapters as they are now.  A model that does not generate gets no per-token time."""
    raise NotImplementedError
