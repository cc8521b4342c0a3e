"""`budwood shrink`: a model, data and a target into one job, then its stages, told as they go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budwood.cli.layers import Settings, layered, split
from budwood.cli.options import Machine, Shrinks, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.progress import Progress
from budwood.cli.train import job_of, refuse_more
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.shrink.config import Shrinking
    from budwood.shrink.run import Shrunk
    from budwood.train.job import Job

USAGE = "budwood shrink MODEL DATA"


def shrink(
    model: str | None = None, data: str | None = None, /, *,
    training: Shrinks | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Make a model smaller in stages, on your own data, and keep what holds.

    Parameters
    ----------
    model: str
        A model's name or folder, a run, or an adapter folder.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    from budwood.shrink.config import Shrinking

    training, machine, talk = training or Shrinks(), machine or Machine(), talk or Talk()
    sink = talk.sink()
    typed = {**given(training), **given(machine)}
    places = {name: word for name, word in (("model", model), ("data", data)) if word is not None}
    if training.resume is not None:
        refuse_more({**typed, **places})
        return _tell(_resumed(training.resume, sink), sink)
    flags = {name: value for name, value in typed.items() if name not in ("config", "dry_run", "force")}
    found = layered(_flat({**flags, **places}), machine.config, also=("shrink", *Shrinking.names()))
    settings, own = split(_flat(found), Shrinking.names())
    job, shrinking = _jobs(settings, own, force=training.force)
    if training.dry_run:
        return _dry_run(job, shrinking, sink)
    return _tell(_told(job, shrinking, sink), sink)


def _flat(settings: Settings) -> Settings:
    """A run's config.yaml says its own settings under `shrink`; here they stand beside the others, which win."""
    own = settings.get("shrink") or {}
    if not isinstance(own, dict):
        raise BadConfig(f"shrink is {own!r}; write its settings below it, as shrink: {{to: 0.5}}")
    return {**own, **{key: value for key, value in settings.items() if key != "shrink"}}


def _jobs(settings: Settings, own: Settings, *, force: bool) -> tuple[Job, Shrinking]:
    """The job and how far it goes. Raises BadConfig, naming what is missing or wrong."""
    from budwood.shrink.config import Shrinking

    settings.setdefault("method", "full")
    shrinking = Shrinking.from_dict({key: value for key, value in own.items() if value is not None})
    return job_of(settings, force=force, usage=USAGE), shrinking


def _dry_run(job: Job, shrinking: Shrinking, sink: Sink) -> int:
    """What there is to cut, and the sizes on the way; nothing is written."""
    from budwood.shrink.outlook import outlook

    found = outlook(job, shrinking)
    for line in found.lines():
        sink.say(line)
    sink.say()
    sink.say("nothing was cut or written (--dry-run)")
    sink.result({"outlook": found.to_dict()})
    return 0


def _told(job: Job, shrinking: Shrinking, sink: Sink) -> Shrunk:
    from budwood.shrink.run import shrink_job

    with Progress(sink).shown() as progress:
        return shrink_job(job, shrinking, observer=progress)


def _resumed(where: str, sink: Sink) -> Shrunk:
    from budwood.shrink.run import resume

    with Progress(sink).shown() as progress:
        return resume(where, observer=progress)


def _tell(shrunk: Shrunk, sink: Sink) -> int:
    """The stages, and where the model is."""
    from budwood.shrink.lines import table

    stages = shrunk.stages
    sink.head("stages")
    headings, rows = table(stages, brief=True)
    sink.tell(Table(headings, rows))
    sink.say()
    sink.say(f"model    {shrunk.model}")
    sink.say(f"report   {shrunk.report}")
    if not sink.is_live:
        sink.data(str(shrunk.model))
    sink.result({"run": shrunk.path, "model": shrunk.model, "report": shrunk.report,
                 "stages": [stage.to_dict() for stage in stages]})  # fmt: skip
    return 0
