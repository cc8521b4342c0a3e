"""`distill`: a student learns from a teacher, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from budwood.core import Method, Plan, activate
from budwood.core.registry import registry_of
from budwood.data import Task, Template
from budwood.data.pattern import Verbalizer
from budwood.distill.config import Distillation
from budwood.distill.finish import score_teacher, write_model, write_scores
from budwood.distill.objective import Distill
from budwood.distill.opening import NAME, Named, identity_of, load_named, named
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher, SameModel, Teacher
from budwood.errors import BadConfig
from budwood.methods import method_from_dict
from budwood.records import Json, Score, count
from budwood.train.config import TrainConfig
from budwood.train.job import Job, as_config
from budwood.train.material import Material
from budwood.train.observer import Observer
from budwood.train.precision import store_compactly
from budwood.train.recipe import Lesson
from budwood.train.run import Run, run_job
from budwood.train.run import resume as resume_run
from budwood.train.setup import Prepared
from budwood.train.stacking import contents, load_on, trains_in_place

ITSELF = "teacher: the model itself, without the adapter"


@dataclass(frozen=True)
class Taught:
    """A teacher with those it teaches."""

    job: Job
    material: Material
    prepared: Prepared
    teacher: Teacher
    tokenizer: Any
    """The teacher's."""


@dataclass(frozen=True)
class _Opened:
    """A teacher that is ready."""

    teacher: Teacher
    tokenizer: Any
    """None is the student's."""
    identity: str
    """What tells it from others."""
    line: str
    """What a person is told of it."""


@dataclass
class FromTeacher:
    """The recipe of a distillation: asks the teacher."""

    teacher: Any
    """A run, an adapter folder, a model's name, or a model in memory; None is the student's own base."""
    config: Distillation = field(default_factory=Distillation)
    tokenizer: Any = None
    """Of a teacher in memory, where it is not the student's."""
    taught: Taught | None = None
    """What it was called with, once it was."""

    def to_dict(self) -> dict[str, Json]:
        """What config.yaml says of it."""
        return {"teacher": self.shown, **self.config.to_dict()}

    def teach(self, job: Job, material: Material, prepared: Prepared) -> Lesson:
        """The loss against this teacher, of the job's task."""
        task = material.corpus.task
        opened = self._open(job, material, prepared)
        self.taught = Taught(job, material, prepared, opened.teacher, opened.tokenizer or material.tokenizer)
        objective = Distill(task=task, config=self.config, teacher=opened.teacher, reader=Reader(task))
        return Lesson(objective=objective, lines=(opened.line,), identity={"teacher": opened.identity})

    def _open(self, job: Job, material: Material, prepared: Prepared) -> _Opened:
        task = material.corpus.task
        if self.teacher is None or self.teacher is job.model:
            return _Opened(SameModel(prepared.model, task), None, "the base itself", ITSELF)
        if isinstance(self.teacher, PreTrainedModel):
            line, live = f"teacher: {self.shown}", LiveTeacher(self.teacher, task)
            return _Opened(live, self.tokenizer, identity_of(self.teacher, None), line)
        who = named(self.teacher, root=job.root)
        if self._is_base(who, job, material):
            if who.adapter is None:
                return _Opened(SameModel(prepared.model, task), None, "the base itself", ITSELF)
            teacher = SameModel(prepared.model, task, _lay_beside(prepared, who, job))
            identity = contents((*who.on, str(who.adapter)))
            return _Opened(teacher, None, identity, f"teacher: {who.shown}, on the same weights")
        model, tokenizer = load_named(
            who,
            task=task,
            labels=material.corpus.labels,
            offline=job.offline,
            trust_remote_code=job.trust_remote_code,
            allow_pickle=job.allow_pickle,
        )
        identity = identity_of(model, who)
        if prepared.compute == torch.bfloat16:
            store_compactly(model)
        line = f"teacher: {who.shown}, {count(model.parameters())[0]:,} parameters"
        return _Opened(LiveTeacher(model.to(prepared.device), task), tokenizer, identity, line)

    @property
    def shown(self) -> str:
        """Who people are told teaches."""
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


def resume(
    run: str | Path | Run,
    *,
    teacher: Any = None,
    student: Any = None,
    data: Any = None,
    tokenizer: Any = None,
    teacher_tokenizer: Any = None,
    root: str | Path = "runs",
    offline: bool | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with a distillation where its state was saved. Raises what `budwood.train.run.resume` does.

    teacher, student, data, tokenizer, teacher_tokenizer   only for those that were objects in memory
    """
    found: list[FromTeacher] = []

    def taken(values: dict[str, Any]) -> tuple[dict[str, Any], FromTeacher]:
        if "teacher" not in values:
            raise BadConfig("this run has no teacher; go on with it by budwood train --resume")
        rest, config = Distillation.taken_from(values)
        found.append(FromTeacher(teacher or rest.pop("teacher"), config, teacher_tokenizer))
        return {key: value for key, value in rest.items() if key != "teacher"}, found[0]

    done = resume_run(
        run, model=student, data=data, tokenizer=tokenizer, root=root, offline=offline, recipe=taken, observer=observer
    )
    return _finished(done, found[0])


def distill_job(job: Job, recipe: FromTeacher, *, observer: Observer | None = None) -> Run:
    """Run a distillation from its beginning."""
    return _finished(run_job(replace(job, recipe=recipe), observer=observer), recipe)


def _finished(run: Run, recipe: FromTeacher) -> Run:
    """What a distillation leaves beside what every run does: teacher.json, and model/ of a full student."""
    taught = recipe.taught
    assert taught is not None
    scores: tuple[Score, ...] = ()
    if isinstance(taught.teacher, LiveTeacher):
        scores = score_teacher(taught.teacher, taught.tokenizer, taught.job, taught.material, taught.prepared)
    write_scores(run.folder, recipe.shown, scores)
    write_model(run.folder, taught.job, taught.material)
    return run


def _lay_beside(prepared: Prepared, who: Named, job: Job) -> Plan:
    """Put the teacher's adapter, frozen, on the student's own base; the plan that it acts by."""
    registry = registry_of(prepared.model)
    assert registry is not None and who.adapter is not None
    plan = registry.switch.plan
    said = load_on(prepared.model, who.adapter, name=NAME, on=who.on, allow_pickle=job.allow_pickle)
    activate(prepared.model, plan, trainable=prepared.adapter.name)
    return said
