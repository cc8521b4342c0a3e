"""run.json: what a run is, and how it stands."""

from __future__ import annotations

import os
import socket
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, get_args

import psutil

from budwood.errors import BadCheckpoint
from budwood.records.files import read_json
from budwood.records.rates import RateProbe

if TYPE_CHECKING:
    from pathlib import Path

    from budwood.records.files import Json

VERSION = 1
Status = Literal["running", "finished", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `run.json`.  `RunFolder.create` fills in the fields whose text ends in "(filled in)"."""

    command: tuple[str, ...]
    """What was typed, e.g. ("budwood", "train", "demo-lm", "faq.jsonl")."""
    model: str
    """The base as the user named it."""
    method: dict[str, Json]
    """`Method.to_dict()`, e.g. {"lora": {"rank": 8}}."""
    data: str
    """The data as the user named it."""
    seed: int
    """Of order, initialisation and dropout."""
    task: str = "causal-lm"
    """Or another of `budwood.data.TASKS`."""
    on: tuple[str, ...] = ()
    """Folders of the adapters that it is trained on top of, the lowest first."""
    base: dict[str, Json] | None = None
    """Fingerprint of the base model."""
    rate_probe: RateProbe | None = None
    """The learning rates that were tried before the first step, and the one it was trained at; null if none were."""
    status: Status = "running"
    """How the run stands."""
    started: str = ""
    """UTC, ISO 8601 (filled in)."""
    finished: str | None = None
    """UTC, ISO 8601: when it ended, in whatever way."""
    resumed: tuple[str, ...] = ()
    """UTC, ISO 8601: each time it was taken up again."""
    error: str | None = None
    """What stopped it."""
    budwood: str = ""
    """Version of Budwood (filled in)."""
    process: dict[str, Json] | None = None
    """host, pid and start of the process that writes the folder (filled in)."""

    @property
    def label(self) -> str:
        """The method's name."""
        return next(iter(self.method), "run")

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON, with the version of the format."""
        return {"version": VERSION, **asdict(self)}


def read_manifest(path: Path) -> Manifest:
    """The manifest in a run.json, strict.

    Raises BadCheckpoint if it is damaged or in a version that this Budwood does not read.
    """
    data = read_json(path)
    version = data.pop("version", None)
    if version != VERSION:
        raise BadCheckpoint(
            f"{path} has version {version!r} and this Budwood reads {VERSION}; use the one that wrote it"
        )
    known = {field.name: field for field in fields(Manifest)}
    required = {name for name, field in known.items() if field.default is MISSING}
    wrong = sorted(set(data) - set(known)) or sorted(required - set(data))
    if wrong:
        state = "has unknown" if set(data) - set(known) else "lacks"
        raise BadCheckpoint(f"{path} {state} {', '.join(wrong)}; it was edited or cut: restore it or run again")
    if data.get("status", "running") not in get_args(Status) or not isinstance(data["method"], dict):
        raise BadCheckpoint(
            f"{path}: status {data.get('status')!r}, method {data['method']!r} are not what a run has; "
            f"status is one of {', '.join(get_args(Status))} and method an object"
        )
    for name in ("command", "resumed", "on"):
        data[name] = tuple(data.get(name) or ())
    if data.get("rate_probe") is not None:
        data["rate_probe"] = RateProbe.from_dict(data["rate_probe"], where=str(path))
    return Manifest(**data)


def now() -> str:
    """This moment in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def this_process() -> dict[str, Json]:
    """What tells this process from any other, also after its number was given to a new one."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def is_alive(process: dict[str, Json] | None) -> bool:
    """Whether the process still runs; one on another host counts as running, since nobody here can tell."""
    if process is None:
        return False
    if process.get("host") != socket.gethostname():
        return True
    try:
        found = psutil.Process(int(process["pid"]))
        return found.status() != psutil.STATUS_ZOMBIE and abs(found.create_time() - process["started"]) < 2.0
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False


def as_it_stands(manifest: Manifest) -> Manifest:
    """The manifest, read as "interrupted" when it says "running" and its process is gone."""
    if manifest.status != "running" or is_alive(manifest.process):
        return manifest
    return replace(
        manifest,
        status="interrupted",
        error="its process is gone: killed, out of memory, or the machine stopped",
    )


def is_mine(process: dict[str, Json] | None) -> bool:
    """Whether the process is this one."""
    return process is not None and {"host": process.get("host"), "pid": process.get("pid")} == {
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }
