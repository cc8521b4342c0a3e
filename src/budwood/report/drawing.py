"""Where points, whiskers, front and labels of quality against a cost lie; only numbers, nothing is drawn here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from statistics import median

from budwood.records.comparison import BASE
from budwood.report.axes import Axis, brief
from budwood.report.scale import Scale, Tick
from budwood.report.table import Estimate, Table

WIDTH, HEIGHT = 560, 370
LEFT, RIGHT, TOP, BOTTOM = 66, 26, 14, 52
"""Room around a plot."""
LETTER, LINE, RADIUS = 7.2, 14.0, 6.0
"""Room that a letter, a line of text and a marker take."""
LABEL = 18
"""Letters of a label inside a drawing."""
COLOURS, SHAPES = 6, 7
"""Without a common divisor, so that 42 methods look different."""
WIDE = 20
"""An axis of a greater ratio is logarithmic."""
EDGE = HEIGHT - BOTTOM - 24
"""Where those stand that lie below the plot, with an arrow down."""
BELOW = 3.0
"""How many times the median shortfall still lies inside the plot; what is worse stands at its edge."""

Box = tuple[float, float, float, float]
_BESIDE = ((1, 0), (-1, 0), (1, -0.8), (-1, -0.8), (1, 0.8), (-1, 0.8))
_FURTHER = tuple((side * far, down) for far in (3, 5) for down in (-2, 2, -4, 4, -6, 6) for side in (1, -1))
_SIDES: tuple[tuple[float, float], ...] = (*_BESIDE, *_FURTHER)
"""Where a label may stand, in marker sizes from its point, the nearest first."""


@dataclass(frozen=True)
class Style:
    """How a method looks everywhere: never by colour alone."""

    colour: int
    """-1 for the base."""
    shape: int


@dataclass(frozen=True, kw_only=True)
class Label:
    """Words beside a point; a line leads from (from_x, from_y) to them where they stand apart."""

    text: str
    x: float
    y: float
    anchor: str
    from_x: float
    from_y: float
    is_apart: bool


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One method in a drawing of quality against a cost."""

    method: str
    style: Style
    x: float
    y: float
    low: float
    high: float
    words: str
    is_beyond: bool
    """Whether it lies below the plot and stands at its edge."""
    label: Label | None


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Quality against a cost, in the units of the drawing."""

    axis: Axis
    spots: tuple[Spot, ...]
    front: tuple[tuple[float, float], ...]
    """The step line through those that nothing beats in both."""
    on_front: tuple[str, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    is_log: bool
    limit: Tick | None
    floor: Tick | None
    """The least quality that was asked for, where it is inside."""
    base: Tick | None
    """The quality of the untuned base, where it is inside."""
    unplaced: tuple[str, ...]
    """Methods whose cost was not measured."""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def styles(table: Table) -> dict[str, Style]:
    """How each method looks."""
    tuned = [method.label for method in table.methods if method.label != BASE]
    return {BASE: Style(-1, 0), **{label: Style(i % COLOURS, i % SHAPES) for i, label in enumerate(tuned)}}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, goodness) no other beats in both, the cheapest first."""
    best, found = -inf, []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if points[place][1] > best:
            best = points[place][1]
            found.append(place)
    return found


def scatter(table: Table, axis: Axis, say: Callable[[float], str]) -> Scatter | None:
    """Quality against a cost; None where fewer than two methods have both."""
    known = [(method, method.quality) for method in table.methods if method.quality and method.quality.is_finite]
    shown = [
        (method, float(cost), quality)
        for method, quality in known
        if (cost := axis.of(method)) is not None and 0 < cost < inf
    ]
    if len(shown) < 2 or table.metric is None:
        return None
    sign = 1 if table.metric.higher_is_better else -1
    least, limit = table.limits.get("quality"), table.limits.get(axis.limit)
    up = _heights([quality for _, quality in known], sign, least)
    across = _costs([cost for _, cost, _ in shown], limit)
    looks = styles(table)
    bare = [
        Spot(
            method=method.label,
            style=looks[method.label],
            x=across(cost),
            y=EDGE if _lies_below(up, quality) else up(quality.value),
            low=_inside(up, quality.low),
            high=_inside(up, quality.high),
            words=f"{method.label}: {say(quality.value)} [{say(quality.low)}, {say(quality.high)}], "
            f"{axis.name} {axis.say(cost)}",
            is_beyond=_lies_below(up, quality),
            label=None,
        )
        for method, cost, quality in shown
    ]
    kept = front([(cost, sign * quality.value) for _, cost, quality in shown])
    corners = [(bare[place].x, bare[place].y) for place in kept if not bare[place].is_beyond]
    base = next((quality for method, quality in known if method.label == BASE), None)
    seen = {method.label for method, _, _ in shown} | {BASE}
    return Scatter(
        axis=axis,
        spots=_labelled(bare, kept),
        front=_steps(corners),
        on_front=tuple(bare[place].method for place in kept),
        across=across.ticks(6, lambda value: brief(axis.say(value)), axis.units),
        up=up.ticks(6, lambda value: brief(say(value))),
        is_log=across.is_log,
        limit=None if limit is None else Tick(across(limit), f"your limit: {brief(axis.say(limit))}"),
        floor=None if least is None else _seen(up, least, f"your limit: {brief(say(least))}"),
        base=None if base is None else _seen(up, base.value, "untuned base"),
        unplaced=tuple(one.label for one, _ in known if one.label not in seen),
    )


