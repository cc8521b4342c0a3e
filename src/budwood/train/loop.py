"""`fit`: the training loop, on one screen and a half."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from budwood.errors import BudwoodError, OutOfMemory
from budwood.records import Meter, Score, Speed
from budwood.train.checkpoint import Standing, save_state
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.interrupt import Interrupted, stop_requests
from budwood.train.objective import Objective
from budwood.train.observer import Observer, Silent, StepPoint
from budwood.train.proof import Ledger
from budwood.train.randomness import same_randomness, seed_everything
from budwood.train.schedule import progress, rate_factor
from budwood.train.setup import Prepared
from budwood.train.step import agree, gradients, update

VALIDATIONS = 4
"""Validations in a run whose config does not say."""


@dataclass(frozen=True, kw_only=True)
class Saving:
    """Where a run's state goes, and what a resumed run must have in common with it."""

    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    resume_command: str | None = None
    """What to type to go on after a stop."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """How a run ended."""

    standing: Standing
    speed: Speed | None
    """Of the steps taken here; None if a resumed run had none left."""


def fit(
    prepared: Prepared,
    objective: Objective,
    feed: Feed,
    config: TrainConfig,
    *,
    start: Standing | None = None,
    saving: Saving | None = None,
    validate: Callable[[], Sequence[Score]] | None = None,
    ledger: Ledger | None = None,
    observer: Observer | None = None,
) -> Fitted:
    """Train until the budget is spent.

    start     where a resumed run stands (`load_state`); None begins
    validate  scores the held-out rows; it cannot change what is drawn afterwards
    ledger    proves after the first steps that what should move did
    Raises    Diverged (exit 6), OutOfMemory (5), VerificationFailed (7); Interrupted after Ctrl-C or SIGTERM,
              when the step is finished and the state saved
    """
    observer = observer or Silent()
    standing = start or Standing(pieces=config.accumulate)
    if standing.step == 0:
        seed_everything(config.seed)
    budget, total = config.parsed_budget, feed.steps_of(config.parsed_budget)
    meter = Meter(threads=torch.get_num_threads())
    share = progress(budget, total, standing.step, standing.seconds)
    saved_at = time.monotonic()
    prepared.trained.train()
    with stop_requests() as stop:
        for position, rows in feed.steps(standing.position):
            if share >= 1.0:
                break
            meter.begin_step()
            try:
                outcome = gradients(prepared, objective, feed, rows, standing, observer)
            except OutOfMemory:
                _save(prepared, standing, saving)
                raise
            factor = rate_factor(config, share, standing.step, total)
            norm = update(prepared, config, factor, feed, rows, standing.step + 1)
            seconds = meter.end_step(tokens=outcome.tokens, learned=outcome.targets)
            if ledger is not None:
                ledger.after_step(standing.step + 1, rows)
            prepared.optimizer.zero_grad(set_to_none=True)
            standing = replace(
                standing,
                step=standing.step + 1,
                position=position,
                seconds=standing.seconds + seconds,
                pieces=outcome.pieces,
                tokens=standing.tokens + outcome.tokens,
                learned_tokens=standing.learned_tokens + outcome.targets,
            )
            before, share = share, agree(prepared, progress(budget, total, standing.step, standing.seconds))
            observer.step(
                StepPoint(
                    step=standing.step,
                    total_steps=total,
                    progress=share,
                    epoch=position.epoch + position.batch / feed.steps_per_epoch,
                    loss=outcome.loss,
                    learning_rate=prepared.learning_rate * factor,
                    grad_norm=norm,
                    tokens=outcome.tokens,
                    learned_tokens=outcome.targets,
                    seconds=seconds,
                    elapsed_s=standing.seconds,
                    parts=outcome.parts,
                )
            )
            if validate is not None and _validation_due(config, standing.step, before, share):
                with same_randomness(), prepared.arithmetic():
                    observer.validation(standing.step, validate())
            stopped_by = int(agree(prepared, stop.signum or 0))
            if stopped_by:
                _save(prepared, standing, saving)
                raise _stopped(stopped_by, standing, saving)
            if config.save_every and time.monotonic() - saved_at >= config.save_every:
                _save_or_tell(prepared, standing, saving, observer)
                saved_at = time.monotonic()
    _save(prepared, standing, saving)
    prepared.trained.eval()
    return Fitted(standing=standing, speed=meter.speed())


def _validation_due(config: TrainConfig, step: int, before: float, share: float) -> bool:
    """Whether to validate between this step and the next; the end of a run is validated by whoever called."""
    if share >= 1.0:
        return False
    if config.eval_every is None:
        return math.floor(share * VALIDATIONS) > math.floor(before * VALIDATIONS)
    return config.eval_every > 0 and step % config.eval_every == 0


def _stopped(signum: int, standing: Standing, saving: Saving | None) -> Interrupted:
    state, command = (saving.folder, saving.resume_command) if saving else (None, None)
    return Interrupted(signum=signum, step=standing.step, state=state, resume_command=command)


def _save(prepared: Prepared, standing: Standing, saving: Saving | None) -> None:
    if saving is not None and prepared.accelerator.is_main_process:
        save_state(saving.folder, prepared, standing, identity=saving.identity)


def _save_or_tell(prepared: Prepared, standing: Standing, saving: Saving | None, observer: Observer) -> None:
    """A save in passing: where the disk is full the run goes on, and says so."""
    try:
        _save(prepared, standing, saving)
    except BudwoodError as error:
        observer.note(f"step {standing.step} could not be saved, the state saved before is kept: {error}")
