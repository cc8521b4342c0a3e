from __future__ import annotations

import mmap
from itertools import count as numbers
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from budwood.errors import WrongOrder
from budwood.records import MemoryMeter, Meter, count, cuda_memory
from budwood.records import meter as meter_module

MIB = 1 << 20


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(meter: Meter, clock: Clock, seconds: list[float], tokens: int = 100, learned: int = 25) -> None:
    for second in seconds:
        clock.now += 50.0  # evaluation and saving between steps
        meter.begin_step()
        clock.now += second
        meter.end_step(tokens=tokens, learned=learned)


def test_steady_state_leaves_out_warm_up_and_pauses() -> None:
    clock = Clock()
    meter = Meter(warmup_steps=2, window_steps=2, threads=3, clock=clock)
    assert meter.speed() is None
    run(meter, clock, [40.0, 20.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 90.0])
    speed = meter.speed()
    assert speed is not None
    assert speed.tokens_per_s == pytest.approx(50.0)  # median of 100, 50, 25; the half window is left out
    assert speed.learned_tokens_per_s == pytest.approx(12.5)
    assert speed.total_s == pytest.approx(164.0)
    assert (speed.steps, speed.tokens, speed.learned_tokens, speed.threads) == (9, 900, 225, 3)
    assert speed.how == "median of 3 windows of 2 steps after 2 warm-up steps"


def test_a_run_shorter_than_its_warm_up_says_so() -> None:
    clock = Clock()
    meter = Meter(warmup_steps=3, clock=clock)
    run(meter, clock, [1.0, 3.0])
    speed = meter.speed()
    assert speed is not None and speed.tokens_per_s == pytest.approx(50.0)
    assert speed.how == "mean of all 2 steps, warm-up included"


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=40), st.integers(0, 5), st.integers(1, 7))
def test_steady_state_lies_between_the_fastest_and_the_slowest_step(
    seconds: list[float], warmup: int, window: int
) -> None:
    clock = Clock()
    meter = Meter(warmup_steps=warmup, window_steps=window, clock=clock)
    run(meter, clock, seconds)
    speed = meter.speed()
    assert speed is not None
    assert 100 / max(seconds) * 0.999 <= speed.tokens_per_s <= 100 / min(seconds) * 1.001
    assert speed.total_s == pytest.approx(sum(seconds))


def test_ending_what_did_not_begin() -> None:
    with pytest.raises(WrongOrder, match="begin_step"):
        Meter().end_step(tokens=1, learned=1)


def resident(mib: int) -> mmap.mmap:
    """Pages of our own: an allocator may hand out what it kept from earlier tests."""
    pages = mmap.mmap(-1, mib * MIB)
    for start in range(0, len(pages), mmap.PAGESIZE):
        pages[start] = 1
    return pages


def test_memory_is_counted_from_where_the_meter_was_made() -> None:
    resident(96).close()
    meter = MemoryMeter()
    held = resident(64)
    memory = meter.read()
    held.close()
    assert memory.how.startswith(("VmHWM", "ru_maxrss"))
    assert memory.floor_bytes is not None and memory.high_water_bytes is not None
    assert memory.peak_bytes == memory.high_water_bytes - memory.floor_bytes
    if memory.how == "VmHWM":
        assert 60 * MIB < memory.peak_bytes < 90 * MIB
    # still the peak after the bytes are given back (the kernel counts in batches of pages)
    assert meter.read().peak_bytes >= memory.peak_bytes - MIB


def test_a_second_meter_does_not_take_the_peak_from_the_first() -> None:
    first = MemoryMeter()
    resident(64).close()
    before = first.read()
    second = MemoryMeter()
    assert first.read().peak_bytes >= before.peak_bytes - MIB
    if before.how == "VmHWM":
        assert second.read().peak_bytes < 32 * MIB < first.read().peak_bytes


def test_without_a_reset_the_record_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "_reset_high_water", lambda: False)
    assert MemoryMeter().read().how == "VmHWM since the process began"


def test_without_proc_the_resource_usage_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter_module, "STATUS", Path("/none"))
    memory = MemoryMeter().read()
    assert memory.how.startswith("ru_maxrss") and (memory.high_water_bytes or 0) > 10 * MIB


def test_cuda_memory() -> None:
    memory = cuda_memory(3, 5)
    assert (memory.peak_bytes, memory.reserved_bytes, memory.how) == (3, 5, "max_memory_allocated")


def test_shared_parameters_count_once() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4).to(torch.bfloat16))
    weight = model[0].weight
    assert count([*model.parameters(), weight]) == (16 + 20, 64 + 40)
    assert count(iter([])) == (0, 0)


def test_the_default_clock_moves() -> None:
    meter = Meter(warmup_steps=0)
    for _ in zip(range(3), numbers(), strict=False):
        meter.begin_step()
        assert meter.end_step(tokens=5, learned=1) >= 0.0
    speed = meter.speed()
    assert speed is not None and speed.steps == 3
