"""`search`: which method, of which size, at which learning rate, within a given time; and a run of the best of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from budwood.compare.compared import Compared
from budwood.compare.config import Comparing, Listener, Unheard
from budwood.compare.halving import FACTOR, FIRST, Costs, Entry, as_good, by_candidate, kept, ranked, scores_of
from budwood.compare.plan import bytes_of, contenders_of, default_methods, slug, stored
from budwood.compare.pool import Local
from budwood.compare.run import held, new_folder, settings_of, shared
from budwood.compare.runner import Runner
from budwood.compare.work import Task
from budwood.core import Method
from budwood.data import Template
from budwood.data.corpus import Task as DataTask
from budwood.errors import BadConfig
from budwood.methods import METHODS, method_from_dict
from budwood.records import BASE, Comparison, ComparisonFolder, Contender, Item, Trial
from budwood.records.amounts import duration
from budwood.records.files import Json
from budwood.train.config import Budget, TrainConfig
from budwood.train.job import Job, as_config

SHARE = 0.5
"""Of the time, what searching may take; the rest is the run's."""
LEAST = 0.25
"""Of the time, what the run gets at least."""


def search(
    model: Any,
    data: Any,
    *,
    budget: str,
    methods: Sequence[str | Method | Mapping[str, Any]] = (),
    memory: str | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    template: Template = "auto",
    task: DataTask | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
) -> Compared:
    """Try methods, sizes and learning rates by successive halving, then train the best of them in the time left.

    budget    the time for all of it: "20m", "1h30m"
    methods   those to try, a method without fields in several sizes; none given, all that work alone
    memory    peak memory that nothing tried may exceed
    Other arguments as in `budwood.compare`. The record's `trials` and `notes` say what was tried, and why this one.
    Raises BadConfig for a budget that is no time, or in which nothing could be tried, and what `compare` raises.
    """
    job = Job(
        model=model, data=data, config=as_config(config, budget=budget), tokenizer=tokenizer, columns=columns,
        template=template, task=task, out=None if out is None else Path(out),
    )  # fmt: skip
    return search_job(job, Comparing(methods=tuple(methods), memory=memory, search=False), listener=listener)


def search_job(job: Job, wanted: Comparing, *, listener: Listener | None = None) -> Compared:
    """Run a search, or go on with the one that is in `job.out`."""
    seconds_of(job.config.parsed_budget)
    candidates = candidates_of(wanted.methods)
    limits: dict[str, Json] = {} if wanted.memory is None else {"memory_bytes": bytes_of(wanted.memory)}
    folder = ComparisonFolder(job.out or new_folder(job, "search"))
    job = stored(replace(job, config=shared(job.config), name="default"), folder.path)
    comparison = Comparison(
        kind="search", command=job.command, model=job.model_name, data=job.data_name, budget=job.config.budget,
        seeds=(job.config.seed,), limits=limits, contenders=contenders_of(wanted.methods)[:1],
    )  # fmt: skip
    settings = {**settings_of(job), "candidates": {one.label: one.method for one in candidates}}
    comparison = held(folder, settings, comparison)
    wanted = replace(wanted, methods=tuple((one.label, one.method) for one in candidates), search=False)
    with closing(Local(folder.path / "log.txt")) as pool:
        searcher = Searcher(candidates, seconds_of(job.config.parsed_budget))
        Runner(folder, job, wanted, comparison, pool, listener or Unheard(), searcher.narrow).run()
    return Compared(folder)


def resume(where: str | Path, *, listener: Listener | None = None) -> Compared:
    """Go on with the search in a folder: what was tried is not tried again. Raises as `search` does."""
    folder = ComparisonFolder(Path(where))
    record, said = folder.read(), yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    if "candidates" not in said:
        raise BadConfig(f"{where} is a comparison; go on with it by budwood compare --resume {where}")
    candidates = said.pop("candidates")
    memory = record.limits.get("memory_bytes")
    wanted = Comparing(methods=tuple(candidates.items()), memory=None if memory is None else str(memory), search=False)
    return search_job(replace(Job.from_dict(said), out=folder.path, command=record.command), wanted, listener=listener)


def seconds_of(budget: Budget) -> float:
    """Of a budget that is a time. Raises BadConfig for steps, epochs and tokens."""
    if budget.unit != "s":
        raise BadConfig(f"a search stops on time, and the budget is {budget}; write --budget 20m or 1h30m")
    return budget.amount


