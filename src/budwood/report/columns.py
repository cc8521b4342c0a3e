"""The columns of a comparison's table: what each says of a method, and what is drawn in its cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from budwood.records import BASE
from budwood.records.amounts import NONE, amount, duration, milliseconds, percent, plain_number, size
from budwood.report.table import Estimate, Method, Metric, Table

SHARES = ("accuracy", "span_f1", "token_f1", "exact_match")
"""Metrics that are said in percent."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell, its drawing in percent of its width."""

    text: str
    beside: str = ""
    """Said smaller."""
    mark: str = ""
    """What is to be seen at once."""
    value: float | None = None
    """What the column is sorted by."""
    bar: float | None = None
    whisker: tuple[float, float, float] | None = None
    """Its start, its end, and the value between."""
    zero: float | None = None
    """Where a difference of nothing is."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    group: str
    heading: str
    meaning: str
    cells: tuple[Cell, ...]
    """One for each method."""
    is_high_first: bool = False
    """Whether sorting puts the highest first: where more is better."""


def say_quality(metric: Metric | None, value: float) -> str:
    """A value of the metric: 91.2 % or 3.61."""
    if metric is not None and metric.name in SHARES:
        return f"{100 * value:.1f} %"
    return plain_number(value)


def say_difference(metric: Metric | None, value: float) -> str:
    """A difference with its sign, in the metric's unit of differences."""
    if metric is not None and metric.name in SHARES:
        return f"{100 * value + 0.0:+.1f}"
    return f"{value + 0.0:+.3f}"


def columns(table: Table, methods: Sequence[Method]) -> list[Column]:
    """All columns for these methods."""
    return [*_quality(table, methods), *_costs(methods)]


def _quality(table: Table, methods: Sequence[Method]) -> list[Column]:
    metric = table.metric
    name, unit = (metric.name.replace("_", " "), metric.difference) if metric else ("quality", "points")
    better = "higher" if metric is None or metric.higher_is_better else "lower"
    low, high = _range([method.quality for method in methods], zero=metric is not None and metric.name in SHARES)
    above, below = (
        _reach([one.over_base for one in methods]),
        _reach([one.below_best for one in methods if one.label != BASE]),
    )
    return [
        Column(
            group="Quality",
            heading=name,
            meaning=f"{name} on the test rows ({better} is better), with its 95 % interval.",
            is_high_first=better == "higher",
            cells=tuple(_estimate(method.quality, lambda v: say_quality(metric, v), low, high) for method in methods),
        ),
        Column(
            group="Quality",
            heading="against the base",
            meaning=f"Difference to the untuned model on the same rows, in {unit}; positive is better.",
            is_high_first=True,
            cells=tuple(
                Cell(text="itself", value=0.0) if method.label == BASE else _difference(method.over_base, metric, above)
                for method in methods
            ),
        ),
        Column(
            group="Quality",
            heading="against the best",
            meaning=f"Difference to the best observed, in {unit}, with an interval that holds for all methods at once. "
            "A method whose interval reaches zero cannot be told from the best.",
            is_high_first=True,
            cells=tuple(_below(method, metric, below) for method in methods),
        ),
    ]


def _below(method: Method, metric: Metric | None, reach: float) -> Cell:
    if method.is_best:
        return Cell(text="best observed", value=0.0)
    found = _difference(method.below_best, metric, reach)
    return replace(found, mark="cannot be told apart") if method.may_be_best and method.below_best else found


def _reach(differences: Sequence[Estimate | None]) -> float:
    """The furthest from nothing."""
    return (
        max(
            (abs(end) for one in differences if one is not None and one.is_finite for end in (one.low, one.high)),
            default=0.0,
        )
        or 1.0
    )


def _cache(method: Method) -> str:
    return f"+ {size(method.extra_cache_bytes_per_row)} a row" if method.extra_cache_bytes_per_row else ""


@dataclass(frozen=True)
class _Cost:
    """A column of amounts."""

    group: str
    heading: str
    meaning: str
    of: Callable[[Method], float | None]
    say: Callable[[float], str]
    beside: Callable[[Method], str] = lambda method: ""
    is_high_first: bool = False
    has_bar: bool = True


