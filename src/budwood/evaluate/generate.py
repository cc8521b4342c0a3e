"""Answers to prompts, in batches: left padded, greedy or sampled, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

Prompt: TypeAlias = str | Sequence[Mapping[str, str]]
"""Text that goes to the model as it is, or messages that go through the chat template."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw; each row has a random stream of its own, so that its answer does not hang on the batch."""

    temperature: float = 1.0
    """Logits are divided by it; above 0."""
    top_p: float = 1.0
    """Smallest set of tokens that holds this probability, in (0, 1]."""
    top_k: int = 0
    """The most likely tokens that stay; 0 keeps all."""
    seed: int = 0
    """Of the random streams."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer."""

    text: str
    """Without special tokens."""
    ids: tuple[int, ...]
    """The new tokens, without the stop token."""
    stopped: bool
    """Whether the model ended it with a stop token; False if `max_new_tokens` did."""


def complete(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    batch_size: int = 8,
) -> list[Generation]:
    """Answers in the order of the prompts; greedy without `sampling`.

    Raises BadData for an empty prompt or one that does not fit the model's context, with its number.
    """
    raise NotImplementedError


def generate(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    batch_size: int = 8,
) -> list[str]:
    """The texts of `complete`."""
    raise NotImplementedError
