"""The learning rate where nobody says one: a few steps at each that the method names, and the best of them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice

import torch

from budwood.core import Method
from budwood.data import Batch, Example, Position, collate
from budwood.errors import Diverged
from budwood.records import RateProbe, RateTrial
from budwood.train.checkpoint import Standing
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.material import spread
from budwood.train.objective import Objective
from budwood.train.observer import Silent
from budwood.train.probe import same_modes
from budwood.train.randomness import same_randomness, seed_everything
from budwood.train.setup import Prepared, build_optimizer, decay_of
from budwood.train.step import agree, gradients, update

MOST_SHARE = 0.1
"""Share of a run's steps that trying may cost."""
FEW = 40
"""Steps that trying may cost where that share is less."""
FEWEST = 4
"""Steps at one rate that say anything about it."""
WARM = 2
"""Steps of warm-up at each rate."""
CLEAR = 0.005
"""Share of the loss at the start that the best rate has to take off it, or the trials say nothing."""
SCORED = 64
"""Most rows that rates are compared on."""


@dataclass(frozen=True, kw_only=True)
class RatePlan:
    """What is to be tried."""

    rates: tuple[float, ...]
    """Learning rates, the lowest first."""
    steps: int
    """Optimizer steps at each."""

    def __str__(self) -> str:
        return f"the best of {', '.join(f'{rate:g}' for rate in self.rates)} after {self.steps} steps each"


def plan_rates(method: Method, config: TrainConfig, *, total_steps: float) -> RatePlan | None:
    """What to try before a run of about `total_steps`; None where a rate is said, nothing is named, or it is too short.

    All trials together cost at most a tenth of the run's steps, or 40, whichever is more, and each a quarter of them;
    where the config names the rates, each a quarter of the run's steps.
    """
    rates = config.rates_given or method.rates_to_try
    if config.learning_rate is not None or len(rates) < 2:
        return None
    share = total_steps if config.rates_given else max(MOST_SHARE * total_steps, FEW) / len(rates)
    steps = int(min(config.rate_steps, share, total_steps / 4))
    return RatePlan(rates=rates, steps=steps) if steps >= FEWEST else None


def try_rates(
    prepared: Prepared,
    objective: Objective,
    feed: Feed,
    config: TrainConfig,
    plan: RatePlan,
    *,
    held: Sequence[Example] = (),
    start: Standing | None = None,
) -> RateProbe:
    """The first steps of the run at each rate, compared; to be called before `fit`, and everything is as before.

    The best wins if it is clearly below the loss of the start; else its own rate (`prepared.learning_rate`) is kept,
    because rates that learned nothing yet are ordered by chance, and the lowest of them has done the least harm.

    held     rows that are not trained on; without them, training rows that the steps do not see
    start    where the run begins (`fit`)
    Raises   Diverged if no rate gets through, OutOfMemory as a step does
    """
    began = time.perf_counter()
    standing = start or Standing(pieces=config.accumulate)
    scored, what = _scored(feed, config, plan, held, standing.pieces)
    trials = []
    with same_randomness(), same_modes(prepared.model):
        with _same_tensors(prepared):
            before = _score(prepared, objective, scored)
        for rate in plan.rates:
            with _same_tensors(prepared):
                trials.append(_trial(prepared, objective, feed, config, plan, rate, standing, scored))
    losses = [(trial.loss, trial.rate) for trial in trials if trial.loss is not None]
    if not losses:
        tried = ", ".join(f"{trial.rate:g}" for trial in trials)
        first = f"at {trials[0].rate:g}, {trials[0].error}"
        raise Diverged(f"none of the learning rates {tried} gets through {plan.steps} steps: {first}")
    lowest, best = min(losses)
    safe = prepared.learning_rate < min((t.rate for t in trials if t.loss is None), default=math.inf)
    is_clear = not safe or not lowest > (1 - CLEAR) * before
    return RateProbe(
        rate=best if is_clear else prepared.learning_rate,
        before=before,
        is_clear=is_clear,
        trials=tuple(trials),
        steps=plan.steps,
        scored=what,
        seconds=time.perf_counter() - began,
    )


def _trial(
    prepared: Prepared,
    objective: Objective,
    feed: Feed,
    config: TrainConfig,
    plan: RatePlan,
    rate: float,
    standing: Standing,
    scored: Sequence[Batch],
) -> RateTrial:
    """The run's own first steps at a constant rate, with an optimizer of their own."""
    optimizer = build_optimizer(prepared.optimized, rate, decay_of(prepared.adapter.method, config))
    trial = replace(prepared, learning_rate=rate, optimizer=optimizer)
    seed_everything(config.seed)
    prepared.trained.train()
    try:
        for position, rows in islice(feed.steps(standing.position), plan.steps):
            outcome = gradients(trial, objective, feed, rows, standing, Silent())
            update(trial, config, min(1.0, (standing.step + 1) / (WARM + 1)), feed, rows, standing.step + 1)
            optimizer.zero_grad(set_to_none=True)
            standing = replace(standing, step=standing.step + 1, position=position, pieces=outcome.pieces)
    except Diverged as error:
        return RateTrial(rate=rate, loss=None, error=str(error))
    finally:
        optimizer.zero_grad(set_to_none=True)
    loss = _score(prepared, objective, scored)
    if not math.isfinite(loss):
        lower = f"the loss of held-out rows is {loss} afterwards. Say a lower one (learning_rate: {rate / 4:g})"
        return RateTrial(rate=rate, loss=None, error=lower)
    return RateTrial(rate=rate, loss=loss)


def _score(prepared: Prepared, objective: Objective, batches: Sequence[Batch]) -> float:
    """Mean loss over the targets; every process computes all of it, and the largest counts."""
    prepared.trained.eval()
    with torch.no_grad(), prepared.arithmetic():
        found = [objective(prepared.model, batch.to(prepared.device)) for batch in batches]
    loss = sum(part.total.item() for part in found) / max(1, sum(part.tokens for part in found))
    return agree(prepared, loss if math.isfinite(loss) else math.inf)


def _scored(
    feed: Feed, config: TrainConfig, plan: RatePlan, held: Sequence[Example], pieces: int
) -> tuple[list[Batch], str]:
    """The batches that rates are compared on, and what they are."""
    size = max(1, config.batch // pieces)
    if held:
        examples = sorted(spread(held, SCORED), key=lambda example: -example.size)
        batches = [collate(examples[at : at + size], feed.pad_id) for at in range(0, len(examples), size)]
        return batches, f"{len(examples)} validation rows"
    seen = {row for _, rows in islice(feed.steps(Position()), plan.steps) for row in rows}
    others = [row for row in range(len(feed.examples)) if row not in seen]
    chosen = sorted(spread(others or sorted(seen), SCORED), key=lambda row: -feed.examples[row].size)
    batches = [feed.batch(chosen[at : at + size]) for at in range(0, len(chosen), size)]
    return batches, f"{len(chosen)} training rows{' that the steps did not see' if others else ''}"


@contextmanager
def _same_tensors(prepared: Prepared) -> Iterator[None]:
    """Trained parameters and buffers are afterwards what they were, bit for bit."""
    tensors = [parameter.detach() for parameter in prepared.optimized.values()]
    tensors += list(prepared.model.buffers())
    before = [tensor.clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