def candidates_of(methods: Sequence[str | Method | Mapping[str, Any]]) -> tuple[Contender, ...]:
    """What is tried: each method as it is, then in its other sizes where nobody said its fields."""
    named = [one.label if isinstance(one, Contender) else one for one in methods] or list(default_methods())
    sizes = {method.name: method.sizes_to_try for method in METHODS}
    others = [
        f"{name}:{field}={value:g}"
        for name in named
        if isinstance(name, str) and name in sizes
        for field, values in [sizes[name]]
        for value in values[1:]
    ]
    return contenders_of([*named, *(label for label in others if label not in named)])[1:]


@dataclass
class Searcher:
    """Chooses what a `Runner` runs."""

    candidates: tuple[Contender, ...]
    total_s: float
    began: float = field(default_factory=time.monotonic)

    def narrow(self, runner: Runner) -> None:
        """Leave the base and the best candidate among the contenders, at its rate, with the time that is left."""
        chosen = next((one for one in runner.comparison.contenders if one.label != BASE), None)
        if chosen is None:
            winner, scores, rung = self._halve(runner)
            left = self.total_s - self._spent(runner)
            after = 3 * self._base_s(runner)  # loading, scoring and proving stand around the steps
            budget = f"{max(left - after, LEAST * self.total_s):.0f}s"
            label, rate = winner
            chosen = replace(self._candidate(label), learning_rate=rate)
            runner.comparison = replace(
                runner.comparison, contenders=(runner.comparison.contenders[0], chosen), budget=budget,
                notes=tuple(self._reasons(runner, winner, scores, rung)),
            )  # fmt: skip
            runner.folder.write(runner.comparison)
        config = replace(
            runner.job.config, learning_rate=chosen.learning_rate, rates=None, budget=runner.comparison.budget
        )
        runner.job = replace(runner.job, config=config)

    def _halve(self, runner: Runner) -> tuple[Entry, dict[Entry, float], int]:
        """(the best, the losses of the round that chose it, its number)."""
        alive = {one.label: method_from_dict(one.method).grid for one in self.candidates}
        scores: dict[Entry, float] = {}
        steps, rung = FIRST, 0
        while True:
            found = self._round(runner, alive, steps, rung)
            if not found and rung == 0:
                raise self._nothing(runner)
            if not found:
                return ranked(scores)[0], scores, rung - 1
            scores = found
            survivors = kept(scores)
            if len(survivors) == 1:
                return survivors[0], scores, rung
            alive, steps, rung = by_candidate(survivors), steps * FACTOR, rung + 1

    def _round(
        self, runner: Runner, alive: Mapping[str, tuple[float, ...]], steps: int, rung: int
    ) -> dict[Entry, float]:
        """The losses of a round; none of a later one that there is no time for as a whole."""
        done = {(one.label, one.rung) for one in runner.comparison.trials}
        waiting = [label for label in alive if (label, rung) not in done]
        costs = Costs(runner.comparison.trials)
        whole = sum(costs.expected(label, len(alive[label]), steps) for label in waiting)
        if rung and whole > self._left(runner):
            return {}
        for label in waiting:
            expected = Costs(runner.comparison.trials).expected(label, len(alive[label]), steps)
            if rung == 0 and expected > self._left(runner):
                break
            self._try(runner, label, alive[label], steps, rung)
        return scores_of(runner.comparison.trials, rung)

    def _try(self, runner: Runner, label: str, rates: tuple[float, ...], steps: int, rung: int) -> None:
        candidate = self._candidate(label)
        config = replace(
            runner.job.config, rates="+".join(f"{rate:g}" for rate in rates), learning_rate=None,
            budget=f"{FACTOR * steps}steps",
        )  # fmt: skip
        task = Task(
            kind="trial", name=f"{label}, {steps} steps at {', '.join(f'{rate:g}' for rate in rates)}", steps=steps,
            config=replace(runner.job, method=method_from_dict(candidate.method), config=config).to_dict(),
            out=str((runner.folder.path / "runs" / f"trial-{slug(label)}").absolute()),
            limit_bytes=runner.comparison.limits.get("memory_bytes"), command=runner.job.command,
            trust_remote_code=runner.job.trust_remote_code,
        )  # fmt: skip
        heard: dict[str, Json] = {}

        def hear(task: Task, event: Mapping[str, Json]) -> None:
            if event["event"] == "preflight":
                heard.update(event)
            runner.listener.hear(task, event)

        runner.listener.begin(task, len(runner.comparison.trials) + 1, 0)
        ((_, outcome),) = runner.pool.outcomes([task], hear)
        if outcome.get("kind") == "interrupted":
            raise KeyboardInterrupt
        trial = Trial(
            label=label, rung=rung, steps=steps, rates=tuple(outcome.get("rates", rates)),
            losses=tuple(outcome.get("losses", (None,) * len(rates))), error=outcome.get("error"),
            step_s=float(heard.get("step_s", 0.0)), seconds=float(outcome.get("seconds", 0.0)),
        )  # fmt: skip
        runner.comparison = replace(runner.comparison, trials=(*runner.comparison.trials, trial))
        runner.folder.write(runner.comparison)
        status: Any = "failed" if trial.error else "finished"
        item = Item(name=task.name, label=BASE, seed=0, status=status, error=trial.error, seconds=trial.seconds)
        runner.listener.end(item, runner.comparison)

    def _candidate(self, label: str) -> Contender:
        return next(one for one in self.candidates if one.label == label)

    def _base_s(self, runner: Runner) -> float:
        return sum(one.seconds or 0.0 for one in runner.comparison.items if one.label == BASE)

    def _spent(self, runner: Runner) -> float:
        known = self._base_s(runner) + sum(one.seconds for one in runner.comparison.trials)
        return max(known, time.monotonic() - self.began)  # what was done before a stop counts, too

    def _left(self, runner: Runner) -> float:
        """Seconds that searching may still take."""
        return SHARE * self.total_s - self._spent(runner)

    def _nothing(self, runner: Runner) -> BadConfig:
        """Why there is no best."""
        trials = runner.comparison.trials
        if not trials:
            least = 2 * self._base_s(runner) / SHARE
            return BadConfig(
                f"scoring the untuned model took {duration(self._base_s(runner))} of {duration(self.total_s)}, and "
                f"nothing could be tried; give at least --budget {least / 60:.0f}m, or fewer test_rows"
            )
        said = "; ".join(f"{one.label}: {one.error or 'diverged at every learning rate'}" for one in trials[:3])
        return BadConfig(f"none of {len(trials)} candidates came through {FIRST} steps ({said})")

    def _reasons(self, runner: Runner, winner: Entry, scores: Mapping[Entry, float], rung: int) -> list[str]:
        """What was tried, why this one, how surely, and what was not tried."""
        trials, (label, rate) = runner.comparison.trials, winner
        first = [one for one in trials if one.rung == 0]
        failed = [one for one in first if not one.scores]
        unseen = [one.label for one in self.candidates if one.label not in {trial.label for trial in first}]
        steps = next(one.steps for one in trials if one.rung == rung)
        said = [
            f"Chosen: {label} at learning rate {rate:g}, with the lowest loss on held-out rows "
            f"({scores[winner]:.4g} nats) of {len(scores)} that got {steps} steps, in round {rung + 1} of successive "
            f"halving; in all {sum(len(one.rates) for one in first)} were tried, in {duration(self._spent(runner))} of "
            f"{duration(self.total_s)}."
        ]  # fmt: skip
        near = [f"{name} at {other:g} ({scores[name, other]:.4g})" for name, other in as_good(scores)]
        if near:
            said.append(f"As good, as far as {steps} steps can tell: {', '.join(near)}.")
        said += [
            f"Round {number + 1}, {one.steps} steps, {one.label}: "
            + (one.error or ", ".join(f"{r:g} {'diverged' if x is None else f'{x:.4g}'}" for r, x in _pairs(one)))
            for number in range(rung + 1)
            for one in trials
            if one.rung == number and one not in failed
        ]
        said += [f"Not tried further, {one.label}: {one.error or 'diverged at every learning rate'}" for one in failed]
        if unseen:
            said.append(f"Never tried, for want of time: {', '.join(unseen)}.")
        return said


def _pairs(trial: Trial) -> list[tuple[float, float | None]]:
    return list(zip(trial.rates, trial.losses, strict=True))
