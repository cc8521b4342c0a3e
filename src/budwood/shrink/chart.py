"""Where the points, whiskers and labels of a curve of stages lie; the page's template draws them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from budwood.records import Score
from budwood.records.amounts import percent
from budwood.report.scale import Scale, Tick
from budwood.shrink.lines import interval, unshrunk
from budwood.shrink.stage import Stage

WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 16, 50
"""Room around the plot."""
BELOW = 1.0
"""How far an undone stage may stretch the plot, as a share of the others' height; beyond, it stands at the edge."""
RADIUS = 5
LETTER, LINE = 8, 13
"""Room that a letter of a label takes."""
_CORNERS = ((-1, -1), (1, 1), (1, -1), (-1, 1))
"""Where labels go: a curve that rises to the right leaves the first two free."""
_WHOLE = Score(name="quality", value=1.0, low=1.0, high=1.0, n=0, unit="by definition")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One stage."""

    number: int
    x: float
    y: float
    low: float
    high: float
    words: str
    """All of it, for those who point at it or cannot see it."""
    accepted: bool
    is_beyond: bool
    """Whether it lies below the plot and is drawn at its edge."""
    label: tuple[float, float] | None
    """Where the middle of its number stands; None where there is no room."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A curve of quality against something, in the units of the drawing."""

    name: str
    title: str
    x_label: str
    points: tuple[Point, ...]
    line: str
    """Through the accepted stages."""
    across: tuple[Tick, ...]
    """Marks of the horizontal axis."""
    up: tuple[Tick, ...]
    """Marks of the vertical axis."""
    floor: Tick | None
    """The least quality, where one was asked for."""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM

    @property
    def words(self) -> str:
        """The points one after another."""
        return " ".join(point.words for point in self.points)


def curve(
    name: str,
    title: str,
    x_label: str,
    stages: Sequence[Stage],
    *,
    x: Callable[[Stage], float],
    say: Callable[[float], str],
    least: float | None = None,
) -> Chart | None:
    """Quality against `x`, which `say` puts into words; None where no stage has a quality."""
    whole = unshrunk(stages)
    shown = [(stage, x(stage), stage.quality or _WHOLE) for stage in stages if stage.quality or stage is whole]
    usable = [(stage, at, quality) for stage, at, quality in shown if _is_drawable(at, quality)]
    if not any(stage.quality for stage, _, _ in usable):
        return None
    across = _padded([at for _, at, _ in usable], WIDTH - RIGHT, start=LEFT)
    up = _heights([(stage.accepted, quality) for stage, _, quality in usable], least)
    points = [_point(stage, quality, across(at), up, f"{say(at)} {x_label}") for stage, at, quality in usable]
    return Chart(
        name=name,
        title=title,
        x_label=x_label,
        points=tuple(_labelled(points)),
        line=" ".join(f"{point.x},{point.y}" for point in points if point.accepted),
        across=across.ticks(7, say),
        up=up.ticks(6, lambda value: percent(value).replace(".0 %", " %")),
        floor=None if least is None else Tick(up(least), f"least: {percent(least).replace('.0 %', ' %')}"),
    )


def _is_drawable(at: float, quality: Score) -> bool:
    return all(isfinite(float(value)) for value in (at, quality.value, quality.low, quality.high))


def _point(stage: Stage, quality: Score, x: float, up: Scale, where: str) -> Point:
    inside = [min(max(value, up.low), up.high) for value in (quality.value, quality.low, quality.high)]
    y, low, high = (up(value) for value in inside)
    outcome = "" if stage.accepted else ", undone"
    return Point(
        number=stage.number,
        x=x,
        y=y,
        low=low,
        high=high,
        words=f"Stage {stage.number}: {where}, quality {interval(quality, share=True)}{outcome}.",
        accepted=stage.accepted,
        is_beyond=quality.value < up.low,
        label=None,
    )


def _padded(values: Sequence[float], end: float, *, start: float) -> Scale:
    low, high = min(values), max(values)
    room = 0.07 * (high - low) or 0.1 * abs(high) or 1.0
    return Scale(low=low - room, high=high + room, start=start, end=end)


def _heights(qualities: Sequence[tuple[bool, Score]], least: float | None) -> Scale:
    """From the lowest whisker to the highest, with the unshrunk model's quality of 1 in sight."""
    kept = [quality for accepted, quality in qualities if accepted]
    marks = [1.0, *(end for quality in kept for end in (quality.low, quality.high)), *([least] if least else [])]
    low, high = min(marks), max(marks)
    reach = low - BELOW * max(high - low, 0.02)
    others = [end for accepted, quality in qualities if not accepted for end in (quality.low, quality.high)]
    ends = [low, high, *(min(max(end, reach), 2 * high - reach) for end in others)]
    room = max(0.06 * (max(ends) - min(ends)), 0.005)
    return Scale(low=min(ends) - room, high=max(ends) + room, start=HEIGHT - BOTTOM, end=TOP)


def _labelled(points: Sequence[Point]) -> list[Point]:
    """The points with their numbers beside them, where those hide neither each other nor a point."""
    taken = [(point.x - RADIUS, point.y - RADIUS, point.x + RADIUS, point.y + RADIUS) for point in points]
    placed = []
    for point in points:
        half, gap = LETTER * len(str(point.number)) / 2, RADIUS + 3
        sides = [(right * (gap + half), down * (gap + 2)) for right, down in _CORNERS]
        spots = [(point.x + dx, point.y + dy) for dx, dy in (*sides, (gap + half, 0), (-gap - half, 0))]
        boxes = [(x - half, y - LINE / 2, x + half, y + LINE / 2) for x, y in spots]
        free = next((place for place, box in enumerate(boxes) if _is_free(box, taken)), None)
        if free is not None:
            taken.append(boxes[free])
        label = None if free is None else (round(spots[free][0], 1), round(spots[free][1], 1))
        placed.append(replace(point, label=label))
    return placed


def _is_free(box: tuple[float, float, float, float], taken: Sequence[tuple[float, float, float, float]]) -> bool:
    left, top, right, bottom = box
    if left < LEFT or right > WIDTH or top < 0 or bottom > HEIGHT - BOTTOM:
        return False
    return all(right <= a or left >= c or bottom <= b or top >= d for a, b, c, d in taken)
