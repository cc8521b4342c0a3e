"""`distill`: a student learns from a teacher, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budwood.core import Method, activate
from budwood.core.registry import registry_of
from budwood.data import Task, Template
from budwood.data.pattern import Verbalizer
from budwood.distill.config import Distillation
from budwood.distill.objective import Distill
from budwood.distill.opening import NAME, Named, identity_of, load_named, named
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher, SameModel, Teacher
from budwood.errors import BadConfig
from budwood.methods import method_from_dict
from budwood.records import Json
from budwood.train.config import TrainConfig
from budwood.train.job import Job, as_config
from budwood.train.material import Material
from budwood.train.observer import Observer
from budwood.train.precision import store_compactly
from budwood.train.recipe import Lesson
from budwood.train.run import Run, resume as resume_run, run_job
from budwood.train.setup import Prepared
from budwood.train.stacking import load_on, trains_in_place


@dataclass
class FromTeacher:
    """The recipe of a distillation: asks the teacher."""

    teacher: Any
    """A run, an adapter folder, a model's name, or a model in memory; None is the student's own base."""
    config: Distillation = field(default_factory=Distillation)
    tokenizer: Any = None
    """Of a teacher in memory, where it is not the student's."""

    def to_dict(self) -> dict[str, Json]:
        """What config.yaml says of it."""
        is_named = isinstance(self.teacher, str | Path)
        shown = str(self.teacher) if is_named else f"a {type(self.teacher).__name__} in memory"
        return {"teacher": shown, **self.config.to_dict()}

    def teach(self, job: Job, material: Material, prepared: Prepared) -> Lesson:
        """The loss against this teacher, of the job's task."""
        task = material.corpus.task
        teacher, identity, line = self._open(job, material, prepared)
        objective = Distill(task=task, config=self.config, teacher=teacher, reader=Reader(task))
        return Lesson(objective=objective, lines=(line,), identity={"teacher": identity})

    def _open(self, job: Job, material: Material, prepared: Prepared) -> tuple[Teacher, str, str]:
        """(the teacher, what tells it from others, a line about it)."""
        task = material.corpus.task
        if self.teacher is None or self.teacher is job.model:
            return SameModel(prepared.model, task), "the base itself", "teacher: the model itself, without the adapter"
        if isinstance(self.teacher, PreTrainedModel):
            return LiveTeacher(self.teacher, task), identity_of(self.teacher, None), f"teacher: {self._shown}"
        who = named(self.teacher, root=job.root)
        if self._is_base(who, job, material):
            if who.adapter is None:
                return SameModel(prepared.model, task), "the base itself", "teacher: the model itself, without the adapter"
            plan = _lay_beside(prepared, who, job)
            line = f"teacher: {who.shown}, on the same weights"
            return SameModel(prepared.model, task, plan), contents((*who.on, str(who.adapter))), line
        model, _ = load_named(
            who, task=task, labels=material.corpus.labels, offline=job.offline,
            trust_remote_code=job.trust_remote_code, allow_pickle=job.allow_pickle,
        )  # fmt: skip
        identity = identity_of(model, who)
        if prepared.compute == torch.bfloat16:
            store_compactly(model)
        size = count(model.parameters())[0]
        return LiveTeacher(model.to(prepared.device), task), identity, f"teacher: {who.shown}, {size:,} parameters"

    @property
    def _shown(self) -> str:
        is_named = isinstance(self.teacher, str | Path)
        return str(self.teacher) if is_named else f"a {type(self.teacher).__name__} in memory"

    def _is_base(self, who: Named, job: Job, material: Material) -> bool:
        """Whether the student stands, frozen, on the very weights that the teacher has."""
        ref = material.source.ref
        if ref is None or trains_in_place(job.method) or who.is_in_place:
            return False
        return who.find(offline=job.offline).path == ref.path


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    *,
    distillation: Distillation | Mapping[str, Any] | None = None,
    method: str | Method | Mapping[str, Any] = "full",
    budget: str | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    template: Template = "auto",
    task: Task | None = None,
    pattern: str | None = None,
    verbalizer: Verbalizer | None = None,
    on: Sequence[str | Path] = (),
    allow_pickle: bool = False,
    name: str = "default",
    out: str | Path | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train a student on what a teacher says, beside the data's own targets, in a run folder like any other.

    teacher       a run, an adapter folder, a model's name, or a loaded model; None is the student's own base, which
                  then teaches its adapter without a second copy
    student       a model's name, a loaded model, or what to make of the teacher: "layers=0.5", "layers=6,ffn=0.5"
    distillation  a `Distillation` or its fields
    method        how the student is trained: "full", or any adapter method
    teacher_tokenizer  of a teacher in memory, where it is not the student's
    The others are those of `budwood.train`, and so are the errors; a full student is also written as RUN/model, an
    ordinary model folder. Raises BadConfig where teacher and student cannot be matched.
    """
    chosen = method if isinstance(method, Method) else method_from_dict(method)
    said = distillation if isinstance(distillation, Distillation) else Distillation(**(distillation or {}))
    job = Job(
        model=student,
        data=data,
        method=chosen,
        config=as_config(config, budget=budget),
        tokenizer=tokenizer,
        columns=columns,
        template=template,
        task=task,
        pattern=pattern,
        verbalizer=verbalizer,
        on=tuple(str(one) for one in on),
        allow_pickle=allow_pickle,
        name=name,
        out=None if out is None else Path(out),
        force=force,
    )
    return distill_job(job, FromTeacher(teacher, said, teacher_tokenizer), observer=observer)


def distill_job(job: Job, recipe: FromTeacher, *, observer: Observer | None = None) -> Run:
    """Run a distillation from its beginning."""
    return run_job(replace(job, recipe=recipe), observer=observer)


def resume(run: str | Path | Run, *, offline: bool | None = None, observer: Observer | None = None, **given: Any) -> Run:
    ...


def _lay_beside(prepared: Prepared, who: Named, job: Job) -> Plan:
    """Put the teacher's adapter, frozen, on the student's own base; the plan that it acts by."""
    plan = plan_of(prepared.model)
    said = load_on(prepared.model, who.adapter, name=NAME, on=who.on, allow_pickle=job.allow_pickle)
    activate(prepared.model, plan, trainable=prepared.adapter.name)
    return said
