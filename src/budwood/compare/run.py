"""`compare`: the base, then every method at every seed, each in its own process; what is there is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import yaml

from budwood.compare.compared import Compared
from budwood.compare.plan import Planned, bytes_of, contenders_of, positions, seeds_of, slug, stored
from budwood.compare.pool import Local, OnRay, Outcome, Pool
from budwood.compare.work import Task
from budwood.core import Method
from budwood.data import Template
from budwood.data.corpus import Task as DataTask
from budwood.errors import BadConfig, WrongOrder
from budwood.records import BASE, Comparison, ComparisonFolder, Item, RateProbe
from budwood.records.files import Json, not_writable, plain, write_text
from budwood.records.machine import installed
from budwood.records.manifest import now
from budwood.report.write import write
from budwood.train.config import TrainConfig
from budwood.train.job import Job, as_config

BUDGET = "200steps"
"""What each run may train where nobody says, unless three epochs are less."""
MOST_EPOCHS = 3
TIMED = "1+8"
"""Batch sizes at which answers are timed."""
REFUSALS = ("BadConfig", "NoSuchSite", "NoSuchAdapter", "CannotFold", "WrongOrder")
"""Errors that mean: this method is not for this model or task."""


class Listener(Protocol):
    """Told how a comparison goes."""

    def plan(self, comparison: Comparison) -> None:
        """What is going to be done."""

    def begin(self, task: Task, number: int, total: int) -> None:
        """A task begins."""

    def hear(self, task: Task, event: Mapping[str, Json]) -> None:
        """What it tells."""

    def end(self, item: Item, comparison: Comparison) -> None:
        """One has ended."""


class Unheard:
    """A listener that says nothing."""

    def plan(self, comparison: Comparison) -> None:
        """Nothing."""

    def begin(self, task: Task, number: int, total: int) -> None:
        """Nothing."""

    def hear(self, task: Task, event: Mapping[str, Json]) -> None:
        """Nothing."""

    def end(self, item: Item, comparison: Comparison) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Comparing:
    """What to compare, and how far."""

    methods: tuple[Any, ...] = ()
    """Methods as words, mappings or values; none takes all that work alone."""
    seeds: int | tuple[int, ...] = 1
    """How many seeds each method is trained with, or which."""
    memory: str | None = None
    """Peak memory that no run may exceed, as 6GiB."""
    search: bool = True
    """Try three learning rates for each method with the first seed; else take each method's own."""
    ray: bool = False
    """Do the runs as Ray tasks."""


