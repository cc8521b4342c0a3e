"""A comparison as one page that needs nothing else: which method to use, why, and all that speaks for or against it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from budwood.records import BASE
from budwood.records.amounts import plain_number
from budwood.records.pages import render, shortened
from budwood.report.answers import Shown, shown
from budwood.report.axes import AXES
from budwood.report.columns import Cell, Column, columns, say_quality
from budwood.report.curves import over_seconds, over_steps
from budwood.report.drawing import cut, scatter, styles
from budwood.report.recommend import least
from budwood.report.table import Method, Pick, Table

MOST_BYTES = 300_000
"""Of a page."""
FITS = ((24, 1000), (24, 500), (24, 250), (16, 200), (12, 120), (6, 80), (0, 80))
"""(samples, letters of each text): the first with which the page is small enough."""
LETTERS = 600
"""Of a reason or a note."""
SHAPES = (
    "M4.6 0A4.6 4.6 0 1 1 -4.6 0A4.6 4.6 0 1 1 4.6 0Z",
    "M-4 -4H4V4H-4Z",
    "M0 -5.2L5 3.8H-5Z",
    "M0 -5.8L5.2 0L0 5.8L-5.2 0Z",
    "M0 5.2L5 -3.8H-5Z",
    "M-1.8 -5.4H1.8V-1.8H5.4V1.8H1.8V5.4H-1.8V1.8H-5.4V-1.8H-1.8Z",
    "M0 -5.8L1.5 -1.8L5.6 -1.7L2.4 .9L3.5 4.9L0 2.6L-3.5 4.9L-2.4 .9L-5.6 -1.7L-1.5 -1.8Z",
)
"""Outlines of the markers, about their middle."""
VERDICTS = {"refused": "not for this model or task", "left out": "left out", "failed": "failed"}
STATES = {
    "running": "This comparison is still running: what follows may change.",
    "interrupted": "This comparison was interrupted: what follows may change once it is resumed.",
    "failed": "This comparison failed before its end: what follows is what there is.",
}


@dataclass(frozen=True)
class Row:
    """One method of the table."""

    method: Method
    cells: tuple[Cell, ...]
    mark: str
    """"recommended", "over a limit", "untuned model", or nothing."""


@dataclass(frozen=True)
class Absent:
    """A method that is not in the table."""

    label: str
    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """One learning rate of a method's search."""

    rate: str
    loss: str
    why: str
    """What diverged, or nothing."""
    bar: float
    """How far the loss fell, in percent of the furthest."""
    is_chosen: bool


@dataclass(frozen=True)
class Search:
    """The learning rates that one method was tried with."""

    label: str
    tried: tuple[Tried, ...]
    words: str
    """On what, and how much it tells."""
    is_end: bool


def page(table: Table, pick: Pick) -> str:
    """The whole page, under 300 KB."""
    content: dict[str, object] = {
        "table": table,
        "pick": pick,
        "cheapest": least(table, pick),
        "styles": styles(table),
        "shapes": SHAPES,
        "state": STATES.get(table.status),
        "limits": _limits(table),
        "columns": (found := columns(table, compared := _compared(table))),
        "groups": _groups(found),
        "rows": _rows(compared, found, pick),
        "absent": _absent(table),
        "failures": [(method.label, method.failures) for method in compared if method.failures],
        "scatters": [drawn for one in AXES if (drawn := scatter(table, one, _say(table))) is not None],
        "curves": [drawn for drawn in (over_steps(table), over_seconds(table)) if drawn is not None],
        "searches": _searches(table),
        "by_seed": _by_seed(table),
        "quality": table.metric.name.replace("_", " ") if table.metric else "quality",
        "better": "higher" if table.metric is None or table.metric.higher_is_better else "lower",
        "total": len(table.samples),
    }
    filters: dict[str, Callable[..., object]] = {"cut": cut, "brief": _brief, "pieces": _pieces, "spaced": _spaced}
    text = ""
    for count, letters in FITS:
        text = render("budwood.report", "page.html", {**content, "samples": _samples(table, count, letters)}, filters)
        if len(text.encode()) < MOST_BYTES:
            break
    return text


