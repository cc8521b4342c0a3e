"""The runs behind a report, method by method: of a comparison's folder, or of run folders that anybody names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shlex import quote

from budwood.errors import NotAvailable, WrongOrder
from budwood.records import BASE, Comparison, ComparisonFolder, Contender, Item, Manifest, Result, RunFolder
from budwood.records.files import Json

APART = ("seed", "samples", "eval_every", "eval_rows", "save_every", "proof_steps", "offline")
"""Settings of config.yaml in which runs of one method may differ."""

UNSAID = "no reason was written down"


@dataclass(frozen=True)
class Run:
    """A finished run, with what was read of it."""

    folder: Path
    manifest: Manifest
    result: Result

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.manifest.seed

    @property
    def task(self) -> str:
        """Of the run."""
        return self.manifest.task

    @cached_property
    def predictions(self) -> list[dict[str, Json]]:
        """Test rows."""
        return RunFolder(self.folder).predictions()

    @cached_property
    def config(self) -> dict[str, Json]:
        """config.yaml."""
        return RunFolder(self.folder).config()

    @cached_property
    def data(self) -> dict[str, Json]:
        """data.json."""
        return RunFolder(self.folder).data()

    @cached_property
    def environment(self) -> dict[str, Json]:
        """environment.json."""
        return RunFolder(self.folder).environment()

    @property
    def data_hash(self) -> str:
        """Of all rows of the data."""
        return str(self.data.get("hash"))


@dataclass(frozen=True)
class Entry:
    """One method with its runs."""

    contender: Contender
    finished: tuple[Run, ...] = ()
    """Of different seeds, in their order."""
    failures: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The method's."""
        return self.contender.label

    @property
    def is_full(self) -> bool:
        """Whether it is full fine-tuning."""
        return "full" in self.contender.method


@dataclass(frozen=True)
class Found:
    """All that a report is made from."""

    comparison: Comparison
    """As read; for runs that nobody compared, what they have in common."""
    entries: tuple[Entry, ...]
    folder: Path | None
    """Of the comparison."""
    faults: tuple[str, ...] = field(default=())
    """What is odd about the runs as a whole."""


def gather(where: str | Path | Sequence[str | Path]) -> Found:
    """The runs of a comparison's folder, or of one or several run folders.

    Raises NotAvailable for a folder that is neither; WrongOrder where no run has finished; BadCheckpoint for records
    that are damaged or of another version.
    """
    paths = [Path(where)] if isinstance(where, str | Path) else [Path(one) for one in where]
    if not paths:
        raise NotAvailable("no folder was named; name one that budwood compare wrote, or run folders")
    for path in paths:
        if not (path / "run.json").is_file() and (len(paths) > 1 or not ComparisonFolder(path).file.is_file()):
            raise NotAvailable(_neither(path, alone=len(paths) == 1))
    is_comparison = not (paths[0] / "run.json").is_file()
    found = _of_comparison(ComparisonFolder(paths[0])) if is_comparison else _of_runs(paths)
    if not any(entry.finished for entry in found.entries):
        raise WrongOrder(_unfinished(found, paths[0]))
    return found


def _of_comparison(folder: ComparisonFolder) -> Found:
    comparison = folder.read()
    entries = []
    for contender in comparison.contenders:
        items = [item for item in comparison.items if item.label == contender.label]
        entries.append(_entry(contender, [(item, folder.run(item)) for item in items], comparison))
    return Found(comparison, tuple(entries), folder.path)


def _entry(contender: Contender, items: Sequence[tuple[Item, RunFolder]], comparison: Comparison) -> Entry:
    finished, failures, waiting = [], [], []
    if contender.verdict != "ready":
        failures.append(f"{contender.verdict}: {contender.why or UNSAID}")
    for item, folder in sorted(items, key=lambda one: one[0].seed):
        there = (folder.path / "run.json").is_file()
        manifest = folder.manifest() if there else None
        result = folder.result() if there else None
        status = manifest.status if manifest is not None and item.status != "failed" else item.status
        if manifest is not None and status == "finished" and result is not None:
            finished.append(Run(folder.path, manifest, result))
        elif status == "failed":
            error = item.error or (manifest.error if manifest is not None else None) or UNSAID
            if contender.verdict == "ready" or error != contender.why:
                failures.append(f"seed {item.seed} failed: {error}")
        else:
            state = "is running" if status == "running" and comparison.status == "running" else "is not done"
            waiting.append(f"{contender.label}, seed {item.seed}, {state}")
    return Entry(contender, tuple(finished), tuple(failures), tuple(waiting))


