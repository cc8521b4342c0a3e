"""Speed and memory of a run, each with how it was measured."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Protocol, TypeVar

import psutil

from budwood.errors import WrongOrder
from budwood.records.result import Memory, Speed

KIB = 1024
STATUS = Path("/proc/self/status")


class Sized(Protocol):
    """What `count` needs of a tensor."""

    def numel(self) -> int:
        """Elements."""

    def element_size(self) -> int:
        """Bytes of one element."""


Tensor = TypeVar("Tensor", bound=Sized)


def count(parameters: Iterable[Tensor]) -> tuple[int, int]:
    """(elements, bytes) of the parameters; one that appears twice counts once."""
    distinct = {id(parameter): parameter for parameter in parameters}.values()
    return (
        sum(parameter.numel() for parameter in distinct),
        sum(parameter.numel() * parameter.element_size() for parameter in distinct),
    )


_marks: list[int] = []
"""High-water marks of this process, in bytes, each read just before a new meter reset it."""


class MemoryMeter:
    """Peak memory of this process from the moment it was made.

    Make it after the imports and before the model is loaded: what the process holds then is the floor, which
    `read` takes off.  Files mapped into memory (safetensors) count with the pages that were touched.  Linux
    lets the high-water mark be reset; where it cannot be, it is that of the whole process and `how` says so.
    Several meters may run at a time: the mark that a new one resets is kept for the older ones.
    """

    def __init__(self) -> None:
        _marks.append(_high_water()[0])
        self._first = len(_marks)
        self._reset = _reset_high_water()
        self.floor_bytes = psutil.Process().memory_info().rss
        """Resident bytes when the meter was made."""

    def restart(self) -> None:
        """Forget the peak so far, but not the floor: what comes is measured on its own."""
        _marks.append(_high_water()[0])
        self._first = len(_marks)
        self._reset = _reset_high_water() and self._reset

    def read(self) -> Memory:
        """The peak so far."""
        mark, how = _high_water()
        high_water = max(mark, *_marks[self._first :], 0)
        return Memory(
            peak_bytes=max(0, high_water - self.floor_bytes),
            how=how if self._reset else f"{how} since the process began",
            high_water_bytes=high_water,
            floor_bytes=self.floor_bytes,
        )


def cuda_memory(allocated_bytes: int, reserved_bytes: int) -> Memory:
    """Peak memory as CUDA's allocator saw it (torch.cuda.max_memory_allocated / _reserved)."""
    return Memory(peak_bytes=allocated_bytes, how="max_memory_allocated", reserved_bytes=reserved_bytes)


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
        self._warmup, self._window = warmup_steps, window_steps
        self._threads, self._clock = threads, clock
        self._began: float | None = None
        self._steps: list[tuple[float, int, int]] = []  # (seconds, tokens, learned) of each step

    def begin_step(self) -> None:
        """The clock starts; what happens between steps (evaluation, saving) does not count."""
        self._began = self._clock()

    def end_step(self, *, tokens: int, learned: int) -> float:
        """The clock stops.  tokens: prompt and learned, without padding.  Returns the step's seconds."""
        if self._began is None:
            raise WrongOrder("end_step() without begin_step(); call begin_step() before each step")
        seconds, self._began = self._clock() - self._began, None
        self._steps.append((seconds, tokens, learned))
        return seconds

    def speed(self) -> Speed | None:
        """Steady state so far: median over windows of steps, after the warm-up; None before the first step."""
        if not self._steps:
            return None
        steady = self._steps[self._warmup :] or self._steps
        windows = [steady[i : i + self._window] for i in range(0, len(steady), self._window)]
        if len(windows) > 1 and len(windows[-1]) < self._window:
            windows.pop()
        return Speed(
            tokens_per_s=median(_rate(window, 1) for window in windows),
            learned_tokens_per_s=median(_rate(window, 2) for window in windows),
            total_s=sum(step[0] for step in self._steps),
            steps=len(self._steps),
            tokens=sum(step[1] for step in self._steps),
            learned_tokens=sum(step[2] for step in self._steps),
            how=self._how(len(windows), len(windows[0])),
            threads=self._threads,
        )

    def _how(self, windows: int, size: int) -> str:
        if len(self._steps) <= self._warmup:
            return f"mean of all {len(self._steps)} steps, warm-up included"
        return f"median of {windows} windows of {size} steps after {self._warmup} warm-up steps"


def _rate(window: list[tuple[float, int, int]], column: int) -> float:
    """Sum of a column for each second of a window; 0 where the clock did not move."""
    seconds = sum(step[0] for step in window)
    return sum(step[column] for step in window) / seconds if seconds > 0 else 0.0


def _reset_high_water() -> bool:
    """Ask Linux to start VmHWM again from now; False where that is not to be had."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _high_water() -> tuple[int, str]:
    """(bytes, how): the most resident memory this process has held."""

    if STATUS.exists():
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * KIB, "VmHWM"
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset), "peak_wset"
    import resource

    unit = 1 if platform.system() == "Darwin" else KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "ru_maxrss"
