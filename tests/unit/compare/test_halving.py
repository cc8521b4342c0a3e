from __future__ import annotations

import pytest

from budwood.compare.halving import Costs, as_good, by_candidate, kept, ranked, scores_of
from budwood.compare.search import candidates_of, seconds_of
from budwood.errors import BadConfig
from budwood.methods import METHODS, method_from_dict
from budwood.records import Trial
from budwood.train.config import Budget

SCORES = {("a", 0.1): 2.0, ("a", 0.2): 1.0, ("b", 0.1): 1.005, ("b", 0.3): 3.0, ("c", 0.1): 1.5, ("c", 0.2): 9.0}


def trial(label: str, rung: int = 0, *losses: float | None, **more: object) -> Trial:
    rates = tuple(float(n) for n in range(1, len(losses) + 1))
    return Trial(label=label, rung=rung, steps=8, rates=rates, losses=losses, **more)  # type: ignore[arg-type]


def test_the_best_third_goes_on() -> None:
    assert kept(SCORES) == [("a", 0.2), ("b", 0.1)]
    assert kept({("a", 0.1): 2.0, ("b", 0.1): 1.0}) == [("b", 0.1)]
    assert ranked(SCORES)[-1] == ("c", 0.2)
    assert by_candidate([("a", 0.2), ("b", 0.1), ("a", 0.1)]) == {"a": (0.1, 0.2), "b": (0.1,)}


def test_who_is_as_good_is_said_and_nobody_else() -> None:
    assert as_good(SCORES) == [("b", 0.1)]
    assert as_good({("a", 0.1): 1.0}) == []


def test_rates_that_diverged_have_no_score() -> None:
    assert scores_of([trial("a", 0, 1.0, None), trial("a", 1, 0.5)], 0) == {("a", 1.0): 1.0}


def test_costs_know_starting_from_steps() -> None:
    costs = Costs([trial("a", 0, 1.0, 1.0, step_s=0.5, seconds=20.0)])
    assert costs.expected("a", 1, 24) == pytest.approx(12.0 + 12.0)
    assert costs.expected("b", 3, 8) == 20.0
    assert Costs([]).expected("b", 3, 8) == 0.0


def test_a_method_without_fields_is_tried_in_several_sizes() -> None:
    assert [one.label for one in candidates_of(["lora", "bitfit", "adapter-h:size=8"])] == [
        "lora", "bitfit", "adapter-h:size=8", "lora:rank=2", "lora:rank=32",
    ]  # fmt: skip
    assert [one.label for one in candidates_of(["lora", "lora:rank=2"])] == ["lora", "lora:rank=2", "lora:rank=32"]


@pytest.mark.parametrize(
    "method", [method for method in METHODS if method.sizes_to_try[1]], ids=lambda method: method.name
)
def test_sizes_are_of_a_field_and_the_first_is_what_nobody_said(method: type) -> None:
    field, values = method.sizes_to_try  # type: ignore[attr-defined]
    usual = method_from_dict({method.name: {}})  # type: ignore[attr-defined]
    assert method_from_dict({method.name: {field: values[0]}}).build is not None  # type: ignore[attr-defined]
    own = getattr(usual, field)
    assert own in (None, values[0])
    if own is None:
        assert usual.standard[field] == values[0]  # type: ignore[attr-defined]
    for value in values[1:]:
        assert getattr(method_from_dict({method.name: {field: value}}), field) == value  # type: ignore[attr-defined]


@pytest.mark.parametrize("budget", ["200steps", "2epochs", "10ktokens"])
def test_a_search_stops_on_time(budget: str) -> None:
    with pytest.raises(BadConfig, match="stops on time.*--budget 20m"):
        seconds_of(Budget.parse(budget))
    assert seconds_of(Budget.parse("2m")) == 120
