from __future__ import annotations

from dataclasses import replace
from math import inf, isfinite

import pytest

from budwood.records.amounts import size
from budwood.report.axes import AXES, BYTES, SECONDS, Axis, brief
from budwood.report.columns import say_quality
from budwood.report.curves import Curves, over_seconds, over_steps
from budwood.report.drawing import COLOURS, SHAPES, Scatter, front, scatter, styles
from budwood.report.limits import seconds
from budwood.report.scale import Scale
from budwood.report.table import Estimate, Table
from report_tables import MIB, classification, crowd, language

MEMORY, TRAINING, ANSWER, STORED, PARAMETERS = AXES


def drawn(table: Table, axis: Axis) -> Scatter:
    found = scatter(table, axis, lambda value: say_quality(table.metric, value))
    assert found is not None
    return found


def test_a_scale_leads_from_values_to_places() -> None:
    even = Scale(low=0, high=10, start=100, end=200)
    assert (even(0), even(5), even(10)) == (100, 150, 200)
    steep = Scale(low=1, high=100, start=0, end=200, is_log=True)
    assert (steep(1), steep(10), steep(100)) == (0, 100, 200)


def test_marks_are_round_in_their_unit() -> None:
    assert [brief(tick.label) for tick in Scale(low=0, high=310 * MIB, start=0, end=1).ticks(6, size, BYTES)] == [
        "0 B", "100 MiB", "200 MiB", "300 MiB",
    ]  # fmt: skip
    times = Scale(low=60, high=165, start=0, end=1).ticks(6, seconds, SECONDS)
    assert [brief(tick.label) for tick in times] == ["1 m", "1 m 30 s", "2 m", "2 m 30 s"]
    wide = Scale(low=8e3, high=2e8, start=0, end=1, is_log=True).ticks(6, lambda value: f"{value:.0e}")
    assert [tick.label for tick in wide] == ["1e+04", "1e+05", "1e+06", "1e+07", "1e+08"]


@pytest.mark.parametrize(("low", "high"), [(3.4, 4.2), (0.76, 0.93), (1e-7, 3e-7), (0, 1e12), (10.0, 10.001)])
def test_there_are_a_few_marks_on_every_scale(low: float, high: float) -> None:
    assert 2 <= len(Scale(low=low, high=high, start=0, end=1).ticks(6, str)) <= 7


@pytest.mark.parametrize(
    ("words", "short"),
    [
        ("5.0 MiB", "5 MiB"),
        ("10.0k", "10k"),
        ("3.400", "3.4"),
        ("4.00", "4"),
        ("10 m 00 s", "10 m"),
        ("90.5 %", "90.5 %"),
    ],
)
def test_zeros_are_left_out(words: str, short: str) -> None:
    assert brief(words) == short


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    assert front([(1, 5), (2, 4), (3, 9), (3, 8), (4, 9), (0.5, 1)]) == [5, 0, 2]


def test_every_method_is_where_its_numbers_say() -> None:
    table = classification()
    memory = drawn(table, MEMORY)
    spots = {spot.method: spot for spot in memory.spots}
    assert "base" not in spots, "it has no memory of training"
    assert spots["full"].x == max(spot.x for spot in memory.spots)
    assert spots["full"].y == min(spot.y for spot in memory.spots), "better is higher"
    assert spots["full"].low > spots["full"].y > spots["full"].high
    assert memory.on_front == ("bitfit", "ia3", "lora", "full")
    assert "lora: 89.1 % [86.2 %, 91.6 %], memory 190 MiB" in [spot.words for spot in memory.spots]
    assert not memory.is_log
    assert drawn(table, PARAMETERS).is_log


def test_better_is_higher_for_a_perplexity_too() -> None:
    spots = {spot.method: spot for spot in drawn(language(), MEMORY).spots}
    assert spots["full"].y < spots["lora"].y < spots["prefix"].y


def test_what_is_far_worse_stands_at_the_edge() -> None:
    answer = drawn(language(), ANSWER)
    assert [spot.method for spot in answer.spots if spot.is_beyond] == ["base"]
    assert answer.base is None
    near = replace(language(), methods=language().methods[1:])
    assert not any(spot.is_beyond for spot in drawn(near, ANSWER).spots)


def test_limits_are_drawn_inside() -> None:
    table = replace(classification(), limits={"memory_bytes": 600.0 * MIB, "quality": 0.8})
    memory = drawn(table, MEMORY)
    assert memory.limit is not None
    assert memory.floor is not None
    assert (memory.limit.label, memory.floor.label) == ("your limit: 600 MiB", "your limit: 80 %")
    assert memory.left < memory.limit.at < memory.right
    assert memory.top < memory.floor.at < memory.bottom
    assert drawn(table, TRAINING).limit is None
    assert drawn(replace(table, limits={"quality": 0.6}), MEMORY).floor is None, "all that is shown is far above it"


