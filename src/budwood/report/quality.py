"""What quality is for each task, read off the lines of predictions.jsonl, and how methods differ in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite

import numpy as np

from budwood.errors import BadCheckpoint, BadConfig
from budwood.intervals import wilson
from budwood.records import BASE, Result
from budwood.records.files import Json
from budwood.report.runs import Entry, Run
from budwood.report.statistics import Draws, Scored, draw
from budwood.report.table import Estimate, Method, Metric

Row = tuple[Json, ...]
"""What tells a test row from any other: its number, its file without the folders above, its prompt."""
Values = Mapping[str, float]


@dataclass(frozen=True)
class Kind:
    """A metric, and the part of one row in it: all metrics are a sum over another."""

    metric: Metric
    part: Callable[[Values], float]
    whole: Callable[[Values], float]


def _one(values: Values) -> float:
    return 1.0


PERPLEXITY = Kind(
    Metric(name="perplexity", higher_is_better=False, difference="nats per token"),
    lambda values: values["loss_sum"],
    lambda values: values["tokens"],
)
ACCURACY = Kind(
    Metric(name="accuracy", higher_is_better=True, difference="points of accuracy"),
    lambda values: values["accuracy"],
    _one,
)
KINDS: Mapping[str, Kind] = {
    "causal-lm": PERPLEXITY,
    "seq2seq": PERPLEXITY,
    "masked-lm": PERPLEXITY,
    "classification": ACCURACY,
    "cloze": ACCURACY,
    "token-classification": Kind(
        Metric(name="span_f1", higher_is_better=True, difference="points of span F1"),
        lambda values: 2 * values["spans_right"],
        lambda values: values["spans_said"] + values["spans"],
    ),
    "question-answering": Kind(
        Metric(name="token_f1", higher_is_better=True, difference="points of token F1"),
        lambda values: values["token_f1"],
        _one,
    ),
}


@dataclass(frozen=True)
class Compared:
    """What the test rows say of the methods that were scored on the same ones."""

    methods: tuple[Method, ...]
    """All that were given, in the same order, with their quality."""
    rows: int
    between: dict[str, dict[str, Estimate]]
    faults: tuple[str, ...]
    """Why some are not compared, or on fewer rows."""


def compare(entries: Sequence[Entry], methods: Sequence[Method], task: str) -> Compared:
    """Methods with their quality and differences, on the rows that all comparable ones were scored on.

    Raises BadConfig where several were scored and no two of them on the same rows.
    """
    kind = KINDS.get(task)
    if kind is None:
        return Compared(tuple(methods), 0, {}, (f"There is no quality to compare for the task {task}.",))
    same, faults = _comparable(entries, task)
    tables = {entry.label: [_rows(run, kind) for run in entry.finished] for entry in same}
    wild = [label for label, group in tables.items() if not all(map(isfinite, _parts(group)))]
    faults += [f"{label} has losses that are no finite numbers, so it is not compared." for label in wild]
    tables = {label: group for label, group in tables.items() if label not in wild}
    common, fewer = _common(tables)
    faults += fewer
    scored = {
        label: Scored(
            tuple(run.seed for run in entry.finished),
            np.array([[table[row][0] for row in common] for table in tables[label]], np.float64),
            np.array([[table[row][1] for row in common] for table in tables[label]], np.float64),
        )
        for entry in same
        if (label := entry.label) in tables
    }
    if not scored:
        alone = tuple(_by_itself(entry, one, kind) for entry, one in zip(entries, methods, strict=True))
        return Compared(alone, 0, {}, tuple(faults))
    sign = 1 if kind.metric.higher_is_better else -1
    draws = draw(scored, is_share=kind.metric.higher_is_better, sign=sign)
    between = draws.between()
    best = max(scored, key=lambda label: draws.observed[draws.labels.index(label)])
    full = next((entry.label for entry in same if entry.is_full and entry.label in scored), None)
    found = []
    for entry, one in zip(entries, methods, strict=True):
        if one.label not in scored:
            found.append(_by_itself(entry, one, kind))
            continue
        below = between[one.label][best]
        found.append(
            replace(
                one,
                quality=_quality(draws, scored[one.label], one.label, kind),
                by_seed=tuple(_shown(float(value), kind) for value in scored[one.label].by_seed),
                over_base=draws.over(one.label, BASE) if BASE in scored else None,
                over_full=draws.over(one.label, full) if full is not None else None,
                below_best=below,
                is_best=one.label == best,
                may_be_best=below.high >= 0,
            )
        )
    return Compared(tuple(found), len(common), between, tuple(faults))


def ranked(methods: Sequence[Method], metric: Metric | None) -> tuple[Method, ...]:
    """The base first, then the best observed first, then those without a result."""

    def place(one: Method) -> tuple[bool, bool, float]:
        value = one.quality.value if one.quality is not None else 0.0
        worse = value if metric is None or not metric.higher_is_better else -value
        return one.label != BASE, one.quality is None, worse

    return tuple(sorted(methods, key=place))


def _comparable(entries: Sequence[Entry], task: str) -> tuple[list[Entry], list[str]]:
    """(entries whose finished runs have the task, the data hash that most have, and predictions; what is said)."""
    faults, fit = [], []
    for entry in (entry for entry in entries if entry.finished):
        others = sorted({run.task for run in entry.finished} - {task})
        if others:
            faults.append(f"{entry.label} was trained for {', '.join(others)}, not {task}, so it is not compared.")
        elif any(not run.predictions for run in entry.finished):
            faults.append(f"{entry.label} has no predictions row by row; its quality has an interval of its own only.")
        else:
            fit.append(entry)
    hashes = [run.data_hash for entry in fit for run in entry.finished]
    usual = max(hashes, key=hashes.count, default=None)  # of equals, the first
    same = [entry for entry in fit if all(run.data_hash == usual for run in entry.finished)]
    faults += [f"{one.label} was scored on other data, so it is not compared." for one in fit if one not in same]
    if len(same) == 1 and len(fit) > 1:
        raise BadConfig(
            f"{', '.join(entry.label for entry in fit)} were scored on different data, no two on the same, so nothing "
            "can be compared; name runs on the same data, or compare anew with budwood compare"
        )
    return same, faults


def _rows(run: Run, kind: Kind) -> dict[Row, tuple[float, float]]:
    """Each test row's part of both sums."""
    found = {}
    for line in run.predictions:
        try:
            values = {name: float(value) for name, value in line["values"].items()}
            key = (line["row"], str(line["where"]).replace("\\", "/").rpartition("/")[2], line["prompt"])
            part, whole = kind.part(values), kind.whole(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadCheckpoint(
                f"{run.folder}/predictions.jsonl: a line lacks what {kind.metric.name} is made of ({error!r}); "
                "restore the file or run again"
            ) from error
        found[key] = (part, whole)
    return found


def _parts(group: Sequence[Mapping[Row, tuple[float, float]]]) -> list[float]:
    return [part for table in group for part, _ in table.values()]


def _common(tables: Mapping[str, list[dict[Row, tuple[float, float]]]]) -> tuple[list[Row], list[str]]:
    """(the rows that every run of every method has, in order; what is said where there are fewer than some have)."""
    flat = [table for group in tables.values() for table in group]
    common = [row for row in (flat[0] if flat else {}) if all(row in table for table in flat)]
    if flat and not common:
        raise BadConfig(
            f"{', '.join(tables)} have no test row in common, so nothing can be compared; name runs with the same data "
            "and test_rows, or compare anew with budwood compare"
        )
    sizes = {label: max(map(len, group)) for label, group in tables.items()}
    if max(sizes.values(), default=0) == len(common):
        return common, []
    said = ", ".join(f"{label} {size:,}" for label, size in sizes.items())
    return common, [f"Methods were scored on different rows ({said}); only the {len(common):,} in common count."]


def _quality(draws: Draws, scored: Scored, label: str, kind: Kind) -> Estimate:
    found = draws.of(label)
    if not kind.metric.higher_is_better:  # ratios were turned
        return Estimate(value=_shown(-found.value, kind), low=_shown(-found.high, kind), high=_shown(-found.low, kind))
    low, high = max(0.0, found.low), min(1.0, found.high)
    if kind is ACCURACY:
        rows = scored.parts.shape[1]
        least, most = wilson(found.value * rows, rows)
        single = len(scored.seeds) == 1
        low, high = (least, most) if single else (min(low, least), max(high, most))
    return Estimate(value=found.value, low=low, high=high)


def _shown(ratio: float, kind: Kind) -> float:
    """The metric of a ratio: perplexity for nats."""
    if kind.metric.higher_is_better:
        return ratio
    return exp(ratio) if ratio < 700 else float("inf")


def _by_itself(entry: Entry, method: Method, kind: Kind) -> Method:
    """With the quality that its first finished run's result.json states, where it is of the same metric."""
    score = next((found for run in entry.finished if (found := _score(run.result, kind.metric.name))), None)
    return method if score is None else replace(method, quality=score)


def _score(result: Result, name: str) -> Estimate | None:
    scores = {quality.metric: quality.score for quality in result.quality}
    one = scores.get(name)
    return None if one is None else Estimate(value=one.value, low=one.low, high=one.high)
