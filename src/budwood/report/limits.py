"""The dimensions in which methods cost something, and the limits that a user sets on them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from budwood.errors import BadConfig
from budwood.records import BASE
from budwood.records.amounts import amount, duration, size
from budwood.report.table import Method, Metric

UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
TIMES = {"ms": 1e-3, "s": 1, "m": 60, "h": 3600}


def seconds(value: float) -> str:
    """Seconds in few characters, those below one as milliseconds."""
    return f"{1e3 * value:.3g} ms" if value < 0.9995 else duration(value)


@dataclass(frozen=True)
class Dimension:
    """Something that a method needs, the less the better."""

    name: str
    """"memory"."""
    cost: Callable[[Method], float | None]
    """None where it was not measured."""
    say: Callable[[float], str]
    """The cost in words."""
    needs: str
    """"needs {} of memory"."""
    limit: str
    """What a limit on it is called."""
    limited: Callable[[Method], float | None] | None = None
    """What the limit is on, where that is not the cost: the base, which nobody trains, keeps those on training."""
    is_ranked: bool = True
    """Whether it counts in the choice among equals."""

    @property
    def told(self) -> Callable[[float], str]:
        """What the limit is on in words."""
        return duration if self.limit == "train_s" else self.say


@dataclass(frozen=True)
class Breach:
    """A limit that is not kept."""

    times: float
    """How many times the limit."""
    words: str
    """"memory 1.3 GiB, 0.3 GiB more than the 1.0 GiB allowed"."""


def _pace(method: Method) -> float | None:
    """Seconds for each token trained; the base needs none."""
    if method.label == BASE:
        return 0.0
    return 1 / method.tokens_per_s if method.tokens_per_s else None


DIMENSIONS = (
    Dimension(
        "memory",
        lambda one: one.peak_bytes,
        size,
        "needs {} of memory",
        "memory_bytes",
        lambda one: 0.0 if one.label == BASE else one.peak_bytes,
    ),
    Dimension(
        "training time",
        _pace,
        lambda pace: f"{1e3 * pace:.3g} ms a token",
        "trains in {}",
        "train_s",
        lambda one: 0.0 if one.label == BASE else one.train_s,
    ),
    Dimension("answer time", lambda one: one.answer_s, seconds, "answers in {}", "answer_s"),
    Dimension("stored size", lambda one: one.stored_bytes, size, "takes {} on disk", "stored_bytes"),
    Dimension(
        "trained parameters", lambda one: one.trained_count, amount, "trains {} parameters", "trained_count",
        is_ranked=False,
    ),
)  # fmt: skip
QUALITY = "quality"
LIMITS = (*(one.limit for one in DIMENSIONS), QUALITY)


def read_limits(
    *,
    memory: str | float | None = None,
    parameters: str | float | None = None,
    stored: str | float | None = None,
    train_time: str | float | None = None,
    answer_time: str | float | None = None,
    quality: float | None = None,
) -> dict[str, float]:
    """Limits as `Table.limits` holds them, of what people type: "6GiB", "2M", "10m", "50ms", or plain numbers.

    Raises BadConfig for what cannot be read, or is not more than nothing.
    """
    given = {
        "memory_bytes": _number("memory", memory, UNITS, "6GiB, 512MiB or a number of bytes"),
        "trained_count": _number("parameters", parameters, COUNTS, "2M, 300k or a number"),
        "stored_bytes": _number("stored", stored, UNITS, "20MiB or a number of bytes"),
        "train_s": _number("train_time", train_time, TIMES, "10m, 90s or a number of seconds"),
        "answer_s": _number("answer_time", answer_time, TIMES, "50ms, 2s or a number of seconds"),
        QUALITY: _number("quality", quality, {"": 1}, "the least accuracy, as 0.85, or the highest perplexity, as 12"),
    }
    return {name: value for name, value in given.items() if value is not None}


def over(method: Method, limits: Mapping[str, float], metric: Metric | None) -> dict[str, Breach]:
    """The limits that a method breaks, or of which nobody knows whether it keeps them."""
    found = {name: _breach(method, name, limit, metric) for name, limit in limits.items()}
    return {name: breach for name, breach in found.items() if breach is not None}


def _breach(method: Method, name: str, limit: float, metric: Metric | None) -> Breach | None:
    if name == QUALITY:
        value = method.quality.value if method.quality is not None else None
        what, upside = metric.name if metric is not None else QUALITY, metric is not None and metric.higher_is_better
        say: Callable[[float], str] = "{:.4g}".format
    else:
        dimension = next(one for one in DIMENSIONS if one.limit == name)
        value, what, upside, say = (dimension.limited or dimension.cost)(method), dimension.name, False, dimension.told
    if value is None:
        return Breach(inf, f"its {what} was not measured, and the limit is {say(limit)}")
    times = (limit / value if value > 0 else inf) if upside else value / limit
    word = "less" if upside else "more"
    return (
        Breach(times, f"{what} {say(value)}, {say(abs(value - limit))} {word} than the {say(limit)} allowed")
        if times > 1
        else None
    )


def _number(name: str, text: str | float | None, units: Mapping[str, float], like: str) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z]*)", str(text).strip().lower())
    if found is None or found[2] not in units or float(found[1]) <= 0:
        raise BadConfig(f"{name} is {text!r}; write {like}, more than nothing")
    return float(found[1]) * units[found[2]]
