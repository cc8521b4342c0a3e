"""Words and their tags: reading, what tags mark, and labels at the first token of each word."""

from __future__ import annotations

from typing import Any

import pytest
from reading import refusal

from budwood.data import IGNORE, Tagged, check, collate, encode, preview, read, split_words
from budwood.data.tagging import encode_words, firsts
from budwood.data.tags import marked, spans
from budwood.errors import BadData

ROWS = [
    {"tokens": ["Ada", "Lovelace", "is", "in", "the", "centre"], "tags": ["B-PER", "I-PER", "O", "O", "O", "B-LOC"]},
    {"tokens": ["It", "is", "an", "answer"], "tags": ["O", "O", "O", "O"]},
]
NAMES = ("O", "B-LOC", "B-PER", "I-PER")


def test_tokens_and_tags_are_recognised_without_a_task(write: Any) -> None:
    corpus = read(write("names.jsonl", ROWS))
    assert (corpus.task, corpus.shape, corpus.labels) == ("token-classification", "tokens + tags", NAMES)
    assert corpus.rows("train")[0].value == Tagged(tuple(ROWS[0]["tokens"]), (2, 3, 0, 0, 0, 1))
    assert corpus.rows("train")[0].prompt == "Ada Lovelace is in the centre"
    mapped = read(write("ner.jsonl", [{"words": r["tokens"], "ner": r["tags"]} for r in ROWS]),
                  columns={"tokens": "words", "tags": "ner"})  # fmt: skip
    assert mapped.hash() == corpus.hash()
    numbers = [{"tokens": r["tokens"], "tags": [NAMES.index(t) for t in r["tags"]]} for r in ROWS]
    assert read(write("numbers.jsonl", numbers), labels=NAMES).hash() == corpus.hash()


def test_a_conll_file_is_the_same(write: Any) -> None:
    text = "-DOCSTART- -X- O\n\nAda NNP B-PER\nLovelace NNP I-PER\nis V O\nin P O\nthe D O\ncentre N B-LOC\n\n\n"
    corpus = read(write("names.conll", text + "It\tO\nis\tO\nan\tO\nanswer\tO"))
    assert corpus.hash() == read(write("names.jsonl", ROWS)).hash()
    assert corpus.where("train", 0).endswith("row 1 (line 3)") and len(corpus.rows("train")) == 2
    refusal(
        BadData,
        "broken.conll, line 2",
        "'is' is one column",
        "write a word, a space, its tag",
        source=write("broken.conll", "a O\nis\n"),
    )


def test_a_dataset_names_its_tags() -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=list(NAMES))),
        }
    )
    rows = {"tokens": [r["tokens"] for r in ROWS], "tags": [[NAMES.index(t) for t in r["tags"]] for r in ROWS]}
    corpus = read(datasets.Dataset.from_dict(rows, features=features))
    assert corpus.labels == NAMES and corpus.rows("train")[0].value.tags == (2, 3, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, ("row 2", "2 tokens and 1 tags", "one tag for each token")),
        ({"tokens": [], "tags": []}, ("row 2", "tokens is '[]'", "one entry for each word")),
        ({"tokens": "a b", "tags": ["O", "O"]}, ("row 2", "tokens is 'a b'", '{"tokens": ["Ada"')),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, ("row 2", "tokens[1] is ' '", "leave empty ones out")),
        ({"tokens": ["a"], "tags": [1]}, ("row 2", "tags[0] is the number 1", "such as B-PER")),
        ({"tokens": ["a"], "tags": [None]}, ("row 2", "tags[0] is None", "expected a tag")),
    ],
)
def test_rows_that_do_not_fit_are_refused(write: Any, row: dict[str, object], words: tuple[str, ...]) -> None:
    refusal(BadData, *words, source=write("names.jsonl", [ROWS[0], row]))


def test_tags_that_nobody_knows_are_refused(write: Any) -> None:
    write("folder/train.jsonl", ROWS)
    write("folder/test.jsonl", [{"tokens": ["a"], "tags": ["B-PRE"]}])
    folder = write("folder/README", "").parent
    refusal(BadData, "test.jsonl, row 1", "'B-PRE'", "not a tag of the train split", "'B-PER'", source=folder)
    refusal(BadData, "holds 1 tag (O)", "at least two tags", source=write("one.jsonl", [ROWS[1]]))
    refusal(BadData, "no shape recognised to tag words", "--columns tokens=words,tags=other",
            source=write("w.jsonl", [{"words": ["a"], "other": ["O"]}]), task="token-classification")  # fmt: skip