def _brief(text: str, letters: int = LETTERS) -> str:
    return shortened(text, letters)


def _pieces(label: str) -> list[str]:
    """A label in the pieces between which a line may break."""
    return re.findall(r"[^:,=]+[:,=]?|[:,=]", label)


def _spaced(budget: str) -> str:
    """A budget as people write it: 60 steps."""
    return re.sub(r"(?<=\d)(?=[a-z]{3})", " ", budget)


def _say(table: Table) -> Callable[[float], str]:
    return lambda value: say_quality(table.metric, value)


def _compared(table: Table) -> list[Method]:
    """Those of which there is something to compare."""
    return [method for method in table.methods if method.quality is not None or method.seeds]


def _groups(found: Sequence[Column]) -> list[tuple[str, int]]:
    """(group, how many columns it spans)."""
    names = list(dict.fromkeys(column.group for column in found))
    return [(name, sum(column.group == name for column in found)) for name in names]


def _rows(methods: Sequence[Method], found: Sequence[Column], pick: Pick) -> list[Row]:
    def mark(method: Method) -> str:
        if method.label == pick.label:
            return "recommended"
        if method.label in pick.over_limits:
            return "over a limit"
        return "untuned model" if method.label == BASE else ""

    return [Row(one, tuple(column.cells[i] for column in found), mark(one)) for i, one in enumerate(methods)]


def _absent(table: Table) -> list[Absent]:
    """Those without a result, with their reasons; where several have the same, they stand together."""
    found: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for method in table.methods:
        if method.quality is None and not method.seeds:
            found.setdefault(_why_absent(method, table), []).append(method.label)
    return [Absent(", ".join(labels), *why) for why, labels in found.items()]


def _why_absent(method: Method, table: Table) -> tuple[str, tuple[str, ...]]:
    why = method.contender.why
    reasons = (why, *(line for line in method.failures if why not in line)) if why else method.failures
    if method.contender.verdict in VERDICTS:
        return VERDICTS[method.contender.verdict], reasons
    if method.failures or table.status == "finished":
        return ("failed" if method.failures else "no result"), reasons
    return "waiting", reasons or ("No run is done yet.",)


def _limits(table: Table) -> list[str]:
    said = [f"{one.name} at most {one.say(table.limits[one.limit])}" for one in AXES if one.limit in table.limits]
    if table.metric is not None and "quality" in table.limits:
        most = "at least" if table.metric.higher_is_better else "at most"
        said.append(f"{table.metric.name} {most} {_say(table)(table.limits['quality'])}")
    return said


def _searches(table: Table) -> list[Search]:
    probes = [(method.label, probe) for method in table.methods if (probe := method.rates or method.contender.rates)]
    falls = [probe.before - trial.loss for _, probe in probes for trial in probe.trials if trial.loss is not None]
    most = max([fall for fall in falls if fall > 0], default=1.0)
    return [
        Search(
            label=label,
            tried=tuple(
                Tried(
                    f"{trial.rate:.3g}",
                    "diverged" if trial.loss is None else plain_number(trial.loss),
                    shortened(trial.error or "", 120),
                    0.0 if trial.loss is None else round(100 * max(0.0, probe.before - trial.loss) / most, 1),
                    trial.rate == probe.rate,
                )
                for trial in probe.trials
            ),
            words=f"{probe.scored}, {probe.steps} steps each; {plain_number(probe.before)} before"
            + ("" if probe.is_clear else f". None is clearly below that, so the method's own {probe.rate:g} was used"),
            is_end=probe.is_end,
        )
        for label, probe in probes
    ]


def _by_seed(table: Table) -> list[tuple[str, list[tuple[int, str, str]]]]:
    """(label, (seed, value, run folder))."""
    say = _say(table)
    return [
        (
            method.label,
            [
                (seed, say(value), folder)
                for seed, value, folder in zip(
                    method.seeds, method.by_seed, method.folders or ("",) * len(method.seeds), strict=True
                )
            ],
        )
        for method in table.methods
        if method.by_seed and len(method.seeds) == len(method.by_seed)
    ]


def _samples(table: Table, count: int, letters: int) -> list[Shown]:
    return [shown(sample, letters) for sample in table.samples[:count]]
