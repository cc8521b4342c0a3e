"""`compare`: the base, then every method at every seed, each in its own process; what is there is not done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from budwood.compare.compared import Compared
from budwood.compare.config import BUDGET, TIMED, Comparing, Listener, Unheard
from budwood.compare.plan import Planned, bytes_of, contenders_of, seeds_of, slug, stored
from budwood.compare.pool import Local, OnRay, Pool
from budwood.compare.runner import Runner
from budwood.compare.work import Task
from budwood.core import Method
from budwood.data import Template
from budwood.data.corpus import Task as DataTask
from budwood.errors import BadConfig, WrongOrder
from budwood.records import BASE, Comparison, ComparisonFolder
from budwood.records.files import Json, not_writable, plain, write_text
from budwood.train.config import TrainConfig
from budwood.train.job import Job, as_config


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
    folder = ComparisonFolder(job.out or new_folder(job))
    job = stored(replace(job, config=shared(job.config), name="default"), folder.path)
    comparison = Comparison(
        command=job.command, model=job.model_name, data=job.data_name, budget=job.config.budget, seeds=seeds,
        limits=limits, contenders=contenders,
    )  # fmt: skip
    found = held(folder, {**settings_of(job), "search": wanted.search}, comparison)
    with closing(_pool(folder, wanted, job)) as pool:
        runner = Runner(folder, job, wanted, found, pool, listener or Unheard())
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


def shared(config: TrainConfig) -> TrainConfig:
    """What all runs have in common: batches that are timed, and the rows that are held out whatever their seed."""
    return replace(
        config, timed_batches=TIMED, split_seed=config.seed if config.split_seed is None else config.split_seed
    )


def _pool(folder: ComparisonFolder, wanted: Comparing, job: Job) -> Pool:
    return OnRay(job.config.device) if wanted.ray else Local(folder.path / "log.txt")


def new_folder(job: Job, verb: str = "compare") -> Path:
    """A folder of its own among the runs."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{verb}-{slug(Path(job.model_name).name)}"
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


def held(folder: ComparisonFolder, settings: dict[str, Json], comparison: Comparison) -> Comparison:
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


def settings_of(job: Job) -> dict[str, Json]:
    """What all runs of a comparison share."""
    return {key: value for key, value in job.to_dict().items() if key not in ("method", "seed")}
