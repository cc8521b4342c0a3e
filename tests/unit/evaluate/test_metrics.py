from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.errors import BadData
from budwood.evaluate import metrics
from budwood.intervals import bootstrap, bootstrap_table, wilson
from budwood.records import Score

CLASSES = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3)), min_size=1, max_size=40)


def split(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])


def f1_by_hand(predictions: np.ndarray, labels: np.ndarray) -> float:
    scores = []
    for cls in sorted({*predictions.tolist(), *labels.tolist()}):
        tp = sum(1 for p, y in zip(predictions, labels, strict=True) if p == y == cls)
        fp = sum(1 for p, y in zip(predictions, labels, strict=True) if p == cls != y)
        fn = sum(1 for p, y in zip(predictions, labels, strict=True) if p != cls == y)
        scores.append(2 * tp / (2 * tp + fp + fn))
    return sum(scores) / len(scores)


def mcc_by_hand(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of the one-hot codes, which is what Gorodkin's statistic is."""
    classes = sorted({*predictions.tolist(), *labels.tolist()})
    x = np.array([[float(p == cls) for cls in classes] for p in predictions])
    y = np.array([[float(p == cls) for cls in classes] for p in labels])
    x, y = x - x.mean(0), y - y.mean(0)
    spread = math.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread > 1e-12 else 0.0


def assert_sound(score: Score) -> None:
    assert score.low <= score.high
    assert score.low - 1e-9 <= score.high + 1e-9 and math.isfinite(score.value)


def test_wilson_by_hand() -> None:
    # 8 of 10: Newcombe (1998) gives 0.4902 to 0.9433
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=5e-5), pytest.approx(0.9433, abs=5e-5))
    assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=5e-5)


@given(st.integers(1, 300), st.data())
def test_wilson_holds_the_share_and_narrows(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0.0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1.0
    wider, wider_high = high - low, wilson(right * 4, n * 4)
    assert wider_high[1] - wider_high[0] < wider


@given(CLASSES)
@settings(max_examples=60, deadline=None)
def test_class_metrics_against_their_definitions(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = split(pairs)
    assert metrics.accuracy(predictions, labels).value == pytest.approx((predictions == labels).mean())
    assert metrics.macro_f1(predictions, labels).value == pytest.approx(f1_by_hand(predictions, labels))
    assert metrics.mcc(predictions, labels).value == pytest.approx(mcc_by_hand(predictions, labels), abs=1e-9)


@given(CLASSES, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_class_metrics_do_not_hang_on_order_or_names(pairs: list[tuple[int, int]], dice: object) -> None:
    predictions, labels = split(pairs)
    order = np.random.default_rng(len(pairs)).permutation(len(pairs))
    renamed = 7 - 3 * predictions, 7 - 3 * labels
    for metric in (metrics.accuracy, metrics.macro_f1, metrics.mcc):
        score = metric(predictions, labels)
        assert_sound(score)
        assert metric(predictions[order], labels[order]).value == pytest.approx(score.value)
        assert metric(*renamed).value == pytest.approx(score.value)
        assert score.low >= -1 and score.high <= 1 and score.n == len(pairs)


def test_perfect_and_reversed() -> None:
    labels = np.array([0, 1, 0, 1])
    assert metrics.mcc(labels, labels).value == 1.0 and metrics.macro_f1(labels, labels).value == 1.0
    assert metrics.mcc(1 - labels, labels).value == -1.0
    assert metrics.mcc(np.zeros(4, int), labels).value == 0.0


def test_the_table_bootstrap_is_the_row_bootstrap() -> None:
    dice = np.random.default_rng(5)
    labels = dice.integers(0, 3, 200)
    predictions = np.where(dice.random(200) < 0.7, labels, dice.integers(0, 3, 200))
    draws = []
    for _ in range(2000):
        chosen = dice.integers(0, 200, 200)
        draws.append(f1_by_hand(predictions[chosen], labels[chosen]))
    low, high = np.quantile(draws, [0.025, 0.975])
    score = metrics.macro_f1(predictions, labels)
    assert (score.low, score.high) == (pytest.approx(low, abs=0.015), pytest.approx(high, abs=0.015))


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    dice = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        sample = dice.normal(2.0, 1.0, size=(80, 1))
        low, high = bootstrap(lambda sums: sums[:, 0] / 80, sample, seed=trial, resamples=400)
        hits += low <= 2.0 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_bootstrap_is_seeded_and_its_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = np.random.default_rng(0).random((50, 2))
    first = bootstrap(lambda sums: sums[:, 0] / sums[:, 1], columns, seed=4)
    assert bootstrap(lambda sums: sums[:, 0] / sums[:, 1], columns, seed=4) == first
    assert bootstrap(lambda sums: sums[:, 0] / sums[:, 1], columns, seed=5) != first
    monkeypatch.setattr("budwood.intervals.CELLS", 700)
    assert bootstrap(lambda sums: sums[:, 0] / sums[:, 1], columns, seed=4) == first
    table = np.array([[5, 1], [2, 9]])
    assert bootstrap_table(metrics.f1_of, table, seed=1) == bootstrap_table(metrics.f1_of, table, seed=1)


def test_loss_and_perplexity_weigh_rows_by_their_tokens() -> None:
    losses, tokens = np.array([2.0, 30.0, 0.0]), np.array([1, 10, 0])
    loss = metrics.mean_loss(losses, tokens)
    assert loss.value == pytest.approx(32 / 11) and loss.n == 2 and loss.unit == "nats per token"
    assert loss.low == pytest.approx(2.0) and loss.high == pytest.approx(3.0)
    perplexity = metrics.perplexity(losses, tokens)
    assert perplexity.value == pytest.approx(math.exp(32 / 11))
    assert perplexity.low == pytest.approx(math.exp(loss.low)) and perplexity.high >= perplexity.value


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 30)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_perplexity_lies_between_the_rows_perplexities(rows: list[tuple[float, int]]) -> None:
    losses, tokens = np.array([a for a, _ in rows]), np.array([b for _, b in rows])
    score = metrics.perplexity(losses, tokens)
    each = np.exp(losses / tokens)
    assert each.min() * (1 - 1e-9) <= score.low <= score.high <= each.max() * (1 + 1e-9)
    assert score.low * (1 - 1e-9) <= score.value <= score.high * (1 + 1e-9) or len(rows) > 1


def test_a_diverged_loss_is_infinite_not_an_error() -> None:
    assert metrics.perplexity(np.array([2000.0]), np.array([1])).value == math.inf


def test_one_row_has_an_interval_of_its_own_value() -> None:
    score = metrics.mean("x", np.array([0.25]), unit="0 to 1")
    assert (score.value, score.low, score.high, score.n) == (0.25, 0.25, 0.25, 1)


def test_nothing_to_score() -> None:
    nothing = np.array([], dtype=int)
    for metric in (metrics.accuracy, metrics.macro_f1, metrics.mcc):
        with pytest.raises(BadData, match="no rows"):
            metric(nothing, nothing)
        with pytest.raises(BadData, match="one class for each row"):
            metric(np.array([1]), np.array([1, 2]))
    with pytest.raises(BadData, match="rows with labels"):
        metrics.perplexity(np.array([0.0]), np.array([0]))
    with pytest.raises(BadData, match="no rows to compute exact_match"):
        metrics.share("exact_match", 0, 0)
