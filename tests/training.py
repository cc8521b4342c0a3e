"""A tiny model, rows for it and everything `fit` needs: what the tests of training run on."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from budwood.core import Method
from budwood.data import IGNORE, Example
from budwood.methods import LoRA
from budwood.train.checkpoint import Standing, load_state
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.loop import Fitted, Saving, fit
from budwood.train.objective import CausalLM, Classify, Objective
from budwood.train.observer import Silent, StepPoint
from budwood.train.proof import Ledger
from budwood.train.setup import Prepared, prepare
from families import FAMILIES

PAD = 1


def rows(count: int = 20, *, seed: int = 0, longest: int = 14) -> list[Example]:
    """Rows of different lengths whose second half is learned: a word and then the word after it."""
    dice = random.Random(seed)
    made = []
    for row in range(count):
        start, length = dice.randrange(4, 90), dice.randrange(4, longest)
        ids = [4 + (start + 3 * place) % 88 for place in range(length)]
        labels = [IGNORE] * (length // 2) + ids[length // 2 :]
        made.append(Example(ids=ids, labels=labels, row=row))
    return made


def labelled(count: int = 20, *, classes: int = 3, seed: int = 0) -> list[Example]:
    """Rows whose class is told by their first token."""
    dice = random.Random(seed)
    made = []
    for row in range(count):
        label = dice.randrange(classes)
        ids = [10 + label, *(dice.randrange(20, 90) for _ in range(dice.randrange(3, 9)))]
        made.append(Example(ids=ids, label=label, row=row))
    return made


def config(**values: Any) -> TrainConfig:
    """Small, exact and quick unless told otherwise."""
    plain: dict[str, Any] = {"budget": "6steps", "batch": 4, "precision": "exact", "device": "cpu", "save_every": 0}
    return TrainConfig(**{**plain, "learning_rate": 1e-2, **values})


def tiny(family: str = "llama", **settings: Any) -> PreTrainedModel:
    """A fresh tiny model; settings change attributes of its configuration before the first forward."""
    model = FAMILIES[family].build()
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.config.pad_token_id = PAD
    return model


@dataclass
class Recorded(Silent):
    """Keeps what it is told."""

    points: list[StepPoint] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(self, point: StepPoint) -> None:
        self.points.append(point)

    def note(self, text: str) -> None:
        self.notes.append(text)

    @property
    def losses(self) -> list[float]:
        return [point.loss for point in self.points]


class StopAt(Silent):
    """A signal after some step; Ctrl-C unless told otherwise."""

    def __init__(self, step: int, number: int = signal.SIGINT) -> None:
        self.at, self.number = step, number

    def step(self, point: StepPoint) -> None:
        if point.step == self.at:
            os.kill(os.getpid(), self.number)


@dataclass
class Job:
    """One run in the making."""

    prepared: Prepared
    feed: Feed
    config: TrainConfig
    objective: Objective = field(default_factory=CausalLM)
    seen: Recorded = field(default_factory=Recorded)

    def ledger(self) -> Ledger:
        return Ledger(self.prepared, self.objective, self.feed, after=self.config.proof_steps)

    def fit(self, *, state: Path | None = None, resume: bool = False, **more: Any) -> Fitted:
        saving = Saving(folder=state, resume_command="budwood train --resume x") if state else None
        start: Standing | None = load_state(state, self.prepared, identity={}) if resume and state else None
        return fit(
            self.prepared,
            self.objective,
            self.feed,
            self.config,
            start=start,
            saving=saving,
            observer=self.seen,
            **more,
        )


def job(
    family: str = "llama",
    *,
    method: Method | None = None,
    examples: list[Example] | None = None,
    model: PreTrainedModel | None = None,
    **settings: Any,
) -> Job:
    """A prepared tiny model with a feed over `rows()`."""
    chosen = config(**settings)
    model = tiny(family) if model is None else model
    prepared = prepare(model, method or LoRA(rank=4, dropout=0.1, targets=("all",)), chosen)
    is_labelled = bool(examples) and examples[0].label is not None
    feed = Feed.of(
        rows() if examples is None else examples,
        batch=chosen.batch, pad_id=PAD, seed=chosen.seed, group_by_length=chosen.group_by_length,
        where=lambda row: f"faq.jsonl, row {row + 1}",
    )  # fmt: skip
    return Job(prepared, feed, chosen, Classify() if is_labelled else CausalLM())
