"""What a run will need, from a few steps on its longest rows that leave no trace."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from budwood.errors import OutOfMemory
from budwood.records import MemoryMeter, count
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.memory import available_bytes, human_bytes, is_out_of_memory
from budwood.train.objective import Objective
from budwood.train.randomness import same_randomness
from budwood.train.setup import Prepared

MARGIN = 0.95
"""Share of the available memory that a run may be expected to need."""

ADAM_COPIES = 2
"""AdamW keeps two numbers for each that it trains."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What steps cost, measured."""

    pieces: int
    """Pieces that a step's rows have to be computed in to fit; the config's, or more."""
    step_bytes: int
    """Memory that the largest step takes on top of what is there now, optimizer state included."""
    available_bytes: int
    """Memory that there still was before the first step."""
    step_s: float
    """Seconds for a step of ordinary length."""
    longest_tokens: int
    """Tokens of the longest row."""


def probe(prepared: Prepared, objective: Objective, feed: Feed, config: TrainConfig) -> Forecast:
    """Measure forwards and backwards on the longest rows and on ordinary ones; model and generators are as before.

    Memory is first measured on one row and scaled, so that a step that cannot fit is never tried.
    Raises OutOfMemory, with what would make it fit, if not even one row does.
    """
    optimizer_bytes = ADAM_COPIES * count(prepared.parameters.values())[1]
    available = available_bytes(prepared.device)
    room = int(available * MARGIN) - optimizer_bytes
    with same_modes(prepared.model), same_randomness():
        prepared.trained.train()
        peak = _peak(prepared.device)
        fits = _tried(prepared, objective, feed, 1) is not None and peak() <= room
        if not fits:
            raise OutOfMemory(_does_not_fit(prepared, feed, config, peak() + optimizer_bytes, available))
        rows = min(-(-config.batch // config.accumulate), len(feed.examples))
        rows, seconds = _rows_that_fit(prepared, objective, feed, rows, room, peak)
    tokens = sum(feed.examples[index].size for index in feed.longest(rows))
    return Forecast(
        pieces=config.accumulate if rows * config.accumulate >= config.batch else -(-config.batch // rows),
        step_bytes=peak() + optimizer_bytes,
        available_bytes=available,
        step_s=seconds / tokens * _mean_step_tokens(feed, config.batch),
        longest_tokens=feed.examples[feed.longest(1)[0]].size,
    )


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Every module trains or evaluates afterwards as it did before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _rows_that_fit(
    prepared: Prepared, objective: Objective, feed: Feed, rows: int, room: int, peak: Callable[[], int]
) -> tuple[int, float]:
    """(rows, seconds) of the largest piece, of up to `rows`, that fits; one row is known to."""
    one = peak()
    if rows > 2 and _tried(prepared, objective, feed, 2) is not None:
        each = max(1, peak() - one)  # two rows against one say what each row adds
        rows = max(1, min(rows, 1 + (room - one) // each))
    while (seconds := _tried(prepared, objective, feed, rows)) is None and rows > 1:
        rows //= 2
    return rows, seconds or 0.0


def _tried(prepared: Prepared, objective: Objective, feed: Feed, rows: int) -> float | None:
    """Seconds of a forward and backward of the longest rows; None where memory ran out. Gradients are thrown away."""
    batch = feed.batch(feed.longest(rows)).to(prepared.device)
    began = time.perf_counter()
    try:
        with prepared.learning():
            with prepared.arithmetic():
                loss = objective(prepared.trained, batch)
            prepared.accelerator.backward(loss.total / max(1, loss.tokens))
        if prepared.device.type == "cuda":
            torch.cuda.synchronize(prepared.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        prepared.optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - began


def _peak(device: torch.device) -> Callable[[], int]:
    """A function that says the most memory held on the device since now, on top of what is held now."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        return lambda: torch.cuda.max_memory_allocated(device) - before
    meter = MemoryMeter()
    return lambda: meter.read().peak_bytes


def _mean_step_tokens(feed: Feed, batch: int) -> float:
    lengths = [example.size for example in feed.examples]
    return sum(lengths) / len(lengths) * min(batch, len(lengths))


def _does_not_fit(prepared: Prepared, feed: Feed, config: TrainConfig, needed: float, room: float) -> str:
    """The message, with the changes that would make it fit, the cheapest first."""
    longest = feed.examples[feed.longest(1)[0]].size
    ways = []
    if prepared.compute == torch.float32:
        ways.append("precision: bf16 (half the memory of products)")
    if not config.gradient_checkpointing and prepared.model.supports_gradient_checkpointing:
        ways.append("gradient_checkpointing: true (activations of one block at a time)")
    ways.append(f"max_length: {max(2, longest // 2)} (the longest row has {longest} tokens)")
    ways.append("a smaller model")
    return (
        f"one row of {longest} tokens needs {human_bytes(needed)} for a step and {human_bytes(room)} are available. "
        f"Cheapest first: {'; '.join(ways)}"
    )
