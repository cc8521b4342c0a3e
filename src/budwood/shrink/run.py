"""`shrink`: stage after stage, each cut, refitted, recovered, looked at, and kept or undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budwood.core import Method
from budwood.data import Task, Template
from budwood.errors import BadConfig, WrongOrder
from budwood.methods import method_from_dict, method_to_dict
from budwood.records import Manifest, RunFolder
from budwood.shrink.beginning import check, material_of, opened
from budwood.shrink.config import Shrinking
from budwood.shrink.folder import Shelf, stages_of
from budwood.shrink.outlook import looked_ahead
from budwood.shrink.progress import Shrinker
from budwood.shrink.stage import Stage
from budwood.train.config import TrainConfig
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.observer import Observer, Silent
from budwood.train.precision import resolve_device
from budwood.train.start import machine_of
from budwood.train.status import resume_command, told_status

START = "stages/start"
"""Where a run's or an adapter's model is put, folded in, so that it is a model folder."""


@dataclass(frozen=True)
class Shrunk:
    """A shrinking on disk."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def model(self) -> Path:
        """The smallest model that holds: an ordinary transformers folder."""
        return self.path / "model"

    @property
    def stages(self) -> list[Stage]:
        """Every stage, those that were undone among them."""
        return stages_of(self.folder)

    @property
    def report(self) -> Path:
        """The curve and the table, for people."""
        return self.folder.report


def shrink(
    model: str | Path,
    data: Any,
    *,
    to: float | None = None,
    shrinking: Shrinking | Mapping[str, Any] | None = None,
    method: str | Method | Mapping[str, Any] = "full",
    config: TrainConfig | Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    template: Template = "auto",
    task: Task | None = None,
    out: str | Path | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Shrunk:
    """Make a model smaller in stages, on the user's own data, and keep what holds.

    model      a model's name or folder, a run, or an adapter folder
    data       what it is used for: scores, refits, recovery and quality all come from it
    to         share of the parameters that is to stay; short for the field of `shrinking`
    shrinking  a `Shrinking` or its fields: other targets, what may be cut, how stages are recovered
    method     how stages are trained: "full", or an adapter method that can be folded in ("lora:rank=16,targets=all")
    config     a `TrainConfig` or its fields; its budget is not used
    The others are those of `budwood.train`. Raises what it does, and BadConfig (2) for a target that the model cannot
    come to; Interrupted after Ctrl-C, with the command that goes on.
    """
    said = shrinking if isinstance(shrinking, Mapping) else (shrinking or Shrinking(to=to)).to_dict()
    settings = Shrinking.from_dict({**said, **({} if to is None else {"to": to})})
    job = Job(
        model=model,
        data=data,
        method=method if isinstance(method, Method) else method_from_dict(method),
        config=as_config(config),
        columns=columns,
        template=template,
        task=task,
        out=None if out is None else Path(out),
        force=force,
    )
    return shrink_job(job, settings, observer=observer)


def shrink_job(job: Job, settings: Shrinking, *, observer: Observer | None = None) -> Shrunk:
    """Run a shrinking from its beginning."""
    observer = observer or Silent()
    who, material = material_of(job)
    model, _ = opened(who, job, material)
    check(job, settings, who, material, model)
    for line in looked_ahead(job, settings, material, model).lines():
        observer.note(line)
    del model
    manifest = Manifest(
        command=job.command,
        model=job.model_name,
        method={"shrink": {**settings.to_dict(), "method": method_to_dict(job.method)}},
        data=job.data_name,
        seed=job.config.seed,
        task=material.corpus.task,
    )
    said = {**job.to_dict(), "shrink": settings.to_dict()}
    del said["budget"]  # of one training; here stages have steps, and `shrink` may have a time of this name
    facts = {
        "data": job.data_name,
        "hash": material.corpus.hash(),
        "splits": {name: len(rows) for name, rows in material.corpus.splits.items()},
        "labels": list(material.corpus.labels) if material.corpus.labels else None,
        "notes": list(material.corpus.notes),
    }
    environment = machine_of(resolve_device(job.config.device))
    folder = RunFolder.create(
        job.root, manifest, config=said, data=facts, environment=environment, out=job.out, force=job.force
    )
    return _carry_out(job, settings, folder, observer, is_resumed=False)


def resume(run: str | Path | Shrunk, *, root: str | Path = "runs", observer: Observer | None = None) -> Shrunk:
    """Go on with a shrinking where it stopped: at the stage, and at the step, that was saved.

    Raises WrongOrder for one that is finished or still running, and what `shrink` does.
    """
    folder = run.folder if isinstance(run, Shrunk) else RunFolder.open(run, root=root)
    job, settings = from_config(folder.config())
    if folder.manifest().status == "finished":
        raise WrongOrder(f"{folder.path} is finished; start a new shrinking, from {folder.path / 'model'}")
    return _carry_out(job, settings, folder, observer or Silent(), is_resumed=True)


def from_config(values: Mapping[str, Any]) -> tuple[Job, Shrinking]:
    """What a config.yaml of a shrinking says. Raises BadConfig for one of something else."""
    rest = dict(values)
    settings = rest.pop("shrink", None)
    if not isinstance(settings, Mapping):
        raise BadConfig("this run is no shrinking; go on with it by budwood train --resume")
    return Job.from_dict(rest), Shrinking.from_dict(settings)


def _carry_out(job: Job, settings: Shrinking, folder: RunFolder, observer: Observer, *, is_resumed: bool) -> Shrunk:
    """Everything after the folder is made; its status tells how it ended."""
    with told_status(folder, is_claimed=not is_resumed) as status:
        if is_resumed:
            status.claim(len(stages_of(folder)) - 1)  # samples of the stage that is made anew are superseded
        try:
            Shrinker.start(_with_folder(job, folder), settings, folder, observer).run()
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:
            signum = int(vars(stop).get("exit_code", 130)) - 128
            raise Interrupted(
                signum=signum, step=0, state=folder.path / "work", resume_command=resume_command(folder)
            ) from stop
    return Shrunk(folder)


def _with_folder(job: Job, folder: RunFolder) -> Job:
    """The job on a model folder: that of a run or an adapter is folded in, and kept beside the stages."""
    place = folder.path / START
    if not place.is_dir():
        who, material = material_of(job)
        if who.adapter is None:
            return job
        model, tokenizer = opened(who, job, material)
        Shelf(folder, material.corpus.task, material.corpus.labels).save(model, tokenizer, START, [])
    return replace(job, model=str(place.absolute()))