def _of_runs(paths: Sequence[Path]) -> Found:
    """Runs that differ in nothing but the seed are one method."""
    groups: dict[str, list[tuple[Path, Manifest, dict[str, Json]]]] = {}
    for path in dict.fromkeys(path.resolve() for path in paths):
        manifest, config = RunFolder(path).manifest(), RunFolder(path).config()
        kept = {name: value for name, value in config.items() if name not in APART}
        facts = {"task": manifest.task, **kept, "method": manifest.method}
        groups.setdefault(repr(sorted(_flat(facts).items())), []).append((path, manifest, facts))
    labels = _labels([group[0][2] for group in groups.values()])
    entries, faults = [], []
    for label, group in zip(labels, groups.values(), strict=True):
        entry, odd = _entry_of_runs(label, group)
        entries.append(entry)
        faults += odd
    manifests = [manifest for group in groups.values() for _, manifest, _ in group]
    for what, names in (("base models", [one.model for one in manifests]), ("data", [one.data for one in manifests])):
        if len(set(names)) > 1:
            faults.append(f"The runs have different {what}: {', '.join(dict.fromkeys(names))}.")
    budgets = dict.fromkeys(str(group[0][2].get("budget")) for group in groups.values() if group[0][2].get("budget"))
    unfinished = any(entry.waiting for entry in entries)
    comparison = Comparison(
        command=(),
        model=manifests[0].model,
        data=manifests[0].data,
        budget=", ".join(budgets) or "unknown",
        seeds=tuple(sorted({one.seed for one in manifests})),
        contenders=tuple(entry.contender for entry in entries),
        status="interrupted" if unfinished else "finished",
    )
    return Found(comparison, tuple(entries), None, tuple(faults))


def _entry_of_runs(label: str, group: Sequence[tuple[Path, Manifest, dict[str, Json]]]) -> tuple[Entry, list[str]]:
    finished: dict[int, Run] = {}
    failures, waiting, odd = [], [], []
    for path, manifest, _ in sorted(group, key=lambda one: one[1].started):
        result = RunFolder(path).result()
        if manifest.status == "finished" and result is not None:
            if manifest.seed in finished:
                odd.append(f"{label} was run twice with seed {manifest.seed}; the later run counts.")
            finished[manifest.seed] = Run(path, manifest, result)
        elif manifest.status == "failed":
            failures.append(f"seed {manifest.seed} failed: {manifest.error or UNSAID}")
        else:
            waiting.append(f"{label}, seed {manifest.seed}, {manifest.status}")
    _, manifest, facts = group[0]
    probe = manifest.rate_probe
    rate = facts.get("learning_rate") or (probe.rate if probe is not None else None)
    contender = Contender(label=label, method=manifest.method, learning_rate=rate, rates=probe)
    runs = tuple(run for _, run in sorted(finished.items()))
    return Entry(contender, runs, tuple(failures), tuple(waiting)), odd


def _labels(groups: Sequence[Mapping[str, Json]]) -> list[str]:
    """A name for each group: the method's, and where several have it, the settings that they differ in."""
    names = [next(iter(group["method"]), BASE) for group in groups]
    flats = [_flat({**group, "method": next(iter(group["method"].values()), None)}) for group in groups]
    labels = []
    for name, own in zip(names, flats, strict=True):
        alike = [flat for other, flat in zip(names, flats, strict=True) if other == name]
        keys = [key for key in dict.fromkeys(key for flat in alike for key in flat) if _differ(key, alike)]
        said = ",".join(f"{key.removeprefix('method.')}={own.get(key)}" for key in keys)
        labels.append(f"{name}:{said}" if said else name)
    return labels


def _differ(key: str, flats: Iterable[Mapping[str, str]]) -> bool:
    return len({flat.get(key) for flat in flats}) > 1


def _flat(value: Json, name: str = "") -> dict[str, str]:
    """Nested mappings as dotted names to text."""
    if not isinstance(value, Mapping):
        return {name: str(value)}
    return {key: text for own, one in value.items() for key, text in _flat(one, f"{name}.{own}".strip(".")).items()}


def _neither(path: Path, *, alone: bool) -> str:
    if not alone and ComparisonFolder(path).file.is_file():
        return f"{path} is a comparison, and several folders have to be runs; name it alone, or name its runs"
    if not path.exists():
        return f"there is no folder {path}; name one that budwood compare or budwood train wrote"
    return (
        f"{path} holds neither a comparison.json nor a run.json, so it is neither a comparison nor a run; name a "
        "folder that budwood compare or budwood train wrote (budwood runs ls shows the runs there are)"
    )


def going_on(comparison: Comparison, folder: Path) -> str:
    """The command that takes a comparison or search up again."""
    return f"budwood {'search' if comparison.kind == 'search' else 'compare'} --resume {quote(str(folder))}"


def _unfinished(found: Found, path: Path) -> str:
    failures = [f"{entry.label}: {line}" for entry in found.entries for line in entry.failures]
    waiting = [line for entry in found.entries for line in entry.waiting]
    if waiting and found.folder is not None:
        return f"no run in {path} has finished yet ({waiting[0]}); go on with: {going_on(found.comparison, path)}"
    if waiting:
        return f"no run has finished yet ({waiting[0]}); go on with: budwood train --resume {quote(str(path))}"
    first = f" ({failures[0]})" if failures else ""
    return f"no run in {path} has finished{first}; mend that, then compare again"
