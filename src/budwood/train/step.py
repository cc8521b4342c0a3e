"""One optimizer step: the gradients of all its rows, in as many pieces as memory asks for, then the update."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from budwood.core import delta_at
from budwood.data import Batch
from budwood.errors import OutOfMemory
from budwood.train.checkpoint import Standing
from budwood.train.config import TrainConfig
from budwood.train.diverged import bad_gradient, bad_loss
from budwood.train.feed import Feed
from budwood.train.memory import is_out_of_memory
from budwood.train.objective import Objective
from budwood.train.observer import Observer
from budwood.train.randomness import random_state, restore_random_state
from budwood.train.setup import Prepared


@dataclass(frozen=True, slots=True)
class Outcome:
    """The gradients of a step are in place; this is the rest."""

    loss: float
    targets: int
    tokens: int
    pieces: int
    parts: Mapping[str, float]
    """Components of the loss, as means, where it has several."""


def gradients(
    prepared: Prepared,
    objective: Objective,
    feed: Feed,
    rows: Sequence[int],
    standing: Standing,
    observer: Observer,
) -> Outcome:
    """Forward and backward of a whole step; where memory runs out, again in twice as many pieces."""
    accelerator = prepared.accelerator
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    weight = 1.0 if mine else 0.0
    mine = mine or rows[:1]
    count = standing.pieces
    while True:
        pieces = feed.pieces(mine, count, epoch=standing.position.epoch)
        random = random_state()
        try:
            with prepared.learning():
                total, targets, parts = _accumulate(prepared, objective, pieces, weight)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        else:
            if not math.isfinite(total):
                raise bad_loss(prepared, objective, feed, rows, standing, loss=total)
            tokens = sum(len(feed.examples[row].ids) for row in rows)
            means = {name: value / targets for name, value in parts.items()}
            return Outcome(total / targets, targets, tokens, count, means)
        prepared.optimizer.zero_grad(set_to_none=True)
        restore_random_state(random)
        gc.collect()
        if prepared.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(len(piece) for piece in pieces)
        if largest == 1 or accelerator.num_processes > 1:
            raise OutOfMemory(
                f"step {standing.step + 1} does not fit in memory with {largest} rows at a time ({reason}). "
                "Set gradient_checkpointing: true, a smaller max_length, or precision: bf16"
            )
        count = len(pieces) * 2
        observer.note(
            f"step {standing.step + 1} ran out of memory with {largest} rows at a time ({reason}): from here on "
            f"a step's rows are computed in {count} pieces instead of {len(pieces)}, which changes nothing else"
        )


def _accumulate(
    prepared: Prepared, objective: Objective, pieces: Sequence[Batch], weight: float
) -> tuple[float, int, Mapping[str, float]]:
    """(summed loss, targets) of a step over all processes, its gradient divided by the targets of the whole step.

    And the components of this process' loss, summed as well.
    weight  0 where this process only lends rows that another one counts, else 1
    """
    accelerator = prepared.accelerator
    world = accelerator.num_processes
    targets = round(_sum(prepared, weight * sum(objective.targets(piece) for piece in pieces)))
    total = 0.0
    parts: dict[str, float] = {}
    for number, piece in enumerate(pieces, start=1):
        with accelerator.no_sync(prepared.trained) if number < len(pieces) else nullcontext():
            with prepared.arithmetic(), prepared.fast.reading(piece.index):
                loss = objective(prepared.trained, piece.to(prepared.device))
            total += weight * loss.total.item()
            for name, value in loss.parts.items():
                parts[name] = parts.get(name, 0.0) + value
            if not math.isfinite(total) and world == 1:
                return total, targets, parts
            accelerator.backward(loss.total * (weight * world / max(1, targets)))  # wrappers average over processes
    _pull(prepared)
    return _sum(prepared, total), max(1, targets), parts


def _pull(prepared: Prepared) -> None:
    """Add the gradient of what the method itself adds to the loss (a fusion's pull towards the identity)."""
    deltas = (delta_at(prepared.model, site, prepared.adapter.name) for site in prepared.adapter.sites)
    terms = [term for delta in deltas if (term := delta.penalty()) is not None]
    if terms:
        torch.stack(terms).sum().backward()


def update(prepared: Prepared, config: TrainConfig, factor: float, feed: Feed, rows: Sequence[int], step: int) -> float:
    """One optimizer step at `factor` of the peak rate; returns the gradient's norm before clipping."""
    parameters = list(prepared.optimized.values())
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not math.isfinite(norm.item()):
        raise bad_gradient(prepared, feed, rows, step=step, norm=norm.item())
    if config.clip:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.clip, norm)
    for group in prepared.optimizer.param_groups:
        group["lr"] = prepared.learning_rate * factor
    prepared.optimizer.step()
    if prepared.device.type == "cuda":
        torch.cuda.synchronize(prepared.device)  # the step's time is read next
    return norm.item()


def agree(prepared: Prepared, value: float) -> float:
    """The largest of what the processes say, so that all of them stop at the same step."""
    if prepared.accelerator.num_processes == 1:
        return value
    ours = torch.tensor([value], dtype=torch.float64, device=prepared.device)
    return float(prepared.accelerator.gather(ours).max())


def _sum(prepared: Prepared, value: float) -> float:
    """The sum over processes."""
    if prepared.accelerator.num_processes == 1:
        return value
    ours = torch.tensor([value], dtype=torch.float64, device=prepared.device)
    return float(prepared.accelerator.gather(ours).sum())
