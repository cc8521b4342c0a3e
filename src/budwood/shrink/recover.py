"""Training on the way: the fine-tuning at the beginning, and the recovery of each stage from its unshrunk teacher."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.core import adapters, merge
from budwood.distill.config import Distillation
from budwood.distill.objective import Distill
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher
from budwood.train.checkpoint import Standing, has_state, load_state
from budwood.train.job import Job
from budwood.train.loop import Fitted, Saving, fit
from budwood.train.material import Material
from budwood.train.objective import OBJECTIVES, Objective
from budwood.train.observer import Observer
from budwood.train.proof import Ledger
from budwood.train.setup import prepare
from budwood.train.stacking import trains_in_place
from budwood.train.start import feed_of

NAME = "recovery"
RATE = 1e-4
"""Learning rate of full training where none is said: small models that were just cut learn fast, and forget little."""


def trained(
    model: PreTrainedModel,
    job: Job,
    material: Material,
    *,
    budget: str,
    saving: Saving,
    teacher: PreTrainedModel | None = None,
    distillation: Distillation | None = None,
    observer: Observer | None = None,
) -> tuple[PreTrainedModel, Fitted]:
    """The model, trained by the job's method on its data, against a teacher where there is one, and folded in.

    Goes on from the state in `saving.folder`, if there is one. Raises what `fit` does; CannotFold for a method that
    has no weights to fold into.
    """
    config = replace(job.config, budget=budget, learning_rate=job.config.learning_rate or _rate(job))
    feed, anatomy = feed_of(material, config), discover(model)
    sample = feed.batch(feed.longest(1))
    prepared = prepare(
        model, job.method, config, name=NAME, sample=sample, anatomy=anatomy, labels=material.corpus.labels or ()
    )
    task = material.corpus.task
    objective: Objective = OBJECTIVES[task]()
    if teacher is not None:
        live = LiveTeacher(teacher.to(prepared.device), task)
        objective = Distill(task=task, config=distillation or Distillation(), teacher=live, reader=Reader(task))
    start: Standing | None = None
    if has_state(saving.folder):
        start = load_state(saving.folder, prepared, identity=saving.identity)
    ledger = Ledger(prepared, objective, feed, after=config.proof_steps)
    done = fit(prepared, objective, feed, config, start=start, saving=saving, ledger=ledger, observer=observer)
    ledger.finish(done.standing.step)
    for name in list(adapters(model)):
        merge(model, name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval(), done


def _rate(job: Job) -> float:
    return RATE if trains_in_place(job.method) else job.method.rate
