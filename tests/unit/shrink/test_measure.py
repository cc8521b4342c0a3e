from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from budwood.errors import BadConfig
from budwood.evaluate import LossReport
from budwood.records import Timing
from budwood.shrink import measure
from budwood.shrink.measure import Held, check_task, timed_beside
from families import FAMILIES
from training import PAD, labelled, rows


def report(losses: list[float], correct: list[int], order: list[int] | None = None) -> LossReport:
    places = np.arange(len(losses)) if order is None else np.array(order)
    tokens = np.full(len(losses), 2)
    return LossReport(
        rows=places, losses=np.array(losses)[places], tokens=tokens, correct=np.array(correct)[places], route=""
    )


def test_quality_of_a_language_model_is_paired_over_rows() -> None:
    held = Held("causal-lm", (), 0, 8)
    whole, worse = report([1.0, 9.0, 4.0], [0, 0, 0]), report([1.2, 9.2, 4.2], [0, 0, 0], order=[2, 0, 1])
    found = held.quality(worse, whole)
    assert found.value == pytest.approx(np.exp(-0.1))  # 0.2 nats a row of two tokens
    assert found.high - found.low < 1e-9  # every row loses the same, however different they are
    itself = held.quality(whole, whole)
    assert (itself.value, itself.low, itself.high) == (1.0, 1.0, 1.0)


def test_quality_of_a_classifier_is_its_accuracy() -> None:
    held = Held("classification", (), 0, 8)
    found = held.quality(report([0.0] * 4, [1, 1, 0, 0]), report([0.0] * 4, [1, 1, 1, 1]))
    assert found.value == 0.5 and found.low < 0.5 < found.high and "accuracy" in found.unit


@pytest.mark.parametrize(("family", "task"), [("llama", "causal-lm"), ("bert-classify", "classification")])
def test_rows_are_asked_whatever_their_order(family: str, task: Any) -> None:
    examples = tuple(rows(9) if task == "causal-lm" else labelled(9))
    model = FAMILIES[family].build()
    one, few = (Held(task, examples, PAD, size).ask(model) for size in (9, 2))
    np.testing.assert_allclose(one.by_row()[1], few.by_row()[1], rtol=1e-4)
    assert [score.name for score in Held(task, examples, PAD, 2).scores(few)] == [
        "perplexity" if task == "causal-lm" else "accuracy", "loss"
    ]  # fmt: skip


def test_a_task_without_a_measure() -> None:
    with pytest.raises(BadConfig, match="does not know what quality is for question-answering; it does for causal-lm"):
        check_task("question-answering")
    check_task("token-classification")


def test_a_ratio_of_neighbours_does_not_see_a_machine_that_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([1.0, 2.0, 10.0, 20.0, 100.0, 200.0])  # own, other, own, other, ...

    def timed(model: Any, repeats: int) -> Timing:
        return Timing(batch=1, prompt_tokens=64, prefill_s=next(clock), per_token_s=None, how="")

    monkeypatch.setattr(measure, "timed", timed)
    assert timed_beside(cast(Any, None), cast(Any, None))[1] == 2.0