def compare(
    model: Any,
    data: Any,
    *,
    methods: Sequence[str | Method | Mapping[str, Any]] = (),
    budget: str | None = None,
    seeds: int | Sequence[int] = 1,
    memory: str | None = None,
    search: bool = True,
    ray: bool = False,
    config: TrainConfig | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    template: Template = "auto",
    task: DataTask | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Compared:
    """Train several methods on the same rows in the same order with the same budget, and see which to use.

    model, data   as in `budwood.train`
    methods       those to compare; none given, all that work alone. The untuned base is always among them
    budget        what each run may train: "200steps", "1epochs", "100ktokens", "5m"
    seeds         how many, or which; one tells nothing of how much another would differ
    memory        peak memory that no run may exceed; methods that would are left out, with what they need
    search        try three learning rates for each method, with the first seed, on validation rows
    ray           do the runs as Ray tasks, one a device
    config        a `TrainConfig` or its fields, for all runs
    out           the folder of the comparison; one that is there is gone on with: what is finished is not done again

    Returns a `budwood.compare.compared.Compared`. A method that fails is in the report as failed. Raises BadConfig (2),
    BadData (3), NotAvailable (4) where no run could be made; KeyboardInterrupt after Ctrl-C, when what ran is saved.
    """
    said = as_config(config, budget=budget)
    if budget is None and not isinstance(config, TrainConfig) and "budget" not in (config or {}):
        said = replace(said, budget=BUDGET)
    job = Job(
        model=model, data=data, config=said, tokenizer=tokenizer, columns=columns, template=template, task=task,
        out=None if out is None else Path(out),
    )  # fmt: skip
    wanted = Comparing(
        methods=tuple(methods), seeds=seeds if isinstance(seeds, int) else tuple(seeds), memory=memory, search=search,
        ray=ray,
    )  # fmt: skip
    return compare_job(job, wanted, listener=listener)


def compare_job(job: Job, wanted: Comparing, *, listener: Listener | None = None) -> Compared:
    """Run a comparison, or go on with the one that is in `job.out`."""
    contenders = contenders_of(wanted.methods)
    seeds = seeds_of(wanted.seeds, job.config.seed)
    limits: dict[str, Json] = {} if wanted.memory is None else {"memory_bytes": bytes_of(wanted.memory)}
    folder = ComparisonFolder(job.out or _new_folder(job))
    job = stored(replace(job, config=_shared(job.config), name="default"), folder.path)
    comparison = Comparison(
        command=job.command, model=job.model_name, data=job.data_name, budget=job.config.budget, seeds=seeds,
        limits=limits, contenders=contenders,
    )  # fmt: skip
    held = _held(folder, {**_settings(job), "search": wanted.search}, comparison)
    with closing(_pool(folder, wanted, job)) as pool:
        runner = _Runner(folder, job, wanted, held, pool, listener or Unheard())
        runner.run()
    return Compared(folder)


def predict(job: Job, wanted: Comparing, *, listener: Listener | None = None) -> list[dict[str, Json]]:
    """What each method would need, from a few steps that leave no trace: a mapping each, with "error" or times."""
    import tempfile

    contenders = contenders_of(wanted.methods)
    plan = Planned(job, wanted.search)
    found = []
    with tempfile.TemporaryDirectory() as place, closing(Local(Path(place) / "log.txt")) as pool:
        job = stored(job, Path(place))
        tasks = [
            Task(kind="probe", name=one.label, out=str(Path(place) / slug(one.label)),
                 config=plan.of(one, job.config.seed, budget=job.config.budget, rate=None).to_dict())
            for one in contenders if one.label != BASE
        ]  # fmt: skip
        for task, outcome in pool.outcomes(tasks, (listener or Unheard()).hear):
            found.append({"label": task.name, **outcome})
    return found


class _Runner:
    """One comparison while it runs."""

    def __init__(
        self, folder: ComparisonFolder, job: Job, wanted: Comparing, comparison: Comparison, pool: Pool,
        listener: Listener,
    ) -> None:  # fmt: skip
        self.folder, self.wanted, self.pool, self.listener = folder, wanted, pool, listener
        self.job, self.comparison, self.number = job, comparison, 0

    def run(self) -> None:
        """Everything; comparison.json says at each moment how it stands."""
        self.comparison = self.folder.begun(self.comparison, budwood=installed("budwood") or "")
        try:
            self._look_at_base()
            plan = Planned(self.job, self.wanted.search)
            self._renew_items(plan)
            self.listener.plan(self.comparison)
            for seed in self.comparison.seeds:
                self._do(plan, [one for one in self.comparison.items if one.seed == seed and one.label != BASE])
        except KeyboardInterrupt as stop:
            self._end("interrupted")
            told = KeyboardInterrupt(
                "stopped; what was finished is kept, and what was running has saved its state; go on with: "
                f"budwood compare --resume {quote(str(self.folder.path))}"
            )
            told.exit_code = vars(stop).get("exit_code", 130)  # type: ignore[attr-defined]  # of the command line
            raise told from stop
        except BaseException:
            self._end("failed")
            raise
        self._end("finished")
        write(self.folder.path, self.folder.path)

    def _look_at_base(self) -> None:
        """The untuned model's run; its precision, rows and lengths are those of all."""
        method = positions(self.comparison.contenders)
        config = self.job.config
        task = Task(
            kind="base", name=BASE, out=str((self.folder.path / "runs" / BASE).absolute()), command=self.job.command,
            config=replace(self.job, method=method, config=replace(config, budget="1steps")).to_dict(),
            trust_remote_code=self.job.trust_remote_code,
        )  # fmt: skip
        known = self.folder.path / "runs" / BASE
        old = _looked(known)
        self.listener.begin(task, 0, 0)
        (_, found), *_ = list(self.pool.outcomes([task], self.listener.hear))
        if "error" in found:
            raise _as_error(found)
        if old is not None and old != found["hash"]:
            raise BadConfig(
                f"{self.job.data_name} holds other rows than when {self.folder.path} was begun; choose another --out"
            )
        budget = config.budget
        if budget == BUDGET and found["steps_per_epoch"] * MOST_EPOCHS < int(BUDGET.removesuffix("steps")):
            budget = f"{found['steps_per_epoch'] * MOST_EPOCHS}steps"
        self.job = replace(
            self.job,
            config=replace(config, precision=found["precision"], max_length=found["max_length"], budget=budget),
        )
        self.comparison = replace(self.comparison, task=found["task"], budget=budget)
        self._set(
            Item(name=BASE, label=BASE, seed=self.comparison.seeds[0], status="finished", seconds=found["seconds"])
        )

    def _renew_items(self, plan: Planned) -> None:
        """All runs that are wanted, with what is known of those that were done before."""
        known = {one.name: one for one in self.comparison.items}
        items = plan.items(self.comparison.contenders, self.comparison.seeds, budget=self.comparison.budget)
        kept = [known.get(one.name, one) for one in items]
        self.comparison = replace(self.comparison, items=tuple(kept))
        self.folder.write(self.comparison)

    def _do(self, plan: Planned, items: Sequence[Item]) -> None:
        """The runs of one seed, those that are finished left out."""
        todo = []
        for item in items:
            contender = self.comparison.contender(item.label)
            if item.status == "finished" or contender.verdict in ("refused", "left out"):
                continue
            rate = contender.learning_rate if item.seed != self.comparison.seeds[0] else None
            job = plan.of(contender, item.seed, budget=self.comparison.budget, rate=rate)
            todo.append((self._task(job, item), item))
        if not self.wanted.ray:
            for task, item in todo:
                self._one(task, item)
            return
        by_out = {task.out: item for task, item in todo}
        for task, outcome in self.pool.outcomes([task for task, _ in todo], self.listener.hear):
            self._take(by_out[task.out], outcome)

    def _task(self, job: Job, item: Item) -> Task:
        return Task(
            kind="train",
            name=item.name,
            config=job.to_dict(),
            out=str(self.folder.run(item).path.absolute()),
            command=job.command,
            baseline=str((self.folder.path / "runs" / BASE).absolute()),
            limit_bytes=self.comparison.limits.get("memory_bytes"),
            trust_remote_code=job.trust_remote_code,
        )

    def _one(self, task: Task, item: Item) -> None:
        self.number += 1
        total = sum(one.status != "finished" for one in self.comparison.items) + self.number - 1
        self.listener.begin(task, self.number, total)
        self._set(replace(item, status="running"))
        heard: dict[str, Json] = {}

        def hear(task: Task, event: Mapping[str, Json]) -> None:
            if event["event"] == "preflight":
                heard.update(event)
            self.listener.hear(task, event)

        for _, outcome in self.pool.outcomes([task], hear):
            self._take(item, {**heard, **outcome})

    def _take(self, item: Item, outcome: Outcome) -> None:
        """What came of a run: into comparison.json."""
        error, kind = outcome.get("error"), outcome.get("kind")
        status: Any = "finished" if error is None else "interrupted" if kind == "interrupted" else "failed"
        done = replace(item, status=status, error=error, seconds=outcome.get("seconds"))
        contender = self.comparison.contender(item.label)
        known = {name: outcome[name] for name in ("trained_count", "step_s", "predicted_bytes") if name in outcome}
        contender = replace(contender, **known)
        if outcome.get("rates"):
            probe = RateProbe.from_dict(outcome["rates"], where="a run")
            contender = replace(contender, rates=probe, learning_rate=probe.rate)
        if kind in REFUSALS:
            contender = replace(contender, verdict="refused", why=error)
        elif kind == "OutOfMemory" and "over the limit" in str(error):
            contender = replace(contender, verdict="left out", why=error)
        elif error is not None and kind != "interrupted" and contender.verdict == "ready":
            contender = replace(contender, verdict="failed", why=error)
        elif error is None:
            contender = replace(contender, verdict="ready", why=None)
        rest = tuple(contender if one.label == contender.label else one for one in self.comparison.contenders)
        self.comparison = replace(self.comparison, contenders=rest)
        self._set(done)
        self.listener.end(done, self.comparison)

    def _set(self, item: Item) -> None:
        others = [one for one in self.comparison.items if one.name != item.name]
        if len(others) == len(self.comparison.items):
            items = (*self.comparison.items, item)
        else:
            items = tuple(item if one.name == item.name else one for one in self.comparison.items)
        self.comparison = replace(self.comparison, items=items)
        self.folder.write(self.comparison)

    def _end(self, status: Any) -> None:
        items = [replace(one, status=status) if one.status == "running" else one for one in self.comparison.items]
        self.comparison = replace(self.comparison, items=tuple(items), status=status, finished=now())
        self.folder.write(self.comparison)


def _shared(config: TrainConfig) -> TrainConfig:
    """What all runs have in common: batches that are timed, and the rows that are held out whatever their seed."""
    return replace(
        config, timed_batches=TIMED, split_seed=config.seed if config.split_seed is None else config.split_seed
    )


def _pool(folder: ComparisonFolder, wanted: Comparing, job: Job) -> Pool:
    return OnRay(job.config.device) if wanted.ray else Local(folder.path / "log.txt")


def _new_folder(job: Job) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-compare-{slug(Path(job.model_name).name)}"
    return job.root / stem


def resume(where: str | Path, *, ray: bool = False, listener: Listener | None = None) -> Compared:
    """Go on with the comparison in a folder: what is finished is not done again.

    Raises NotAvailable where there is none, and what `compare` does.
    """
    folder = ComparisonFolder(Path(where))
    record, said = folder.read(), yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    search = bool(said.pop("search", True))
    job = replace(Job.from_dict(said), out=folder.path, command=record.command)
    memory = record.limits.get("memory_bytes")
    wanted = Comparing(
        methods=tuple((one.label, one.method) for one in record.contenders if one.label != BASE),
        seeds=record.seeds,
        memory=None if memory is None else str(memory),
        search=search,
        ray=ray,
    )
    return compare_job(job, wanted, listener=listener)


def _held(folder: ComparisonFolder, settings: dict[str, Json], comparison: Comparison) -> Comparison:
    """The comparison with what is in its folder already, which is made where it is not there.

    Raises BadConfig where something else is there, or other settings; WrongOrder where it is still running.
    """
    settings = plain(settings)
    said = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    path = folder.path / "config.yaml"
    if folder.file.is_file():
        old = folder.read()
        if old.status == "running":
            raise WrongOrder(f"{folder.path} is still being compared by process {(old.process or {}).get('pid')}")
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if before.get(name) != value:
                raise BadConfig(
                    f"{folder.path} compares with {name} {before.get(name)}, and now it is {value}; runs would not be "
                    "alike: keep it, or choose another --out"
                )
        known = {one.label: one for one in old.contenders}
        merged = {**known, **{one.label: known.get(one.label, one) for one in comparison.contenders}}
        again = [replace(one, verdict="ready", why=None) for one in merged.values()]
        seeds = tuple(dict.fromkeys((*old.seeds, *comparison.seeds)))
        return replace(old, contenders=tuple(again), seeds=seeds, limits=comparison.limits, command=comparison.command)
    inside = (
        [one.name for one in folder.path.iterdir() if one.name not in ("model", "data")] if folder.path.is_dir() else []
    )
    if inside:
        raise BadConfig(f"{folder.path} is not empty ({inside[0]}) and no comparison; choose a new or empty --out")
    try:
        (folder.path / "runs").mkdir(parents=True, exist_ok=True)
        write_text(path, said)
    except OSError as error:
        raise not_writable(folder.path, error) from error
    return comparison


def _settings(job: Job) -> dict[str, Json]:
    """What all runs of a comparison share."""
    return {key: value for key, value in job.to_dict().items() if key not in ("method", "seed")}


def _looked(run: Path) -> str | None:
    """The hash of the rows that the base was examined on before; None where it was not."""
    from budwood.records import RunFolder

    if not (run / "result.json").is_file():
        return None
    return str(RunFolder(run).data().get("hash"))


def _as_error(outcome: Outcome) -> BaseException:
    """The error that a process met, as one of this process."""
    import budwood.errors as errors

    if outcome["kind"] == "interrupted":
        return KeyboardInterrupt()
    kinds = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    kind = kinds.get(str(outcome["kind"]), RuntimeError)
    assert issubclass(kind, BaseException)
    return kind(outcome["error"])
