from __future__ import annotations

from typing import Any

import pytest

from budwood.errors import BadConfig
from budwood.shrink.config import Shrinking, is_nothing, parameters

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({}, "say how far: to: 0.5"),
    "two targets": ({"to": 0.5, "to_params": "1M"}, "keep one of them"),
    "no share": ({"to": 0}, "to is 0.*above 0 and at most 1"),
    "above one": ({"min_quality": 98}, "min_quality is 98"),
    "no time": ({"latency": -1}, "latency is -1"),
    "step": ({"to": 0.5, "step": 0}, "step is 0"),
    "a dimension": ({"to": 0.5, "cut": "ffn+head"}, "cut names 'head'; did you mean 'heads'"),
    "no dimension": ({"to": 0.5, "cut": []}, "nothing may be cut; name some of layers"),
    "a score": ({"to": 0.5, "score": "tailor"}, "score is 'tailor'; did you mean 'taylor'"),
    "few rows": ({"to": 0.5, "rows": 7}, "calibrate on at least 8 rows"),
    "tune": ({"to": 0.5, "tune": "long"}, "tune: .*; 0steps leaves it out"),
    "steps for time": ({"to": 0.5, "budget": "5steps"}, r"a shrinking has a time \(30m\)"),
    "a count": ({"to_params": "0M"}, "write a number of parameters"),
    "a field": ({"too": 0.5}, "shrinking has no setting 'too'; did you mean 'to'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes(case: str) -> None:
    said, words = WRONG[case]
    with pytest.raises(BadConfig, match=words):
        Shrinking.from_dict(said)


def test_what_is_said_comes_back() -> None:
    said = Shrinking(to=0.5, cut=("layers", "hidden"), budget="30m", score="taylor")
    assert Shrinking.from_dict(said.to_dict()) == said
    assert set(said.to_dict()) == set(Shrinking.names())


def test_targets() -> None:
    assert Shrinking(to=0.5).target(1001) == 500
    assert Shrinking(to_params="1.5k").target(2000) == 1500
    assert Shrinking(min_quality=0.9).target(2000) == Shrinking(latency=0.9).target(2000) == 0
    for whole in (Shrinking(to=1.0), Shrinking(to_params="3k")):
        with pytest.raises(BadConfig, match="the model has 2,000 parameters, and .* are to stay; say fewer"):
            whole.target(2000)


@pytest.mark.parametrize(("text", "count"), [("80M", 80e6), ("1.2b", 1.2e9), ("900k", 9e5), ("1,000_000", 1e6)])
def test_counts_in_words(text: str, count: float) -> None:
    assert parameters(text) == count


def test_nothing_at_all() -> None:
    assert all(is_nothing(text) for text in ("0steps", "0 steps", "0.0h", "0epochs", "0s"))
    assert not any(is_nothing(text) for text in ("10steps", "0.5h", "steps"))
