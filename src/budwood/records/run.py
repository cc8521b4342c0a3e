"""A run on disk: who ran what on what, what happened, what came out of it.

run.json config.yaml environment.json data.json      written before the first step
metrics.jsonl samples.jsonl predictions.jsonl        lines, appended
result.json                                          the five dimensions
adapter/ state/ log.txt report.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from budwood.errors import BadCheckpoint, NotAvailable, WrongOrder
from budwood.records.files import (
    Json,
    append_line,
    not_writable,
    plain,
    read_json,
    read_lines,
    write_json,
    write_text,
)
from budwood.records.folders import claim, find
from budwood.records.machine import installed
from budwood.records.manifest import (
    Manifest,
    Status,
    as_it_stands,
    is_alive,
    is_mine,
    now,
    read_manifest,
    this_process,
)
from budwood.records.result import Result

if TYPE_CHECKING:
    from budwood.records.machine import Machine
    from budwood.records.rates import RateProbe

RESUMED = "resumed_after_step"


@dataclass(frozen=True)
class RunFolder:
    """A handle on one run folder; everything is read from disk when asked for."""

    path: Path
    """The folder."""

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
        with claim(Path(root), manifest, None if out is None else Path(out), force=force) as path:
            run = cls(path)
            write_text(path / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
            write_json(path / "environment.json", environment.to_dict())
            write_json(path / "data.json", dict(data))
            run._write(
                replace(
                    manifest,
                    status="running",
                    started=now(),
                    budwood=installed("budwood") or "",
                    process=this_process(),
                )
            )
        return run

    @classmethod
    def open(cls, where: str | Path, *, root: str | Path = "runs") -> RunFolder:
        """The run at a path, or in `root` by its name, an unambiguous part of its start, or "latest".

        Raises NotAvailable (no such run), BadConfig (several fit), BadCheckpoint (run.json is damaged).
        """
        name = str(where)
        run = list_runs(root).latest(root) if name == "latest" else cls(find(name, Path(root)))
        run.manifest()
        return run

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
        return as_it_stands(read_manifest(self.path / "run.json"))

    def config(self) -> dict[str, Json]:
        """config.yaml.  Raises BadCheckpoint if it is damaged."""
        path = self.path / "config.yaml"
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadCheckpoint(f"{path} cannot be read: {error}; restore it or run again") from error
        if not isinstance(data, dict):
            raise BadCheckpoint(f"{path} holds no mapping; restore it or run again")
        return data

    def data(self) -> dict[str, Json]:
        """data.json.  Raises BadCheckpoint if it is damaged."""
        return read_json(self.path / "data.json")

    def environment(self) -> dict[str, Json]:
        """environment.json.  Raises BadCheckpoint if it is damaged."""
        return read_json(self.path / "environment.json")

    def probed(self, rates: RateProbe) -> None:
        """Write down which learning rates were tried, and which it is trained at."""
        self._write(replace(read_manifest(self.path / "run.json"), rate_probe=rates))

    def finish(self) -> None:
        """Mark as finished."""
        self._end("finished", None)

    def interrupt(self, reason: str) -> None:
        """Mark as interrupted: it can be resumed."""
        self._end("interrupted", reason)

    def fail(self, error: str) -> None:
        """Mark as failed."""
        self._end("failed", error)

    def resume(self, *, step: int) -> None:
        """Take the run up again after `step` steps; lines about later steps, or about none, are superseded.

        Raises WrongOrder if another process is still writing it.
        """
        manifest = read_manifest(self.path / "run.json")
        if manifest.status == "running" and is_alive(manifest.process) and not is_mine(manifest.process):
            place = manifest.process or {}
            raise WrongOrder(
                f"run {self.name} is still being written by process {place.get('pid')} "
                f"on {place.get('host')}; wait for it or stop it, then resume"
            )
        for path in (self._metrics, self._samples, self._predictions):
            if path.exists():
                append_line(path, {RESUMED: step})
        self._write(
            replace(
                manifest,
                status="running",
                finished=None,
                error=None,
                resumed=(*manifest.resumed, now()),
                process=this_process(),
            )
        )

    def add_metrics(self, point: Mapping[str, Json]) -> None:
        """Append to metrics.jsonl; `point["step"]` is the optimizer step."""
        append_line(self._metrics, point)

    def metrics(self) -> list[dict[str, Json]]:
        """The points of metrics.jsonl, without those that a resume superseded."""
        return _standing(read_lines(self._metrics))

    def add_sample(self, sample: Mapping[str, Json]) -> None:
        """Append to samples.jsonl: a fixed prompt answered by the base and by now, with its "step"."""
        append_line(self._samples, sample)

    def samples(self) -> list[dict[str, Json]]:
        """The lines of samples.jsonl, without those that a resume superseded."""
        return _standing(read_lines(self._samples))

    def add_prediction(self, prediction: Mapping[str, Json]) -> None:
        """Append to predictions.jsonl: what the model made of one held-out row."""
        append_line(self._predictions, prediction)

    def predictions(self) -> list[dict[str, Json]]:
        """The lines of predictions.jsonl, without those that a resume superseded."""
        return _standing(read_lines(self._predictions))

    def write_result(self, result: Result) -> None:
        """result.json, in one step."""
        write_json(self.path / "result.json", result.to_dict())

    def result(self) -> Result | None:
        """result.json; None while there is none.  Raises BadCheckpoint if it is damaged."""
        path = self.path / "result.json"
        return Result.from_dict(read_json(path), where=str(path)) if path.exists() else None

    def log(self, line: str) -> None:
        """Append one line, with the time, to log.txt."""
        path = self.path / "log.txt"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{now()} {line}\n")
        except OSError as error:
            raise not_writable(path, error) from error

    @property
    def _metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def _predictions(self) -> Path:
        return self.path / "predictions.jsonl"

    def _end(self, status: Status, error: str | None) -> None:
        manifest = read_manifest(self.path / "run.json")
        self._write(replace(manifest, status=status, error=error, finished=now()))

    def _write(self, manifest: Manifest) -> None:
        write_json(self.path / "run.json", manifest.to_dict())


@dataclass(frozen=True)
class Listing:
    """The runs of a folder, oldest first, and the folders that should be runs but cannot be read."""

    runs: tuple[RunFolder, ...]
    """Readable ones."""
    broken: tuple[tuple[Path, str], ...]
    """Folder and what is wrong with it."""

    def latest(self, root: str | Path) -> RunFolder:
        """The newest run.  Raises NotAvailable if there is none."""
        if not self.runs:
            raise NotAvailable(f"there is no run in {root} yet; start one with budwood train, or name a folder")
        return self.runs[-1]


def list_runs(root: str | Path = "runs") -> Listing:
    """Every run in `root`; an absent folder holds none."""
    runs: list[tuple[str, str, RunFolder]] = []
    broken: list[tuple[Path, str]] = []
    for path in sorted(Path(root).glob("*/run.json")):
        run = RunFolder(path.parent)
        try:
            runs.append((run.manifest().started, run.name, run))
        except BadCheckpoint as error:
            broken.append((run.path, str(error)))
    return Listing(tuple(run for *_, run in sorted(runs, key=lambda entry: entry[:2])), tuple(broken))


def _standing(lines: list[dict[str, Json]]) -> list[dict[str, Json]]:
    """Lines in force: one that marks a resume takes back those before it about later steps, or about none."""
    standing: list[dict[str, Json]] = []
    for line in lines:
        if RESUMED in line:
            standing = [old for old in standing if "step" in old and old["step"] <= line[RESUMED]]
        else:
            standing.append(line)
    return standing
