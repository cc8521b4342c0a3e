"""Speed and memory of a run, each with how it was measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Protocol

from budwood.records.result import Memory, Speed


class Sized(Protocol):
    """What `count` needs of a tensor."""

    def numel(self) -> int:
        """Elements."""

    def element_size(self) -> int:
        """Bytes of one element."""


def count(parameters: Iterable[Sized]) -> tuple[int, int]:
    """(elements, bytes) of the parameters; one that appears twice counts once."""
    raise NotImplementedError


class MemoryMeter:
    """Peak memory of this process from the moment it was made.

    Make it after the imports and before the model is loaded: what the process holds then is the floor.
    """

    def __init__(self) -> None:
        raise NotImplementedError

    def read(self) -> Memory:
        """The peak so far."""
        raise NotImplementedError


def cuda_memory(allocated_bytes: int, reserved_bytes: int) -> Memory:
    """Peak memory as CUDA's allocator saw it (torch.cuda.max_memory_allocated / _reserved)."""
    raise NotImplementedError


class Meter:
    """Tokens per second of training steps.  On CUDA the caller synchronises before `end_step`."""

    def __init__(
        self,
        *,
        warmup_steps: int = 3,
        window_steps: int = 5,
        threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        raise NotImplementedError

    def begin_step(self) -> None:
        """The clock starts; what happens between steps (evaluation, saving) does not count."""
        raise NotImplementedError

    def end_step(self, *, tokens: int, learned: int) -> float:
        """The clock stops.  tokens: prompt and learned, without padding.  Returns the step's seconds."""
        raise NotImplementedError

    def speed(self) -> Speed | None:
        """Steady state so far; None before the first step has ended."""
        raise NotImplementedError