@pytest.mark.parametrize("table", [classification(), language(), crowd()], ids=["classes", "words", "crowd"])
@pytest.mark.parametrize("axis", AXES, ids=lambda one: one.name)
def test_names_hide_neither_each_other_nor_a_marker(table: Table, axis: Axis) -> None:
    found = drawn(table, axis)
    boxes = []
    for spot in found.spots:
        if spot.label is not None:
            width = 6.5 * len(spot.label.text)
            start = spot.label.x if spot.label.anchor == "start" else spot.label.x - width
            boxes.append((start, spot.label.y - 6, start + width, spot.label.y + 6))
    assert len(boxes) >= min(4, len(found.spots))
    for place, (a, b, c, d) in enumerate(boxes):
        assert a >= 0
        assert c <= found.width
        assert all(c <= e or a >= g or d <= f or b >= h for e, f, g, h in boxes[place + 1 :])
        assert not any(a < spot.x < c and b < spot.y < d for spot in found.spots)


def test_nothing_is_drawn_of_what_is_not_a_number() -> None:
    table = language()
    wild = replace(table.methods[2], quality=Estimate(value=inf, low=1.0, high=inf))
    found = drawn(replace(table, methods=(*table.methods[:2], wild, *table.methods[3:])), MEMORY)
    assert wild.label not in [spot.method for spot in found.spots]
    assert all(isfinite(value) for spot in found.spots for value in (spot.x, spot.y, spot.low, spot.high))


def test_one_method_makes_no_drawing() -> None:
    table = classification()
    assert scatter(replace(table, methods=table.methods[:2]), MEMORY, str) is None
    assert scatter(replace(table, metric=None), MEMORY, str) is None


def test_a_cost_that_was_not_measured_is_named() -> None:
    table = classification()
    unknown = replace(table.methods[3], stored_bytes=None)
    found = drawn(replace(table, methods=(*table.methods[:3], unknown, *table.methods[4:])), STORED)
    assert found.unplaced == (unknown.label,)


def test_no_two_of_many_methods_look_the_same() -> None:
    looks = styles(crowd(methods=COLOURS * SHAPES))
    assert len(set(looks.values())) == COLOURS * SHAPES + 1


def curves_of(found: Curves | None) -> Curves:
    assert found is not None
    return found


def test_curves_keep_their_held_out_points_and_few_others() -> None:
    steps = curves_of(over_steps(classification()))
    assert [curve.method for curve in steps.curves][:2] == ["full", "lora"]
    assert all(len(curve.held_out) == 4 and len(curve.training) <= 24 for curve in steps.curves)
    assert "full: held-out loss 0.3005 after 120 steps and 1 m 36 s" in [curve.words for curve in steps.curves]


def test_over_seconds_the_slow_end_later() -> None:
    ends = {curve.method: curve.held_out[-1][0] for curve in curves_of(over_seconds(classification())).curves}
    assert ends["bitfit"] < ends["lora"] < ends["full"]


def test_one_slow_method_does_not_press_the_others_into_a_corner() -> None:
    table = classification()
    assert not curves_of(over_seconds(table)).is_log
    slow = table.methods[2]
    slow = replace(slow, curve=tuple(replace(point, seconds=20 * point.seconds) for point in slow.curve))
    found = curves_of(over_seconds(replace(table, methods=(*table.methods[:2], slow, *table.methods[3:]))))
    assert found.is_log
    ends = sorted(curve.held_out[-1][0] for curve in found.curves)
    assert ends[0] > (found.left + found.right) / 2


def test_names_at_the_ends_of_curves_stand_apart() -> None:
    for table in (classification(), crowd()):
        found = curves_of(over_steps(table))
        heights = sorted(curve.label.y for curve in found.curves)
        line = min(14, found.height / len(heights) - 1)
        assert all(after - before >= line - 0.2 for before, after in zip(heights, heights[1:], strict=False))
        assert heights[0] >= 0
        assert heights[-1] <= found.height


def test_without_validation_the_training_loss_is_drawn() -> None:
    table = classification()
    full = table.methods[1]
    alone = replace(full, curve=tuple(point for point in full.curve if not point.is_held_out))
    found = curves_of(over_steps(replace(table, methods=(alone,))))
    assert found.curves[0].held_out == ()
    assert found.curves[0].words.startswith("full: training loss")


def test_without_curves_there_is_no_drawing() -> None:
    table = classification()
    assert over_steps(replace(table, methods=table.methods[:1])) is None
