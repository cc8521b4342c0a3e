"""One comparison while it runs: its tasks in order, and comparison.json as they end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from budwood.compare.config import BUDGET, MOST_EPOCHS, Comparing, Listener
from budwood.compare.plan import Planned, contenders_of, positions
from budwood.compare.pool import Outcome, Pool
from budwood.compare.work import Task
from budwood.errors import BadConfig
from budwood.records import BASE, Comparison, ComparisonFolder, Item, RateProbe, RunFolder
from budwood.records.files import Json
from budwood.records.machine import installed
from budwood.records.manifest import now
from budwood.report.write import write
from budwood.train.job import Job

REFUSALS = ("BadConfig", "NoSuchSite", "NoSuchAdapter", "CannotFold", "WrongOrder")
"""Errors that mean: this method is not for this model or task."""

VERB = {"comparison": "compare", "search": "search"}
"""What makes each kind of record."""


class Runner:
    """One comparison while it runs."""

    def __init__(
        self, folder: ComparisonFolder, job: Job, wanted: Comparing, comparison: Comparison, pool: Pool,
        listener: Listener, narrow: Callable[[Runner], None] | None = None,
    ) -> None:  # fmt: skip
        """narrow: chooses what is run, once the base was looked at."""
        self.narrow = narrow
        self.folder, self.wanted, self.pool, self.listener = folder, wanted, pool, listener
        self.job, self.comparison, self.number = job, comparison, 0

    def run(self) -> None:
        """Everything; comparison.json says at each moment how it stands."""
        self.comparison = self.folder.begun(self.comparison, budwood=installed("budwood") or "")
        try:
            self._look_at_base()
            if self.narrow is not None:
                self.narrow(self)
            plan = Planned(self.job, self.wanted.search)
            self._renew_items(plan)
            self.listener.plan(self.comparison)
            for seed in self.comparison.seeds:
                self._do(plan, [one for one in self.comparison.items if one.seed == seed and one.label != BASE])
        except KeyboardInterrupt as stop:
            self._end("interrupted")
            told = KeyboardInterrupt(
                "stopped; what was finished is kept, and what was running has saved its state; go on with: "
                f"budwood {VERB[self.comparison.kind]} --resume {quote(str(self.folder.path))}"
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
        method = positions(contenders_of(self.wanted.methods))
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


def _looked(run: Path) -> str | None:
    """The hash of the rows that the base was examined on before; None where it was not."""
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