COSTS = (
    _Cost(
        "Size", "trained parameters", "Parameters that are trained, and their share of the base's.",
        lambda m: m.trained_count, amount, beside=lambda m: "" if m.share is None else percent(m.share),
    ),
    _Cost("Size", "stored", "Bytes of the adapter's files on disk.", lambda m: m.stored_bytes, size),
    _Cost(
        "Training", "peak memory", "The most memory a run held at once, above what Python and its libraries take.",
        lambda m: m.peak_bytes, size,
    ),
    _Cost(
        "Training", "tokens a second", "Prompt and learned tokens in steady state, median over the seeds.",
        lambda m: m.tokens_per_s, lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}", is_high_first=True,
    ),
    _Cost(
        "Training", "time", "Seconds inside training steps, median over the seeds, and the steps.",
        lambda m: m.train_s, duration, beside=lambda m: "" if m.steps is None else f"{m.steps:,} steps",
    ),
    _Cost(
        "Training", "learning rate", "The peak learning rate.",
        lambda m: m.learning_rate, lambda v: f"{v:g}", has_bar=False,
    ),
    _Cost(
        "Training", "seeds", "Runs that finished, each from another seed.",
        lambda m: len(m.seeds) or None, lambda v: f"{v:.0f}", has_bar=False,
    ),
    _Cost(
        "Use", "read a prompt", "Time to read one prompt, one at a time, with the adapter attached.",
        lambda m: m.prefill_s, milliseconds,
    ),
    _Cost(
        "Use", "write a token", "Time for each further token, one answer at a time.",
        lambda m: m.per_token_s, milliseconds,
    ),
    _Cost(
        "Use", "extra memory", "Weights that are held beside the base, and the cache that each row holds more.",
        lambda m: m.extra_weight_bytes, size, beside=_cache,
    ),
    _Cost(
        "Use", "mergeable", "Whether it can be folded into the base, so that using it costs nothing more.",
        lambda m: None if m.mergeable is None else float(m.mergeable), lambda v: "yes" if v else "no",
        has_bar=False, is_high_first=True,
    ),
)  # fmt: skip


def _costs(methods: Sequence[Method]) -> list[Column]:
    return [
        Column(
            group=cost.group,
            heading=cost.heading,
            meaning=cost.meaning,
            is_high_first=cost.is_high_first,
            cells=_amounts(methods, cost),
        )
        for cost in COSTS
    ]


def _amounts(methods: Sequence[Method], cost: _Cost) -> tuple[Cell, ...]:
    values = [cost.of(method) for method in methods]
    most = max((value for value in values if value is not None and isfinite(value)), default=0.0)
    return tuple(
        Cell(text=NONE)
        if value is None or not isfinite(value)
        else Cell(
            text=cost.say(value),
            beside=cost.beside(method),
            value=float(value),
            bar=round(100 * value / most, 1) if cost.has_bar and most > 0 else None,
        )
        for method, value in zip(methods, values, strict=True)
    )


def _range(estimates: Sequence[Estimate | None], *, zero: bool) -> tuple[float, float]:
    """What a cell's width stands for: from zero for shares up to one, else up to the highest."""
    high = max((one.high for one in estimates if one is not None and one.is_finite), default=1.0)
    return 0.0, 1.0 if zero else high or 1.0


def _estimate(estimate: Estimate | None, say: Callable[[float], str], low: float, high: float) -> Cell:
    if estimate is None:
        return Cell(text=NONE)
    ends = f"[{say(estimate.low)}, {say(estimate.high)}]".replace(" %,", ",").replace(" %]", "]")
    found = Cell(text=say(estimate.value), beside=ends, value=estimate.value)
    if not estimate.is_finite:
        return found
    whisker = _places(estimate, low, high)
    return replace(found, bar=whisker[2], whisker=whisker)


def _difference(estimate: Estimate | None, metric: Metric | None, reach: float) -> Cell:
    if estimate is None:
        return Cell(text=NONE)
    found = Cell(
        text=say_difference(metric, estimate.value),
        beside=f"[{say_difference(metric, estimate.low)}, {say_difference(metric, estimate.high)}]",
        value=estimate.value,
    )
    return replace(found, whisker=_places(estimate, -reach, reach), zero=50.0) if estimate.is_finite else found


def _places(estimate: Estimate, low: float, high: float) -> tuple[float, float, float]:
    """Where start, end and value lie between two numbers, in percent."""
    shares = [(at - low) / (high - low) for at in (estimate.low, estimate.high, estimate.value)]
    start, end, value = (round(100 * min(max(share, 0.0), 1.0), 1) for share in shares)
    return start, end, value
