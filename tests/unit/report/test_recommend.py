from __future__ import annotations

from dataclasses import replace

import pytest

from budwood.errors import BadConfig
from budwood.records import BASE
from budwood.report.recommend import recommend
from budwood.report.table import Estimate, Table
from report_tables import classification


def ranked(values: dict[str, float], *, sure: float = 0.03) -> Table:
    """The made-up comparison, with these qualities; differences above `sure` are certain."""
    table = classification()

    def gap(one: str, two: str) -> Estimate:
        value, reach = values[one] - values[two], 0.0 if one == two else sure
        return Estimate(value=value, low=value - reach, high=value + reach)

    methods = tuple(
        replace(one, over_base=gap(one.label, BASE) if one.label != BASE else None)
        for one in table.methods
        if one.label in values
    )
    return replace(table, methods=methods, between={a: {b: gap(a, b) for b in values} for a in values})


VALUES = {BASE: 0.5, "full": 0.90, "lora": 0.89, "ia3": 0.885, "prompt": 0.70}


def test_the_cheapest_of_those_that_cannot_be_told_apart_is_named() -> None:
    pick = recommend(ranked(VALUES))
    assert pick.tied == ("full", "lora", "ia3")
    assert pick.label == "ia3"
    assert pick.cheapest["trained parameters"] == "ia3"
    assert "Use ia3" in pick.headline
    assert any("cannot be told apart" in reason for reason in pick.reasons)
    assert any(reason.startswith("prompt is worse than full by 20.0 points") for reason in pick.reasons)


def test_one_that_is_better_than_all_is_named_though_it_costs_most() -> None:
    pick = recommend(ranked({**VALUES, "full": 0.99}))
    assert (pick.label, pick.tied) == ("full", ("full",))
    assert "better than every other method here" in pick.headline


def test_where_training_gained_nothing_that_shows_the_base_is_kept() -> None:
    pick = recommend(ranked({BASE: 0.88, "full": 0.90, "lora": 0.89}, sure=0.05))
    assert pick.label == BASE
    assert "training gained nothing" in pick.headline
    worse = recommend(ranked({BASE: 0.95, "full": 0.70, "lora": 0.60}))
    assert worse.label == BASE
    assert "training made it worse" in worse.headline


def test_one_that_may_be_no_better_than_the_base_is_not_named() -> None:
    table = ranked({BASE: 0.5, "full": 0.90, "ia3": 0.88})
    unsure = tuple(
        replace(one, over_base=Estimate(value=0.38, low=-0.01, high=0.7)) if one.label == "ia3" else one
        for one in table.methods
    )
    pick = recommend(replace(table, methods=unsure))
    assert pick.label == "full"
    assert any("ia3" in reason and "untuned model either" in reason for reason in pick.reasons)


def test_limits_leave_methods_out_and_say_so() -> None:
    pick = recommend(ranked(VALUES), parameters="10k")
    assert pick.label == "ia3"
    assert set(pick.over_limits) == {"full", "lora"}
    none = recommend(ranked({BASE: 0.5, "full": 0.9, "lora": 0.89}), parameters="1k")
    assert none.label is None
    assert none.headline.startswith("No method is within the limits. lora comes nearest")


def test_where_nothing_was_scored_nothing_is_recommended() -> None:
    pick = recommend(ranked({BASE: 0.5}))
    assert pick.label is None
    assert "nothing can be recommended" in pick.headline


@pytest.mark.parametrize(("limit", "value"), [("memory", "six"), ("answer_time", "fast"), ("parameters", "-1")])
def test_a_limit_that_cannot_be_read(limit: str, value: str) -> None:
    with pytest.raises(BadConfig, match=value):
        recommend(ranked(VALUES), **{limit: value})


def test_a_limit_of_the_table_that_is_none() -> None:
    with pytest.raises(BadConfig, match="no limit 'memry_bytes'"):
        recommend(replace(ranked(VALUES), limits={"memry_bytes": 1.0}))