def _heights(found: Sequence[Estimate], sign: int, least: float | None) -> Scale:
    """Better is higher, whichever way the metric counts; the far worse ones are left at the edge."""
    best = max(sign * one.value for one in found)
    short = [best - sign * one.value for one in found]
    width = median(abs(one.high - one.low) for one in found)
    reach = best - max(BELOW * median(short), 2 * width)
    inside = [one for one in found if sign * one.value >= reach]
    ends = [sign * end for one in inside for end in (one.low, one.high)] + ([sign * least] if least is not None else [])
    low, high = max(min(ends), reach - width), max(ends)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return Scale(low=sign * (low - room), high=sign * (high + room), start=HEIGHT - BOTTOM, end=TOP)


def _costs(values: Sequence[float], limit: float | None) -> Scale:
    every = [*values, *([limit] if limit else [])]
    low, high = min(every), max(every)
    if high > WIDE * low:
        return Scale(low=low / 1.6, high=high * 1.6, start=LEFT, end=WIDTH - RIGHT, is_log=True)
    room = 0.1 * (high - low) or 0.1 * high
    return Scale(low=max(0.0, low - room), high=high + room, start=LEFT, end=WIDTH - RIGHT)


def _seen(up: Scale, value: float, label: str) -> Tick | None:
    """A line across the plot; None where it lies below."""
    return None if up(value) > HEIGHT - BOTTOM else Tick(up(value), label)


def _lies_below(up: Scale, quality: Estimate) -> bool:
    """Whether it lies below the plot."""
    return up(quality.value) > HEIGHT - BOTTOM


def _inside(up: Scale, value: float) -> float:
    return min(max(up(value), TOP), HEIGHT - BOTTOM)


def _steps(corners: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """From each corner to the right, then up to the next one, the last to the edge."""
    ends = [x for x, _ in corners[1:]] + [WIDTH - RIGHT]
    return tuple(point for (x, y), end in zip(corners, ends, strict=True) for point in ((x, y), (end, y)))


def cut(text: str, most: int = LABEL) -> str:
    """A label that fits, with its end in sight: that is where settings differ."""
    return text if len(text) <= most else f"{text[: most - 7]}…{text[-6:]}"


def _labelled(spots: Sequence[Spot], kept: Sequence[int]) -> tuple[Spot, ...]:
    """The spots with their names beside them, those `kept` first, where names hide neither each other nor a marker."""
    taken: list[Box] = [(s.x - RADIUS, s.y - RADIUS, s.x + RADIUS, s.y + RADIUS) for s in spots]
    taken += [(s.x - 2, min(s.low, s.high), s.x + 2, max(s.low, s.high)) for s in spots]
    found = list(spots)
    for place in sorted(range(len(spots)), key=lambda place: place not in kept):
        label, box = _free(spots[place], taken)
        taken += [box] if box is not None else []
        found[place] = replace(spots[place], label=label)
    return tuple(found)


def _free(spot: Spot, taken: Sequence[Box]) -> tuple[Label | None, Box | None]:
    text = cut(spot.method)
    for right, down in _SIDES:
        x, y = spot.x + right * (RADIUS + 4), spot.y + down * (RADIUS + 6)
        start = x if right > 0 else x - len(text) * LETTER
        box = (start, y - LINE / 2, start + len(text) * LETTER, y + LINE / 2)
        if box[0] < LEFT + 2 or box[2] > WIDTH or box[1] < 0 or box[3] > HEIGHT - BOTTOM - 1:
            continue
        if all(box[2] <= a or box[0] >= c or box[3] <= b or box[1] >= d for a, b, c, d in taken):
            anchor = "start" if right > 0 else "end"
            return (
                Label(text=text, x=x, y=y, anchor=anchor, from_x=spot.x, from_y=spot.y, is_apart=abs(right) > 1),
                box,
            )
    return None, None
