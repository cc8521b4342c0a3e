"""Repeats, leakage, and splits that keep groups whole."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood import data
from budwood.data import Corpus, Row, Text
from budwood.errors import BadConfig, BadData


def rows_of(*texts: str, **columns: list[object]) -> tuple[Row, ...]:
    return tuple(
        Row(
            value=Text(text),
            raw={"text": text, **{name: values[n] for name, values in columns.items()}},
            file="t.jsonl",
            number=n + 1,
        )
        for n, text in enumerate(texts)
    )


def corpus_of(**splits: tuple[Row, ...]) -> Corpus:
    return Corpus(origin="t", shape="text", task="causal-lm", columns=("text",), used={"text": "text"}, splits=splits)


texts = st.lists(st.sampled_from(["a", "A ", "b", " b", "c  c", "C c", "d", "e", "f"]), min_size=1, max_size=30)


@given(texts)
def test_dedup_keeps_the_first_of_each_and_is_done_once(values):
    once, gone = data.dedup(corpus_of(train=rows_of(*values)))
    kept = [row.value.text for row in once.rows("train")]
    assert len(kept) + gone == len(values)
    assert len({" ".join(text.casefold().split()) for text in values}) == len(kept)
    assert kept[0] == values[0]
    assert data.dedup(once)[1] == 0


@given(st.lists(st.sampled_from("abcdefgh"), min_size=3, max_size=60), st.integers(0, 5))
def test_split_keeps_groups_whole_and_loses_nothing(values, seed):
    rows = rows_of(*values)
    shares = {"train": 0.6, "validation": 0.2, "test": 0.2}
    if len(set(values)) < 3:
        with pytest.raises(BadData, match="cannot fill 3 splits"):
            data.split(rows, shares, seed=seed)
        return
    parts = data.split(rows, shares, seed=seed)
    assert parts == data.split(rows, shares, seed=seed)
    assert Counter(row.number for part in parts.values() for row in part) == Counter(range(1, len(values) + 1))
    assert all(part for part in parts.values())
    assert all([row.number for row in part] == sorted(row.number for row in part) for part in parts.values())
    assert data.leaks(corpus_of(**parts)) == []


def test_split_sizes_seed_and_column():
    rows = rows_of(*[f"text {n}" for n in range(1000)], topic=[n % 10 for n in range(1000)])
    parts = data.split(rows, {"train": 0.8, "test": 0.2})
    assert len(parts["test"]) == 200
    assert parts["test"] != data.split(rows, {"train": 0.8, "test": 0.2}, seed=1)["test"]
    parts = data.split(rows, {"train": 0.8, "test": 0.2}, group="topic")
    topics = [{row.raw["topic"] for row in part} for part in parts.values()]
    assert topics[0].isdisjoint(topics[1]) and len(topics[1]) == 2
    with pytest.raises(BadConfig, match="no column 'topics'.*did you mean 'topic'"):
        data.split(rows, {"train": 0.8, "test": 0.2}, group="topics")
    for bad in ({}, {"train": 0.5}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(BadConfig, match="add up to 1"):
            data.split(rows, bad)


def test_validation_is_carved_off_once_and_shown():
    corpus = corpus_of(train=rows_of(*[f"t{n % 50}" for n in range(100)]))
    carved = data.with_validation(corpus)
    assert [len(rows) for rows in carved.splits.values()] == [90, 10] and list(carved.splits) == ["train", "validation"]
    assert data.leaks(carved) == [] and data.with_validation(carved) is carved
    assert "validation: 10 of 100 rows (10%) carved off train" in "\n".join(carved.describe())
    single = data.with_validation(corpus_of(train=rows_of("a", "a")))
    assert list(single.splits) == ["train"] and "no validation" in single.describe()[-1]
    with pytest.raises(BadData, match="no train split"):
        data.with_validation(corpus_of(test=rows_of("a")))


def test_check_finds_repeats_leakage_and_empty_texts():
    corpus = corpus_of(train=rows_of("a", "b", "A", ""), test=rows_of("c", " B"))
    found = {finding.kind: finding for finding in data.check(corpus)}
    assert set(found) == {"repeats", "leakage", "empty-texts"}
    assert found["repeats"].rows == 1 and "row 3 = t.jsonl, row 1" in found["repeats"].message
    assert "row 2 (test) = t.jsonl, row 2 (train)" in found["leakage"].message
    assert "budwood data split" in found["leakage"].message
    assert data.check(corpus_of(train=rows_of("a", "b"))) == ()


def test_check_finds_contradictions_and_empty_answers(write):
    path = write("a.jsonl", [{"text": "x", "label": "a"}, {"text": "X", "label": "b"}, {"text": "y", "label": "a"}])
    (finding,) = data.check(data.read(path))
    assert finding.kind == "contradictions" and "row 2" in finding.message and "row 1" in finding.message
    path = write("b.jsonl", [{"prompt": "x", "completion": " "}, {"prompt": "y", "completion": "z"}])
    (finding,) = data.check(data.read(path))
    assert finding.kind == "empty-answers" and finding.rows == 1


def test_rows_are_written_as_they_were_read(write, tmp_path):
    rows = [{"prompt": "é\n", "completion": "b", "n": 1}, {"prompt": "c", "completion": "d", "n": 2}]
    corpus = data.read(write("a.jsonl", rows))
    data.write_jsonl(corpus.rows("train"), tmp_path / "out.jsonl")
    again = data.read(tmp_path / "out.jsonl")
    assert again.hash() == corpus.hash() and [dict(row.raw) for row in again.rows("train")] == rows