def test_the_first_token_of_each_word_is_labelled(write: Any, base: Any) -> None:
    corpus = read(write("names.jsonl", ROWS))
    encoded = encode(corpus, "train", base)
    first = encoded.examples[0]
    assert base.decode(first.ids) == "Ada Lovelace is in the centre" and not first.shift
    assert [label for label in first.labels or [] if label != IGNORE] == [2, 3, 0, 0, 0, 1]
    words = [base.decode([first.ids[token]]).strip() for token, _ in firsts(first.parts or [])]
    assert all(whole.startswith(piece) and piece for whole, piece in zip(ROWS[0]["tokens"], words, strict=True))
    assert encoded.report.learned_tokens == 10 == collate(encoded.examples, 0).num_targets
    shown = preview(first, base, labels=corpus.labels)
    assert shown.startswith("Ada[[B-PER]] Lovelace[[I-PER]] is in the centre[[B-LOC]]")


def test_what_is_cut_off_loses_its_tags(write: Any, base: Any) -> None:
    whole = encode(read(write("names.jsonl", ROWS)), "train", base)
    cut = encode(read(write("names.jsonl", ROWS)), "train", base, max_length=len(whole.examples[0].ids) - 1)
    kept = [label for label in cut.examples[0].labels or [] if label != IGNORE]
    assert cut.report.rows_cut == 1 and kept in ([2, 3, 0, 0, 0], [2, 3, 0, 0, 0, 1])
    with pytest.raises(BadData, match="none of 1 rows has a word with a tag left; raise max_length"):
        encode(
            read(write("names.jsonl", [{"tokens": ["\u200b"], "tags": ["B-PER"]}]), labels=NAMES),
            "train",
            _Silent(base),
        )


class _Silent:
    """A tokenizer that makes nothing of any text, as some do of invisible characters."""

    def __init__(self, inner: Any) -> None:
        self.is_fast, self.model_max_length = True, inner.model_max_length

    def __call__(self, texts: list[str], **settings: object) -> dict[str, Any]:
        return {"input_ids": [[0] for _ in texts], "offset_mapping": [[(0, 0)] for _ in texts]}


def test_a_word_of_several_tokens_and_one_of_none(base: Any) -> None:
    (example,), (length,) = encode_words([["Alimentum", "Ünïcödé"]], base)
    assert length == len(example.ids) > 2
    assert [word for _, word in firsts(example.parts or [])] == [0, 1]
    assert set(example.parts or []) >= {(0, 1), (1, 2)}


@pytest.mark.parametrize(
    ("tags", "found", "strictly"),
    [
        # as conlleval: an I after O or after another kind begins a span; strictly it does not
        ("B-X I-X O B-Y", [(0, 2, "X"), (3, 4, "Y")], [(0, 2, "X"), (3, 4, "Y")]),
        ("I-X I-X O", [(0, 2, "X")], []),
        ("B-X I-Y", [(0, 1, "X"), (1, 2, "Y")], [(0, 1, "X")]),
        ("B-X B-X I-X", [(0, 1, "X"), (1, 3, "X")], [(0, 1, "X"), (1, 3, "X")]),
        ("O O", [], []),
    ],
)
def test_spans_of_iob2(tags: str, found: list[Any], strictly: list[Any]) -> None:
    assert spans(tags.split()) == found
    assert spans(tags.split(), ("O", "B-X", "I-X", "B-Y", "I-Y")) == strictly


@pytest.mark.parametrize(
    ("tags", "found", "strictly"),
    [
        ("S-X B-X I-X E-X", [(0, 1, "X"), (1, 4, "X")], [(0, 1, "X"), (1, 4, "X")]),
        ("U-X B-X L-X", [(0, 1, "X"), (1, 3, "X")], [(0, 1, "X"), (1, 3, "X")]),
        ("B-X I-X O", [(0, 2, "X")], []),
        ("E-X E-X", [(0, 1, "X"), (1, 2, "X")], []),
        ("B-X E-X I-X", [(0, 2, "X"), (2, 3, "X")], [(0, 2, "X")]),
    ],
)
def test_spans_of_iobes(tags: str, found: list[Any], strictly: list[Any]) -> None:
    assert spans(tags.split()) == found
    assert spans(tags.split(), ("O", "S-X", "B-X", "I-X", "E-X")) == strictly


def test_tags_without_a_letter_mark_runs() -> None:
    assert (
        spans(["DET", "NOUN", "NOUN", "O"])
        == [(0, 1, "DET"), (1, 3, "NOUN")]
        == spans(["DET", "NOUN", "NOUN", "O"], ("DET", "NOUN", "O"))
    )
    assert marked(["Ada", "King", "of", "Ockham", "."], ["B-PER", "I-PER", "O", "B-LOC", "O"]) == (
        "[PER Ada King] of [LOC Ockham] ."
    )
    assert split_words("Ada's well-known, isn't she?") == ["Ada's", "well-known", ",", "isn't", "she", "?"]


def test_equal_words_with_other_tags_contradict(write: Any) -> None:
    other = {**ROWS[0], "tags": ["O"] * 6}
    kinds = {finding.kind: finding.rows for finding in check(read(write("names.jsonl", [*ROWS, ROWS[1], other])))}
    assert kinds == {"repeats": 1, "contradictions": 1}
