"""What a comparison has done in processes of their own: one task, measured from the first byte to the last.

`python -m budwood.compare.work` reads tasks from stdin, one JSON object a line, and writes what happens to stdout. The
imports are done once: where the system can, each task gets a fork of this process, which has computed nothing yet.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

from budwood.errors import BudwoodError, OutOfMemory
from budwood.records import RunFolder, Score
from budwood.records.amounts import size
from budwood.records.files import Json, plain
from budwood.records.manifest import is_alive
from budwood.train.baseline import examine_base
from budwood.train.checkpoint import has_state
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job
from budwood.train.observer import StepPoint
from budwood.train.preflight import Preflight
from budwood.train.rates import RatePlan, try_rates
from budwood.train.run import check_job, resume, run_job
from budwood.train.start import start

Tell = Callable[[Mapping[str, Json]], None]
CAN_FORK = sys.platform == "linux"
"""Elsewhere a forked process must not use the system's own libraries, so each task gets a new interpreter."""
ORPHANED_S = 1.0
"""How often a worker looks whether the comparison that it works for is still there."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to do, as plain data."""

    kind: Literal["base", "probe", "trial", "train"]
    """base: examine the untuned model; probe: a few steps that leave no trace; trial: `steps` of them at each learning
    rate, scored; train: a whole run."""
    name: str
    """What people are shown."""
    config: Mapping[str, Json]
    """`Job.to_dict`."""
    out: str
    """The run folder."""
    baseline: str | None = None
    """Folder of the base's run."""
    limit_bytes: int | None = None
    """Peak memory that must not be exceeded, as far as preflight can tell."""
    steps: int = 0
    """Of a trial, at each rate."""
    command: Sequence[str] = ()
    trust_remote_code: bool = False

    @property
    def job(self) -> Job:
        """What it says, as a job."""
        return replace(
            Job.from_dict(self.config),
            out=Path(self.out),
            root=Path(self.out).parent,
            force=True,
            baseline=None if self.baseline is None else Path(self.baseline),
            command=tuple(self.command),
            trust_remote_code=self.trust_remote_code,
        )


@dataclass(frozen=True)
class Watcher:
    """Passes on what a run tells, as plain data; stops one that would need too much."""

    tell: Tell
    limit_bytes: int | None = None

    def preflight(self, facts: Preflight) -> None:
        """Raises OutOfMemory over the limit, before anything is written."""
        self.tell({"event": "preflight", **forecast_of(facts)})
        if self.limit_bytes is not None and facts.predicted_bytes > self.limit_bytes:
            raise OutOfMemory(
                f"expects {size(facts.predicted_bytes)} at most, over the limit of {size(self.limit_bytes)}; allow "
                "more memory, or take a smaller batch"
            )

    def note(self, text: str) -> None:
        """A line."""
        self.tell({"event": "note", "text": text})

    def step(self, point: StepPoint) -> None:
        """Where it is."""
        self.tell({"event": "step", "step": point.step, "progress": point.progress, "loss": point.loss,
                   "left_s": point.remaining_s})  # fmt: skip

    def validation(self, step: int, scores: Sequence[Score]) -> None:
        """Held-out scores."""
        self.tell({"event": "validation", "step": step, "scores": [asdict(score) for score in scores]})

    def sample(self, sample: Mapping[str, str]) -> None:
        """They are in the run's folder."""


def perform(task: Task, tell: Tell) -> dict[str, Json]:
    """Do it; what came of it as plain data, errors too: {"error", "kind"} of those that Budwood means."""
    try:
        return DO[task.kind](task, tell)
    except Interrupted as stop:
        return {"error": str(stop), "kind": "interrupted"}
    except KeyboardInterrupt:
        return {"error": "stopped", "kind": "interrupted"}
    except BudwoodError as error:
        return {"error": str(error), "kind": type(error).__name__}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "kind": "bug"}


def forecast_of(facts: Preflight) -> dict[str, Json]:
    """What is kept of a preflight."""
    return {
        "trained_count": facts.trained_count,
        "step_s": facts.forecast.step_s,
        "steps": facts.steps,
        "steps_per_epoch": facts.steps_per_epoch,
        "predicted_bytes": facts.predicted_bytes,
        "predicted_s": facts.predicted_s,
        "rate_steps": len(facts.rates.rates) * facts.rates.steps if facts.rates else 0,
    }


def _base(task: Task, tell: Tell) -> dict[str, Json]:
    folder = examine_base(task.job, Path(task.out), Watcher(tell))
    data = folder.data()
    return {"task": folder.manifest().task, "hash": data["hash"], **data["base"]}


def _probe(task: Task, tell: Tell) -> dict[str, Json]:
    return forecast_of(check_job(replace(task.job, force=True)))


def _trial(task: Task, tell: Tell) -> dict[str, Json]:
    """The losses after some steps at each of the config's learning rates, on rows that the steps did not see."""
    job = task.job
    started = start(job)
    Watcher(tell, task.limit_bytes).preflight(started.facts)
    plan = RatePlan(rates=job.config.rates_given, steps=task.steps)
    found = try_rates(
        started.prepared, started.objective, started.feed, job.config, plan, held=started.material.valid,
        start=started.beginning,
    )  # fmt: skip
    return {"rates": [one.rate for one in found.trials], "losses": [one.loss for one in found.trials]}


def _train(task: Task, tell: Tell) -> dict[str, Json]:
    """A run from its beginning, or on from where one was stopped."""
    folder, watcher = RunFolder(Path(task.out)), Watcher(tell, task.limit_bytes)
    if (folder.path / "run.json").is_file() and has_state(folder.state) and folder.manifest().status != "finished":
        run = resume(folder.path, observer=watcher, baseline=None if task.baseline is None else Path(task.baseline))
    else:
        run = run_job(task.job, observer=watcher)
    probe = run.manifest.rate_probe
    return {"rates": asdict(probe) if probe else None}


DO: Mapping[str, Callable[[Task, Tell], dict[str, Json]]] = {
    "base": _base, "probe": _probe, "trial": _trial, "train": _train,
}  # fmt: skip
"""What each kind of task is."""


def main() -> None:
    """Serve tasks until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is talk
    for line in sys.stdin:
        said = json.loads(line)
        if not CAN_FORK:
            _work(said, out)
            return
        if (pid := os.fork()) == 0:
            try:
                _work(said, out)
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        out.write(json.dumps({"event": "end", "status": os.waitstatus_to_exitcode(status)}) + "\n")


def _work(said: Mapping[str, Any], out: TextIO) -> None:
    def tell(event: Mapping[str, Json]) -> None:
        out.write(json.dumps(plain(event)) + "\n")
        out.flush()

    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    _end_with(said["for"])
    tell({"event": "begin", "pid": os.getpid()})
    began = time.monotonic()
    found = perform(Task(**said["task"]), tell)
    tell({"event": "outcome", "outcome": {**found, "seconds": time.monotonic() - began}})


def _stop(number: int, frame: FrameType | None) -> None:
    """Like Ctrl-C, and remembers which signal it was."""
    stop = KeyboardInterrupt()
    stop.exit_code = 128 + number  # type: ignore[attr-defined]  # read by train.status
    raise stop


def _end_with(process: Mapping[str, Any]) -> None:
    """Ask this process to stop, as Ctrl-C would, when the comparison that it works for is gone."""

    def watch() -> None:
        while is_alive(dict(process)):
            time.sleep(ORPHANED_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
