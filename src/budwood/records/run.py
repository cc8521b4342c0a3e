"""A run on disk: who ran what on what, what happened, what came out of it.

run.json config.yaml environment.json data.json      written before the first step
metrics.jsonl samples.jsonl predictions.jsonl        lines, appended
result.json                                          the five dimensions
adapter/ state/ log.txt report.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budwood.records.files import Json
from budwood.records.machine import Machine
from budwood.records.result import Result

VERSION = 1
Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `run.json`."""

    command: tuple[str, ...]
    """What was typed, e.g. ("budwood", "train", "demo-lm", "faq.jsonl")."""
    model: str
    """The base as the user named it."""
    method: dict[str, Json]
    """`Method.to_dict()`, e.g. {"lora": {"rank": 8}}."""
    data: str
    """The data as the user named it."""
    seed: int
    task: str = "causal-lm"
    base: dict[str, Json] | None = None
    """Fingerprint of the base model."""
    status: Status = "running"
    started: str = ""
    """UTC, ISO 8601; filled by `RunFolder.create`."""
    finished: str | None = None
    error: str | None = None
    """First line of what stopped it."""
    budwood: str = ""
    """Version of Budwood; filled by `RunFolder.create`."""
    process: dict[str, Json] | None = None
    """host, pid and start time of the process that writes; filled by `RunFolder.create`."""


@dataclass(frozen=True)
class RunFolder:
    """A handle on one run folder; everything is read from disk when asked for."""

    path: Path

    @classmethod
    def create(
        cls,
        root: str | Path,
        manifest: Manifest,
        *,
        config: Mapping[str, Json],
        data: Mapping[str, Json],
        environment: Machine,
        out: str | Path | None = None,
        force: bool = False,
    ) -> RunFolder:
        """A new folder ROOT/20261123-094512-METHOD-MODEL (or exactly `out`) with its first four files.

        Raises BadConfig when it cannot be written, or when `out` holds something and `force` is not set; with
        `force` an earlier run there is replaced, anything else is still refused.
        """
        raise NotImplementedError

    @classmethod
    def open(cls, where: str | Path, *, root: str | Path = "runs") -> RunFolder:
        """The run at a path, or in `root` by its name, an unambiguous part of its start, or "latest".

        Raises NotAvailable (no such run), BadConfig (several fit), BadCheckpoint (run.json is damaged or newer).
        """
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def adapter(self) -> Path:
        """Where the adapter is saved."""
        return self.path / "adapter"

    @property
    def state(self) -> Path:
        """Where the optimizer, the random state and the data position are saved."""
        return self.path / "state"

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path / "report.html"

    def manifest(self) -> Manifest:
        """run.json.  A run whose process is gone reads as "interrupted"."""
        raise NotImplementedError

    def config(self) -> dict[str, Json]:
        """config.yaml."""
        raise NotImplementedError

    def finish(self) -> None:
        """Mark as finished."""
        raise NotImplementedError

    def interrupt(self, reason: str) -> None:
        """Mark as interrupted: it can be resumed."""
        raise NotImplementedError

    def fail(self, error: str) -> None:
        """Mark as failed."""
        raise NotImplementedError

    def resume(self, *, step: int) -> None:
        """Take the run up again after `step` steps; lines about later steps are superseded.

        Raises WrongOrder if another process is still writing it.
        """
        raise NotImplementedError

    def add_metrics(self, point: Mapping[str, Json]) -> None:
        """Append to metrics.jsonl; `point["step"]` is the optimizer step."""
        raise NotImplementedError

    def metrics(self) -> list[dict[str, Json]]:
        """The points of metrics.jsonl, without those that a resume superseded."""
        raise NotImplementedError

    def add_sample(self, sample: Mapping[str, Json]) -> None:
        """Append to samples.jsonl: a fixed prompt answered by the base and by now."""
        raise NotImplementedError

    def samples(self) -> list[dict[str, Json]]:
        """The lines of samples.jsonl, without those that a resume superseded."""
        raise NotImplementedError

    def add_prediction(self, prediction: Mapping[str, Json]) -> None:
        """Append to predictions.jsonl."""
        raise NotImplementedError

    def predictions(self) -> list[dict[str, Json]]:
        """The lines of predictions.jsonl."""
        raise NotImplementedError

    def write_result(self, result: Result) -> None:
        """result.json, in one step."""
        raise NotImplementedError

    def result(self) -> Result | None:
        """result.json; None while there is none."""
        raise NotImplementedError

    def log(self, line: str) -> None:
        """Append one line, with the time, to log.txt."""
        raise NotImplementedError


@dataclass(frozen=True)
class Listing:
    """The runs of a folder, oldest first, and the folders that should be runs but cannot be read."""

    runs: tuple[RunFolder, ...]
    broken: tuple[tuple[Path, str], ...]


def list_runs(root: str | Path = "runs") -> Listing:
    """Every run in `root`; an absent folder holds none."""
    raise NotImplementedError
