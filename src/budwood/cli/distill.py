"""`budwood distill`: a student and a teacher into one job, then the job, told as it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from budwood.cli.layers import Settings, layered, require, split
from budwood.cli.options import Machine, Talk, Training, Unlisted, given
from budwood.cli.output import Sink, Table
from budwood.cli.progress import Progress
from budwood.cli.train import dry_run, find, job_of, refuse_more, tell_run

if TYPE_CHECKING:
    from budwood.distill.run import FromTeacher
    from budwood.train.job import Job
    from budwood.train.run import Run

USAGE = "budwood distill TEACHER STUDENT DATA"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Distilling(Training):
    """How to distill: the settings of `budwood train`, and those of `budwood.distill.config.Distillation`."""

    method: str | None = None
    """How the student is trained: full, or a method with fields as lora:rank=16. [full]"""
    dry_run: Annotated[bool, Unlisted] = False
    force: Annotated[bool, Unlisted] = False
    loss: str | None = None
    """forward-kl, reverse-kl, skewed-kl, skewed-reverse-kl, jsd, soft-cross-entropy or uld. [forward-kl]"""
    top_k: int | None = None
    """Ask the teacher once, and keep its so many likeliest tokens on disk. [ask it in every step]"""
    temperature: Annotated[float | None, Unlisted] = None
    kd_weight: Annotated[float | None, Unlisted] = None
    ce_weight: Annotated[float | None, Unlisted] = None
    skew: Annotated[float | None, Unlisted] = None
    beta: Annotated[float | None, Unlisted] = None
    hidden_weight: Annotated[float | None, Unlisted] = None
    hidden: Annotated[str | None, Unlisted] = None
    attention_weight: Annotated[float | None, Unlisted] = None
    relation_weight: Annotated[float | None, Unlisted] = None
    layer_map: Annotated[str | None, Unlisted] = None
    tail: Annotated[str | None, Unlisted] = None
    answers: Annotated[str | None, Unlisted] = None
    on_policy: Annotated[float | None, Unlisted] = None


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
    job, recipe = jobs_of(settings, own, sink, force=training.force)
    if training.dry_run:
        from dataclasses import replace

        return dry_run(replace(job, recipe=recipe), sink)
    return _tell(_told(job, recipe, sink), sink)


def jobs_of(settings: Settings, own: Settings, sink: Sink, *, force: bool) -> tuple[Job, FromTeacher]:
    """The student's job and its teacher. Raises BadConfig, naming what is missing or wrong."""
    from budwood.distill.config import Distillation
    from budwood.distill.run import FromTeacher, prepared_student

    teacher = require(own, "teacher", USAGE)
    settings.setdefault("method", "full")
    said = Distillation.taken_from({key: value for key, value in own.items() if key != "teacher"})[1]
    student = require(settings, "model", USAGE)
    made = prepared_student(teacher, student, settings, say=sink.say)
    settings = {**settings, "model": made}
    find(settings, sink, USAGE)
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
    code = tell_run(run, sink)
    if (run.path / "model").is_dir():
        sink.say(f"the student as an ordinary model folder: {run.path / 'model'}")
    return code
