"""`budwood distill`: a student and a teacher into one job, then the job, told as it goes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from budwood.cli.layers import Settings, layered, require, split
from budwood.cli.options import Distilling, Machine, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.progress import Progress
from budwood.cli.train import dry_run, job_of, refuse_more, tell_run

if TYPE_CHECKING:
    from budwood.distill.run import FromTeacher
    from budwood.train.job import Job
    from budwood.train.run import Run

USAGE = "budwood distill TEACHER STUDENT DATA"


def distill(
    teacher: str | None = None, student: str | None = None, data: str | None = None, /, *,
    training: Distilling | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Train a student on what a teacher says, beside the data's own targets.

    Parameters
    ----------
    teacher: str
        A run, an adapter folder, or a model's name.
    student: str
        A model's name, what to make of the teacher (layers=0.5,ffn=0.5), or self: the teacher's own base.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    from budwood.distill.config import Distillation

    training, machine, talk = training or Distilling(), machine or Machine(), talk or Talk()
    sink = talk.sink()
    typed = {**given(training), **given(machine)}
    words = (("teacher", teacher), ("model", student), ("data", data))
    places = {name: word for name, word in words if word is not None}
    if training.resume is not None:
        refuse_more({**typed, **places})
        return _tell(_resumed(training.resume, machine.offline, sink), sink)
    flags = {name: value for name, value in typed.items() if name not in ("config", "dry_run", "force")}
    also = ("teacher", *Distillation.names())
    settings, own = split(layered({**flags, **places}, machine.config, also=also), also)
    job, recipe = jobs_of(settings, own, force=training.force)
    if training.dry_run:
        from budwood.distill.student import with_student

        with TemporaryDirectory() as shelf:  # a student that is made to look at it is not kept
            made = with_student(job, recipe.teacher, say=sink.say, shelf=Path(shelf))
            return dry_run(replace(made, recipe=recipe), sink)
    return _tell(_told(job, recipe, sink), sink)


def jobs_of(settings: Settings, own: Settings, *, force: bool) -> tuple[Job, FromTeacher]:
    """The student's job and its teacher. Raises BadConfig, naming what is missing or wrong."""
    from budwood.distill.config import Distillation
    from budwood.distill.run import FromTeacher

    teacher = require(own, "teacher", USAGE)
    settings.setdefault("method", "full")
    said = Distillation.taken_from({key: value for key, value in own.items() if key != "teacher"})[1]
    require(settings, "model", USAGE)
    return job_of(settings, force=force, usage=USAGE), FromTeacher(teacher, said)


def _told(job: Job, recipe: FromTeacher, sink: Sink) -> Run:
    from budwood.distill.run import distill_job

    with Progress(sink, shows_end=True).shown() as progress:
        return distill_job(job, recipe, observer=progress)


def _resumed(where: str, offline: bool | None, sink: Sink) -> Run:
    from budwood.distill.run import resume

    with Progress(sink).shown() as progress:
        return resume(where, offline=offline, observer=progress)


def _tell(run: Run, sink: Sink) -> int:
    """What came out, beside the teacher's scores."""
    from budwood.distill.finish import teacher_scores

    result, teacher = run.result, teacher_scores(run.folder)
    if result is not None and teacher:
        rows = [
            (part.score.name, f"{part.score.value:.4g}", f"[{part.score.low:.4g}, {part.score.high:.4g}]",
             f"{part.base.value:.4g}" if part.base else "", f"{teacher[part.score.name].value:.4g}")
            for part in result.quality if part.score.name in teacher
        ]  # fmt: skip
        sink.head("student and teacher")
        sink.tell(Table(("metric", ">student", "95 % interval", ">before", ">teacher"), rows))
    model = run.path / "model" if (run.path / "model").is_dir() else None
    code = tell_run(run, sink, {"model": model, "teacher": [asdict(score) for score in teacher.values()]})
    if model is not None:
        sink.say(f"the student as an ordinary model folder: {model}")
    return code
