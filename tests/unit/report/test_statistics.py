from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from budwood.report.statistics import Scored, draw

Rights = Mapping[str, np.ndarray]


def scored(rights: Rights) -> dict[str, Scored]:
    """label -> [seeds, rows] of what each row adds."""
    return {
        label: Scored(tuple(range(len(rows))), rows.astype(float), np.ones(rows.shape))
        for label, rows in rights.items()
    }


def rights(dice: np.random.Generator, rows: int, shares: Mapping[str, float], seeds: int = 1) -> Rights:
    """Right answers of methods on the same rows, some of which are hard for all."""
    ease = dice.normal(size=rows)
    return {
        label: np.stack([(ease + dice.normal(size=rows) > -np.sqrt(2) * share) for _ in range(seeds)])
        for label, share in shares.items()
    }


def test_equal_methods_are_told_apart_in_one_of_twenty_samples_at_most() -> None:
    dice, apart, trials = np.random.default_rng(0), 0, 150
    for _ in range(trials):
        found = draw(scored(rights(dice, 120, dict.fromkeys("abcd", 0.5))), is_share=True, draws=400).between()
        apart += any(
            found[one][two].low > 0 or found[one][two].high < 0 for one in found for two in found if one != two
        )
    assert apart / trials <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / trials)


def test_clear_differences_are_seen_from_both_sides() -> None:
    found = draw(scored(rights(np.random.default_rng(1), 400, {"good": 1.0, "bad": -0.5})), is_share=True).between()
    assert found["good"]["bad"].low > 0
    assert found["bad"]["good"].high < 0
    assert found["good"]["bad"].value == pytest.approx(-found["bad"]["good"].value)


def test_a_method_and_itself_differ_by_nothing() -> None:
    drawn = draw(scored(rights(np.random.default_rng(2), 50, {"a": 0.2, "b": 0.4}, seeds=3)), is_share=True)
    for estimate in (drawn.over("a", "a"), drawn.between()["b"]["b"]):
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_the_order_of_methods_does_not_matter() -> None:
    made = scored(rights(np.random.default_rng(3), 80, {"a": 0.0, "b": 0.3, "c": 0.6}, seeds=2))
    turned = dict(reversed(list(made.items())))
    first, second = draw(made, is_share=True), draw(turned, is_share=True)
    for label in made:
        assert first.of(label) == second.of(label)
        for other in made:
            assert first.between()[label][other].low == pytest.approx(second.between()[label][other].low)


def test_rows_in_common_tell_more_than_rows_apart() -> None:
    dice = np.random.default_rng(4)
    ease = dice.normal(size=300)
    alike = {"a": (ease > 0)[None], "b": (ease > -0.1)[None]}
    apart = {"a": alike["a"], "b": (dice.permutation(ease) > -0.1)[None]}
    narrow, wide = (draw(scored(one), is_share=False).over("a", "b") for one in (alike, apart))
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)


def test_seeds_that_differ_widen_what_rows_tell() -> None:
    rows = np.random.default_rng(5).random((1, 500)) < 0.7
    same = {"a": np.repeat(rows, 3, axis=0), "base": rows}
    other = np.stack([rows[0], np.roll(rows[0], 7), rows[0]])
    other[2, :60] = False
    steady, shaken = (draw(scored(one), is_share=True).of("a") for one in (same, {"a": other, "base": rows}))
    assert shaken.high - shaken.low > 1.5 * (steady.high - steady.low)


def test_less_is_better_turns_the_sign_and_the_ends() -> None:
    made = scored(rights(np.random.default_rng(6), 60, {"a": 0.1, "b": 0.9}))
    plain, turned = draw(made, is_share=False).over("a", "b"), draw(made, is_share=False, sign=-1).over("a", "b")
    assert turned.value == -plain.value
    assert turned.low == pytest.approx(-plain.high, abs=2e-3)


def test_one_row_tells_nothing_apart() -> None:
    found = draw(scored({"a": np.array([[True]]), "b": np.array([[False]])}), is_share=True).between()["a"]["b"]
    assert found.value == 1.0
    assert found.low <= 0 <= found.high


def test_nothing_below_the_line_is_no_division() -> None:
    empty = {"a": Scored((0,), np.zeros((1, 3)), np.zeros((1, 3)))}
    assert draw(empty, is_share=False).of("a").value == 0.0
