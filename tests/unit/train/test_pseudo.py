"""Which method stands in for the <p> of a pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from budwood.data import Cloze
from budwood.errors import BadConfig
from budwood.methods import LoRA, PromptTuning
from budwood.train.pseudo import filling


@dataclass(frozen=True, kw_only=True)
class PTuning:
    """The fields of p-tuning that a pattern sets."""

    length: int = 20
    place: str | None = None
    name: str = "p-tuning"


def cloze(pattern: str = "<p><p> {text} <p> <mask>") -> Cloze:
    return Cloze.of(pattern, "fine=good,poor=bad")


@pytest.mark.parametrize("method", [PTuning(), PTuning(length=3), PTuning(length=3, place="inside")])
def test_p_tuning_gets_the_pattern_s_number_and_place(method: Any) -> None:
    assert filling(method, cloze()) == PTuning(length=3, place="inside")


def test_nothing_changes_without_pseudo_tokens() -> None:
    for method in (PTuning(length=5), LoRA()):
        for given in (None, cloze("{text} <mask>")):
            assert filling(method, given) is method  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LoRA(), "has 3 <p>, and method lora has nothing to put there; use --method p-tuning, or leave <p> out"),
        (PTuning(length=4), "p-tuning:length=4 does not fit the pattern, whose 3 <p> make length 3; leave length out"),
        (PTuning(place="front"), "p-tuning:place=front does not fit the pattern.*make place inside"),
    ],
)
def test_what_does_not_fit(method: Any, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        filling(method, cloze())


def test_pseudo_tokens_without_a_pattern_are_refused() -> None:
    with pytest.raises(BadConfig, match="there are none; use --task cloze"):
        filling(PromptTuning(place="inside"), None)
