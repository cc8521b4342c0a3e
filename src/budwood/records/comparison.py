"""comparison.json: which methods are compared on what, and how each of the runs stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from budwood.errors import BadCheckpoint, NotAvailable
from budwood.records.files import Json, read_json, write_json
from budwood.records.manifest import is_alive, now, this_process
from budwood.records.rates import RateProbe
from budwood.records.run import RunFolder

VERSION = 1
BASE = "base"
"""What the untuned model is called among the methods."""
Standing = Literal["waiting", "running", "finished", "failed", "interrupted"]
Verdict = Literal["ready", "refused", "left out", "failed"]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One method of a comparison."""

    label: str
    """As people name it: "lora", "lora:rank=16"; "base" for the untuned model."""
    method: dict[str, Json]
    """`method_to_dict` of it; {"base": {}} for the untuned model."""
    verdict: Verdict = "ready"
    """ready; refused: not for this model or task; left out: over a limit that was given; failed: it broke."""
    why: str | None = None
    """The reason of a verdict that is not "ready"."""
    learning_rate: float | None = None
    """What its runs are trained at."""
    rates: RateProbe | None = None
    """The learning rates that were tried; None where there was no search."""
    trained_count: int | None = None
    """Parameters that it trains, as preflight counted."""
    step_s: float | None = None
    """Seconds of one step, as probed."""
    predicted_bytes: int | None = None
    """Peak memory, as predicted."""


@dataclass(frozen=True, kw_only=True)
class Item:
    """One run of a comparison: one method, one seed."""

    name: str
    """Its folder below runs/: the method, a digest of its whole configuration, the seed."""
    label: str
    """The contender's."""
    seed: int
    status: Standing = "waiting"
    error: str | None = None
    """Why it failed."""
    seconds: float | None = None
    """Of its process, everything included."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a search saw of one candidate: a few steps at each of some learning rates, from the same start."""

    label: str
    """The candidate's, as a contender's."""
    rung: int
    """How often candidates were dropped before."""
    steps: int
    """Optimizer steps at each rate."""
    rates: tuple[float, ...] = ()
    """The learning rates that were tried."""
    losses: tuple[float | None, ...] = ()
    """What each came to on rows that the steps did not see, in nats per target; None where it diverged."""
    error: str | None = None
    """Why nothing came of it."""
    step_s: float = 0.0
    """Seconds of one step, as probed."""
    seconds: float = 0.0
    """Of its process, everything included."""

    @property
    def scores(self) -> dict[float, float]:
        """The loss of each rate that came through."""
        return {rate: loss for rate, loss in zip(self.rates, self.losses, strict=True) if loss is not None}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The content of `comparison.json`."""

    kind: Literal["comparison", "search"] = "comparison"
    command: tuple[str, ...]
    """What was typed."""
    model: str
    data: str
    task: str | None = None
    """None until the first method was looked at."""
    budget: str
    """What each run may train: "120steps", "5m"."""
    seeds: tuple[int, ...]
    limits: dict[str, Json] = field(default_factory=dict)
    """What the user will not exceed: memory_bytes, train_s, answer_s, trained_count, stored_bytes."""
    contenders: tuple[Contender, ...] = ()
    """In the order asked for, the base first."""
    items: tuple[Item, ...] = ()
    """In the order they are run."""
    trials: tuple[Trial, ...] = ()
    """What a search tried, in order."""
    notes: tuple[str, ...] = ()
    """What a reader has to know of how it was done."""
    status: Standing = "running"
    started: str = ""
    finished: str | None = None
    predicted_s: float | None = None
    """Seconds that the whole was expected to take."""
    budwood: str = ""
    process: dict[str, Json] | None = None

    def contender(self, label: str) -> Contender:
        """The one of that label; KeyError for one that there is not."""
        return {one.label: one for one in self.contenders}[label]


@dataclass(frozen=True)
class ComparisonFolder:
    """A comparison on disk: comparison.json, config.yaml, runs/, report.*"""

    path: Path

    @property
    def file(self) -> Path:
        """comparison.json."""
        return self.path / "comparison.json"

    def run(self, item: Item) -> RunFolder:
        """The run folder of an item; it may not be there yet."""
        return RunFolder(self.path / "runs" / item.name)

    def read(self) -> Comparison:
        """What comparison.json says; one whose process is gone reads as "interrupted".

        Raises NotAvailable where there is none; BadCheckpoint if it is damaged or of another version.
        """
        if not self.file.is_file():
            raise NotAvailable(f"{self.path} holds no comparison.json; name a folder that budwood compare wrote")
        found = _comparison(read_json(self.file), str(self.file))
        gone = found.status == "running" and not is_alive(found.process)
        return replace(found, status="interrupted") if gone else found

    def write(self, comparison: Comparison) -> None:
        """comparison.json, in one step."""
        write_json(self.file, {"version": VERSION, **asdict(comparison)})

    def begun(self, comparison: Comparison, *, budwood: str) -> Comparison:
        """The same, claimed by this process, and written."""
        found = replace(
            comparison, status="running", started=comparison.started or now(), finished=None, budwood=budwood,
            process=this_process(),
        )  # fmt: skip
        self.write(found)
        return found


Part = TypeVar("Part")


def _comparison(data: Mapping[str, Json], where: str) -> Comparison:
    version = data.get("version")
    if version != VERSION:
        raise BadCheckpoint(
            f"{where} has version {version!r} and this Budwood reads {VERSION}; open it with the Budwood that wrote "
            "it, or compare again in a new folder"
        )
    values = {key: value for key, value in data.items() if key != "version"}
    try:
        values["contenders"] = tuple(_contender(one, where) for one in data["contenders"])
        values["items"] = tuple(_part(Item, one, where) for one in data["items"])
        values["trials"] = tuple(_part(Trial, one, where) for one in data.get("trials", ()))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{where} is damaged ({error!r}); restore it or compare again") from error
    found = _part(Comparison, values, where)
    if found.status not in get_args(Standing):
        raise BadCheckpoint(f"{where}: status is {found.status!r}; it was edited: restore it or compare again")
    return found


def _contender(data: Mapping[str, Json], where: str) -> Contender:
    rates = data.get("rates")
    probe = None if rates is None else RateProbe.from_dict(rates, where=where)
    return _part(Contender, {**data, "rates": probe}, where)


def _part(kind: type[Part], data: Mapping[str, Any], where: str) -> Part:
    """A dataclass from its mapping, lists as tuples, strict."""
    known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(data) - known)
    if unknown:
        raise BadCheckpoint(f"{where} has unknown {', '.join(unknown)}; it was edited: restore it or compare again")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})
    except TypeError as error:
        raise BadCheckpoint(f"{where} is incomplete ({error}); restore it or compare again") from error
