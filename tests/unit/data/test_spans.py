"""Questions about a text: the forms that answers come in, and windows with the tokens that answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reading import refusal

from budwood.data import Passage, check, collate, encode, preview, read, with_validation
from budwood.data.corpus import Answer
from budwood.errors import BadData

CONTEXT = "There is a place in the city centre. What is it? An answer in the city."
ASKED = {"context": CONTEXT, "question": "Where is it?"}


def value(write: Any, answers: object, name: str = "answers") -> Passage:
    corpus = read(write("q.jsonl", [{**ASKED, name: answers}]), task="question-answering")
    found = corpus.rows("train")[0].value
    assert isinstance(found, Passage)
    return found


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["city centre"], "answer_start": [24]},
        [{"text": "city centre", "answer_start": 24}],
        [" city centre "],
        "city centre",
        {"text": [" city centre"], "answer_start": [23]},
        {"text": ["city centre", "city centre"], "answer_start": [24, 24]},
        {"text": ["city centre"]},
    ],
)
def test_answers_in_every_form(write: Any, answers: object) -> None:
    assert value(write, answers) == Passage(CONTEXT, "Where is it?", (Answer("city centre", 24),))
    assert value(write, answers, "answer") == value(write, answers)


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, [], "", None])
def test_a_question_may_have_no_answer(write: Any, answers: object) -> None:
    assert value(write, answers).answers == ()
    corpus = read(write("q.jsonl", [{**ASKED, "answers": answers}]))
    assert corpus.task == "question-answering"
    assert corpus.notes == ("1 of 1 questions have no answer in their text: to say so is learned",)


def test_the_first_of_several_places_is_taken_and_said(write: Any) -> None:
    corpus = read(write("q.jsonl", [{**ASKED, "answers": "city"}]))
    assert corpus.rows("train")[0].value.answers == (Answer("city", 24),)
    assert "stand in their text more than once: the first place is taken" in corpus.notes[0]
    assert not value(write, {"text": ["city"], "answer_start": [66]}).is_first_of_several


def test_a_file_of_squad_is_read_as_published(write: Any) -> None:
    asked = [
        {"id": "a", "question": "Where?", "answers": [{"text": "in the city", "answer_start": 17}]},
        {"id": "b", "question": "Who?", "is_impossible": True, "plausible_answers": [], "answers": []},
    ]
    whole = {"version": "2", "data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": asked}]}]}
    corpus = read(write("squad.json", json.dumps(whole)))
    assert [row.answer for row in corpus.rows("train")] == ["in the city", ""]
    broken = {"data": [{"paragraphs": [{"qas": []}]}, {"paragraphs": [{"qas": [{"question": "a"}]}]}]}
    refusal(BadData, "begins like a file of SQuAD", "KeyError('context')", source=write("b.json", json.dumps(broken)))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"answers": "the village"}, ("row 1", "'the village' does not stand in the context", "letter by letter")),
        (
            {"answers": {"text": ["city centre"], "answer_start": [3]}},
            ("row 1", "answer_start 3 points at 're is a pla'", "stands at 24"),
        ),
        ({"answers": {"text": ["city"], "answer_start": [-11]}}, ("row 1", "answer_start -11 points at ''")),
        ({"answers": {"text": ["city"], "answer_start": []}}, ("row 1", "1 texts and answer_start []", "one for each")),
        ({"answers": [7]}, ("row 1", "an answer is '7'", "answer_start")),
        ({"answers": "city", "question": " "}, ("row 1", "the context or the question is empty")),
        ({"answers": "city", "context": 3}, ("row 1", "context is int '3', expected text")),
    ],
)
def test_rows_that_do_not_fit_are_refused(write: Any, row: dict[str, object], words: tuple[str, ...]) -> None:
    refusal(BadData, *words, source=write("q.jsonl", [{**ASKED, **row}]))


def test_a_question_and_an_answer_alone_stay_a_conversation(write: Any) -> None:
    assert read(write("q.jsonl", [{**ASKED, "answer": "city"}])).shape == "question/answer"


def test_the_span_is_the_answer(write: Any, base: Any) -> None:
    corpus = read(write("q.jsonl", [{**ASKED, "answers": "in the city centre"}, {**ASKED, "answers": []}]))
    encoded = encode(corpus, "train", base)
    first, none = encoded.examples
    begin, end = first.span or (0, 0)
    assert base.decode(first.ids[begin : end + 1]).strip() == "in the city centre" and none.span == (0, 0)
    assert first.parts is not None and first.parts[begin][0] <= 17 and first.parts[end][1] == 35
    batch = collate(encoded.examples, 0)
    assert batch.spans.tolist() == [[begin, end], [0, 0]] and batch.labels is None and batch.num_targets == 2
    assert "[[ in the city centre]]" in preview(first, base) and encoded.report.learned_tokens == 2


def test_long_texts_are_read_in_windows(write: Any, base: Any) -> None:
    long = "It is here. " * 10 + "The answer is Zizzi. " + "It is there. " * 10
    corpus = read(write("q.jsonl", [{"context": long, "question": "What?", "answers": "Zizzi"}]))
    encoded = encode(corpus, "train", base, max_length=40)
    assert encoded.report.rows_windowed == 1 and encoded.report.rows_cut == encoded.report.rows_unrolled == 0
    assert any("read in several windows" in line for line in encoded.report.describe())
    spans = [(example, example.span) for example in encoded.examples]
    holding = [(example, span) for example, span in spans if span != (0, 0)]
    assert 1 <= len(holding) < len(spans) and all(len(example.ids) <= 40 for example, _ in spans)
    for example, (begin, end) in holding:
        assert long[example.parts[begin][0] : example.parts[end][1]].strip() == "Zizzi"
    seen = {place for example, _ in spans for part in example.parts or [] if part for place in range(*part)}
    assert seen == set(range(len(long)))  # every character stands in some window
    with pytest.raises(
        BadData, match=r"q.jsonl, row 1: the question 'What\?' has .* nothing of the text fits in max_l"
    ):
        encode(corpus, "train", base, max_length=3)


def test_questions_about_one_text_stay_together(write: Any) -> None:
    rows = [{"context": f"Text {n // 4} .", "question": f"What is {n}?", "answers": "Text"} for n in range(40)]
    parts = with_validation(read(write("q.jsonl", rows)))
    texts = [{row.value.context.split()[1] for row in parts.rows(split)} for split in ("train", "validation")]
    assert texts[1] and not texts[0] & texts[1]
    assert [finding.kind for finding in check(read(write("q.jsonl", [rows[0], rows[0]])))] == ["repeats"]
