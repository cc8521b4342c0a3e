"""`budwood train`: settings from every layer into one job, then the job, told as it goes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.cli.layers import Settings, columns_of, layered, method_of, require, split, text_of, words_of
from budwood.cli.options import COMMAND, Machine, Talk, Training, given
from budwood.cli.output import Sink, Table
from budwood.cli.progress import Progress, tell_preflight
from budwood.cli.runs import next_steps
from budwood.errors import BadConfig
from budwood.records.words import result_rows

if TYPE_CHECKING:
    from budwood.train.job import Job
    from budwood.train.run import Run

USAGE = "budwood train MODEL DATA"


def train(
    model: str | None = None, data: str | None = None, /, *,
    training: Training | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Train one method on one data set.

    Parameters
    ----------
    model: str
        A folder, a hub id, a .gguf file or a demo name.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    training, machine, talk = training or Training(), machine or Machine(), talk or Talk()
    sink = talk.sink()
    typed = {**given(training), **given(machine)}
    places = {name: word for name, word in (("model", model), ("data", data)) if word is not None}
    if training.resume is not None:
        refuse_more({**typed, **places})
        return tell_run(_resumed(training.resume, machine.offline, sink), sink)
    flags = {name: value for name, value in typed.items() if name not in ("config", "dry_run", "force")}
    settings = layered({**flags, **places}, machine.config)
    find(settings, sink)
    job = job_of(settings, force=training.force)
    if training.dry_run:
        return dry_run(job, sink)
    return tell_run(run_told(job, sink), sink)


def find(settings: Settings, sink: Sink, usage: str = USAGE) -> None:
    """Look for model and data before anything heavy is imported: what is not there shows at once.

    Demo assets are left for later: they may take a while, and the method should be known to be right by then.
    Raises NotAvailable, or BadConfig where one is not named.
    """
    from budwood.assets import resolve_data, resolve_model
    from budwood.assets.catalogue import DEMO_NAMES

    offline = bool(settings.get("offline"))
    model, data = require(settings, "model", usage), require(settings, "data", usage)
    if data not in DEMO_NAMES:
        resolve_data(data, offline=offline, say=sink.say)
    if model not in DEMO_NAMES:
        resolve_model(model, offline=offline, say=sink.say)


def job_of(settings: Settings, *, force: bool, usage: str = USAGE) -> Job:
    """The job that settings say. Raises BadConfig, naming what is missing or wrong."""
    from budwood.train.config import TrainConfig
    from budwood.train.job import Job

    plain, beside = split(settings)
    template, task, out = (text_of(beside, key) for key in ("template", "task", "out"))
    return Job(
        model=require(beside, "model", usage), data=require(beside, "data", usage),
        method=method_of(beside.get("method")), on=words_of(beside.get("on"), "on"),
        config=TrainConfig.from_dict(plain), columns=columns_of(beside.get("columns")),
        template=_one_of("template", template or "auto", ("auto", "chat", "plain")),  # type: ignore[arg-type]
        task=task,  # type: ignore[arg-type]  # Job looks
        pattern=text_of(beside, "pattern"), verbalizer=beside.get("verbalizer"),  # type: ignore[arg-type]  # Job looks
        out=Path(out) if out else None, force=force, offline=bool(beside.get("offline")), command=COMMAND.get(),
        trust_remote_code=bool(beside.get("trust_remote_code")), allow_pickle=bool(beside.get("allow_pickle")),
    )  # fmt: skip


def run_told(job: Job, sink: Sink, *, shows_end: bool = True) -> Run:
    """Run a job, telling the human; `shows_end` says whether the answers at its end are part of that."""
    from budwood.train.run import run_job

    with Progress(sink, shows_end=shows_end).shown() as progress:
        return run_job(job, observer=progress)


def tell_run(run: Run, sink: Sink, more: Settings | None = None) -> int:
    """What came out, where it is, what to type next; more: what stands beside that in JSON."""
    result, manifest = run.result, run.manifest
    sink.head("done")
    sink.tell(Table(("", ""), result_rows(result)))
    sink.say()
    sink.say(f"run folder   {run.path}")
    for line in next_steps(run.folder, manifest.status):
        sink.say(line)
    if not sink.is_live:
        sink.data(str(run.path))
    sink.result(
        {"run": run.path, "adapter": run.adapter, "status": manifest.status,
         "rate_probe": asdict(manifest.rate_probe) if manifest.rate_probe else None,
         "result": result.to_dict() if result else None, **(more or {})}
    )  # fmt: skip
    return 0


def _resumed(where: str, offline: bool | None, sink: Sink) -> Run:
    from budwood.train.run import resume

    with Progress(sink).shown() as progress:
        return resume(where, offline=offline, observer=progress)


def dry_run(job: Job, sink: Sink) -> int:
    """The preflight alone."""
    from budwood.train.run import check_job

    facts = check_job(job)
    tell_preflight(facts, sink)
    sink.say()
    sink.say("nothing was trained or written (--dry-run)")
    sink.result({"preflight": facts.to_dict()})
    return 0


def refuse_more(typed: Settings) -> None:
    """A resumed run is the run it was: settings beside --resume would not be used."""
    more = sorted(typed.keys() - {"resume", "offline"})
    if more:
        words = ", ".join(
            f"--{name.replace('_', '-')}" if name not in ("teacher", "model", "data") else name.upper() for name in more
        )
        raise BadConfig(f"a resumed run keeps its settings, so {words} would not be used; type only --resume RUN")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    from budwood.errors import did_you_mean

    if value not in choices:
        raise BadConfig(f"{name} is {value!r}; {did_you_mean(value, choices)}")
    return value
