from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from budwood.errors import BadData, NotAvailable
from budwood.evaluate.overlap import (
    bleu,
    common_subsequence,
    exact_match,
    f1_of,
    rouge_l,
    rouge_l_of,
    squad_words,
    token_f1,
)

WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "dog"]), max_size=12)
TEXTS = st.lists(st.tuples(WORDS.map(" ".join), WORDS.map(" ".join)), min_size=1, max_size=6)


def subsequence_by_table(first: list[str], second: list[str]) -> int:
    """The textbook's table of prefixes."""
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_common_subsequence_against_the_table(first: list[str], second: list[str]) -> None:
    assert common_subsequence(first, second) == subsequence_by_table(first, second)
    assert common_subsequence(second, first) == common_subsequence(first, second)


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        # Lin (2004), section 3.1: "police killed the gunman" against its candidates: LCS 3 and 2 of 4 words
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        # LCS "the cat on mat" = 4; 5 and 6 words: 2 * 4 / 11
        ("the cat sat on mat", "the big cat is on mat", 8 / 11),
        ("Hello, WORLD!", "hello world", 1.0),
        ("snake_case", "snake case", 1.0),
        ("Größe: 5", "größe 5", 1.0),
        ("", "", 1.0),
        ("", "word", 0.0),
        ("...", "word", 0.0),
        ("a b", "c d", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, reference: str, value: float) -> None:
    assert rouge_l_of(prediction, reference) == pytest.approx(value)
    assert rouge_l([prediction], [reference]).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "f1"),
    [
        ("The Cat.", "cat", 1, 1.0),
        ("a cat, an owl", "cat owl", 1, 1.0),
        ("the black cat", "black dog", 0, 2 * 0.5 * 0.5),
        ("cat cat dog", "cat", 0, 2 * 1 / (3 + 1)),
        ("Theory", "ory", 0, 0.0),  # only whole articles go
        ("the", "", 1, 1.0),
        ("cat", "", 0, 0.0),
    ],
)
def test_exact_match_and_token_f1_by_hand(prediction: str, reference: str, exact: int, f1: float) -> None:
    assert exact_match([prediction], [reference]).value == exact
    assert f1_of(prediction, reference) == pytest.approx(f1)
    assert token_f1([prediction], [reference]).value == pytest.approx(f1)


def test_words() -> None:
    assert squad_words("The  U.S.'s an-swer, a Test") == ["uss", "answer", "test"]


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_text_metrics_lie_in_their_range_and_reward_equality(rows: list[tuple[str, str]]) -> None:
    predictions, references = [a for a, _ in rows], [b for _, b in rows]
    for metric in (exact_match, token_f1, rouge_l):
        score = metric(predictions, references)
        assert 0 <= score.low <= score.high <= 1 and 0 <= score.value <= 1 and score.n == len(rows)
        assert metric(references, references).value == 1.0
        several = [[reference, prediction] for prediction, reference in rows]
        assert metric(predictions, several).value == 1.0
    assert exact_match(predictions, references).value <= token_f1(predictions, references).value + 1e-12


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_bleu_is_sacrebleus(rows: list[tuple[str, str]]) -> None:
    predictions, references = [a for a, _ in rows], [b for _, b in rows]
    expected = BLEU().corpus_score(predictions, [references]).score
    score = bleu(predictions, references)
    assert score.value == pytest.approx(expected)
    assert 0 <= score.low <= score.high <= 100 + 1e-9


def test_bleu_with_several_references() -> None:
    predictions = ["the cat sat on the mat .", "it is a very small dog indeed"]
    references = [
        ["the cat is on the mat .", "there is a cat on the mat ."],
        ["it is a small dog", "it was a very small dog indeed"],
    ]
    streams = [[row[i] for row in references] for i in range(2)]
    assert bleu(predictions, references).value == pytest.approx(BLEU().corpus_score(predictions, streams).score)
    assert bleu(["same words here today"], ["same words here today"]).value == pytest.approx(100)


def test_bleu_without_sacrebleu_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(NotAvailable, match=r"pip install 'budwood\[metrics\]'"):
        bleu(["a"], ["a"])


def test_rows_that_do_not_fit() -> None:
    with pytest.raises(BadData, match="1 predictions for 2 references"):
        rouge_l(["a"], ["a", "b"])
    with pytest.raises(BadData, match="no rows"):
        token_f1([], [])
    with pytest.raises(BadData, match="row 2 has no reference"):
        exact_match(["a", "b"], ["a", []])
