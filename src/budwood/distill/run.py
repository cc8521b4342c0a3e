"""`distill`: a student learns from a teacher, in a run folder like any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from budwood.core import Method
from budwood.data import Task, Template
from budwood.data.pattern import Verbalizer
from budwood.distill.config import Distillation
from budwood.distill.finish import write_model, write_scores
from budwood.distill.recipe import IN_MEMORY
from budwood.distill.recipe import FromTeacher as FromTeacher
from budwood.distill.student import with_student
from budwood.errors import BadConfig
from budwood.methods import method_from_dict
from budwood.train.config import TrainConfig
from budwood.train.job import Job, as_config
from budwood.train.observer import Observer, Silent
from budwood.train.run import Run, run_job
from budwood.train.run import resume as resume_run


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

    teacher       a run, an adapter folder, a model's name, or a loaded model; None (or "self") is the student's own
                  base, which then teaches its adapter without a second copy
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
        if teacher is None and str(rest["teacher"]).endswith(IN_MEMORY):
            raise BadConfig(f"the teacher was {rest['teacher']}; give it again: resume(run, teacher=model)")
        found.append(FromTeacher(rest["teacher"] if teacher is None else teacher, config, teacher_tokenizer))
        return {key: value for key, value in rest.items() if key != "teacher"}, found[0]

    done = resume_run(
        run, model=student, data=data, tokenizer=tokenizer, root=root, offline=offline, recipe=taken, observer=observer
    )
    return _finished(done, found[0])


def distill_job(job: Job, recipe: FromTeacher, *, observer: Observer | None = None) -> Run:
    """Run a distillation from its beginning."""
    job = with_student(job, recipe.teacher, say=(observer or Silent()).note)
    return _finished(run_job(replace(job, recipe=recipe), observer=observer), recipe)


def _finished(run: Run, recipe: FromTeacher) -> Run:
    """What a distillation leaves beside what every run does: teacher.json, and model/ of a full student."""
    taught = recipe.taught
    assert taught is not None
    write_scores(run.folder, recipe.shown, taught.scores)
    write_model(run.folder, taught.job, taught.material)
    return run
