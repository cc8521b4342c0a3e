"""The model that a shrinking begins with, and whether it can be shrunk as asked: seen before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from budwood.core import adapters, attach, merge
from budwood.distill.opening import Named, load_named, named
from budwood.errors import BadConfig, BadData, CannotFold
from budwood.shrink.choose import check_rows
from budwood.shrink.config import Shrinking, is_nothing
from budwood.shrink.measure import check_task
from budwood.train.job import Job
from budwood.train.material import Material, gather
from budwood.train.start import new_in

TRIED = "tried"
"""What an adapter is called that is only there to see whether it can be folded in."""


def material_of(job: Job) -> tuple[Named, Material]:
    """(who the model's name means, the rows as its base reads them). Raises as `gather` does, and for one in memory."""
    if not isinstance(job.model, str | Path):
        raise BadConfig(f"model is a {type(job.model).__name__} in memory; save it, and give its folder")
    if job.on:
        raise BadConfig(f"on is {', '.join(job.on)}, which nothing is trained on here; name that run as MODEL instead")
    who = named(job.model, root=job.root)
    return who, gather(replace(job, model=str(who.base)))


def opened(who: Named, job: Job, material: Material) -> tuple[PreTrainedModel, Any]:
    """(the model, an adapter folded in; its tokenizer). Raises BadConfig for an adapter that cannot be folded."""
    if who.adapter is None:
        return material.source.fresh(None, seed=job.config.seed), material.tokenizer
    task, labels = material.corpus.task, material.corpus.labels
    model, tokenizer = load_named(who, task=task, labels=labels, allow_pickle=job.allow_pickle)
    if left := list(adapters(model).values()):
        raise BadConfig(
            f"{who.shown} ({left[0].method.name}) cannot be folded into the weights of {who.base}, and what is shrunk "
            f"is a model's own weights; shrink {who.base}, then train the adapter anew on what comes out"
        )
    return model, tokenizer


def check(job: Job, settings: Shrinking, who: Named, material: Material, model: PreTrainedModel) -> None:
    """Raise BadConfig or BadData for what could not end well: a task, too few rows, an untrained head, a method."""
    check_task(material.corpus.task)
    check_rows(material.train.examples)
    if material.held_split is None:
        raise BadData("no row is held out, so quality cannot be measured; give a test split")
    if who.adapter is None and is_nothing(settings.tune):
        new = [path for path in new_in(material, model, seed=job.config.seed) if _counts(path, material)]
        if new:
            raise BadConfig(
                f"{who.shown} was never trained for {material.corpus.task}: {', '.join(new)} is new, so what it says "
                "is noise, and nothing could be told from it; let it learn the data first (tune: 200steps)"
            )
    _check_method(job, material, model)


def _counts(path: str, material: Material) -> bool:
    return "pooler" not in path or material.corpus.task == "classification"


def _check_method(job: Job, material: Material, model: PreTrainedModel) -> None:
    """Raise BadConfig for a method that leaves more than weights; the model is as before otherwise."""
    attach(model, job.method, name=TRIED, tokenizer=material.tokenizer, labels=material.corpus.labels or ())
    try:
        merge(model, TRIED)
    except CannotFold as error:
        raise BadConfig(
            f"{job.method.name} cannot be folded into weights, so a stage that is trained so would be no ordinary "
            f"model ({error}); take full, or lora:targets=all"
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)
