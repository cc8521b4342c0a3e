"""Where the losses of a comparison lie, over steps and over seconds, with a name at the end of each curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, isfinite
from statistics import fmean, median

from budwood.records.amounts import plain_number
from budwood.report.axes import SECONDS, brief
from budwood.report.drawing import BOTTOM, HEIGHT, LEFT, LINE, TOP, WIDTH, Label, Style, cut, styles
from budwood.report.limits import seconds
from budwood.report.scale import Scale, Tick
from budwood.report.table import Method, Point, Table

MARGIN = 128
"""Room for the names at the right."""
MOST = 24
"""Points of a training curve, each the mean of its neighbours."""
FAR = 4.0
"""An axis whose end is so many times the median end is logarithmic."""
LETTERS = 16


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The losses of one method's first seed."""

    method: str
    style: Style
    training: tuple[tuple[float, float], ...]
    held_out: tuple[tuple[float, float], ...]
    words: str
    label: Label


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The losses of all methods against steps or seconds, in the units of the drawing."""

    name: str
    axis: str
    curves: tuple[Curve, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    is_log: bool
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - MARGIN
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


def over_steps(table: Table) -> Curves | None:
    """Loss against optimizer steps; None where no method has two points."""
    return _curves(table, "steps", "optimizer steps", lambda point: point.step, lambda value: f"{value:,.0f}", (1.0,))


def over_seconds(table: Table) -> Curves | None:
    """Loss against the time inside training steps; None where no method has two points."""

    def say(value: float) -> str:
        return seconds(value) if value else "0"

    return _curves(table, "seconds", "time in training steps", lambda point: point.seconds, say, SECONDS)


def _curves(
    table: Table,
    name: str,
    axis: str,
    place: Callable[[Point], float],
    say: Callable[[float], str],
    units: Sequence[float],
) -> Curves | None:
    shown = [
        (method, tuple(point for point in method.curve if isfinite(point.loss)))
        for method in table.methods
        if sum(isfinite(point.loss) for point in method.curve) > 1
    ]
    if not any(place(point) > 0 for _, points in shown for point in points):
        return None
    across = _along([[place(point) for point in points] for _, points in shown])
    up = losses([points for _, points in shown])
    looks = styles(table)
    curves = [_curve(method, points, looks[method.label], place, across, up) for method, points in shown]
    return Curves(
        name=name,
        axis=axis,
        curves=tuple(_apart(curves)),
        across=across.ticks(5, lambda value: brief(say(value)), units),
        up=up.ticks(6, lambda value: f"{value:.6g}"),
        is_log=across.is_log,
    )


def _along(places: Sequence[Sequence[float]]) -> Scale:
    """From nothing to the end; logarithmic where a few go so far that the others would stand in a corner."""
    ends = [max(found) for found in places]
    first = min((place for found in places for place in found if place > 0), default=0.0)
    if max(ends) > FAR * median(ends):
        return Scale(low=first, high=max(ends) * 1.02, start=LEFT, end=WIDTH - MARGIN, is_log=True)
    return Scale(low=0.0, high=max(ends) * 1.01, start=LEFT, end=WIDTH - MARGIN)


def losses(curves: Sequence[Sequence[Point]]) -> Scale:
    """From the least to the greatest held-out loss; training losses that lie beyond are cut off."""
    held = [point.loss for points in curves for point in points if point.is_held_out]
    smooth = [loss for points in curves for _, loss in thinned(points, lambda point: point.step)[1:]]
    low, high = min([*held, *smooth]), max(held or smooth)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low=max(0.0, low - room), high=high + room, start=HEIGHT - BOTTOM, end=TOP)


def thinned(points: Sequence[Point], place: Callable[[Point], float]) -> list[tuple[float, float]]:
    """The training losses, as means of so many neighbours that few points remain."""
    found = [point for point in points if not point.is_held_out]
    size = max(1, ceil(len(found) / MOST))
    groups = [found[start : start + size] for start in range(0, len(found), size)]
    return [(fmean(map(place, group)), fmean(point.loss for point in group)) for group in groups]


def _curve(
    method: Method, points: Sequence[Point], style: Style, place: Callable[[Point], float], across: Scale, up: Scale
) -> Curve:
    training = [(across(x), up(loss)) for x, loss in thinned(points, place)]
    held = [(across(place(point)), up(point.loss)) for point in points if point.is_held_out]
    last = next((point for point in reversed(points) if point.is_held_out), points[-1])
    kind = "held-out loss" if last.is_held_out else "training loss"
    x, y = (held or training)[-1]
    return Curve(
        method=method.label,
        style=style,
        training=tuple(training),
        held_out=tuple(held),
        words=f"{method.label}: {kind} {plain_number(last.loss)} after {last.step:,} steps and {seconds(last.seconds)}",
        label=Label(
            text=cut(method.label, LETTERS),
            x=WIDTH - MARGIN + 16,
            y=y,
            anchor="start",
            from_x=x,
            from_y=y,
            is_apart=True,
        ),
    )


def _apart(curves: Sequence[Curve]) -> list[Curve]:
    """With labels that do not overlap: each as near to its curve's end as the others let it."""
    order = sorted(range(len(curves)), key=lambda place: curves[place].label.y)
    line = min(LINE, (HEIGHT - TOP) / max(1, len(curves)))
    lowest, ys = TOP + line / 2, []
    for place in order:
        lowest = max(lowest, curves[place].label.y)
        ys.append(lowest)
        lowest += line
    highest = HEIGHT - line / 2 - 4
    for place in reversed(range(len(ys))):
        ys[place] = highest = min(ys[place], highest)
        highest -= line
    moved = {place: round(y, 1) for place, y in zip(order, ys, strict=True)}
    return [replace(curve, label=replace(curve.label, y=moved[place])) for place, curve in enumerate(curves)]
