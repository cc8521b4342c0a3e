"""Shapes: what is recognised from which columns, what it becomes, and what is refused with which words."""

from __future__ import annotations

import pytest
from reading import refusal, turns

from budwood import data
from budwood.errors import BadData

ASK = [("user", "q", False), ("assistant", "a", True)]
SYSTEM = ("system", "be brief", False)

CASES = [
    ({"prompt": "q", "completion": "a"}, "prompt/completion", ASK),
    ({"prompt": "q", "completion": "a", "system": "be brief"}, "prompt/completion", [SYSTEM, *ASK]),
    (
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        "prompt/completion",
        ASK,
    ),
    ({"question": "q", "answer": "a"}, "question/answer", ASK),
    ({"instruction": "q", "output": "a"}, "instruction/output", ASK),
    ({"instruction": "q", "input": "", "output": "a"}, "instruction/output", ASK),
    (
        {"instruction": "q", "input": "x", "output": "a", "system": "be brief", "history": [["q0", "a0"]]},
        "instruction/output",
        [SYSTEM, ("user", "q0", False), ("assistant", "a0", True), ("user", "q\nx", False), ASK[1]],
    ),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        "messages",
        ASK,
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": "no", "weight": 0},
                {"role": "assistant", "content": "a", "weight": 1},
            ]
        },
        "messages",
        [ASK[0], ("assistant", "no", False), ASK[1]],
    ),
    (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "be brief"},
        "sharegpt conversations",
        [SYSTEM, *ASK],
    ),
]


@pytest.mark.parametrize(("row", "shape", "expected"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_conversations(write, row, shape, expected):
    corpus = data.read(write("a.jsonl", [row]))
    assert (corpus.shape, corpus.task, turns(corpus)) == (shape, "causal-lm", expected)
    assert shape in corpus.describe()[0]


def test_prompt_and_answer_of_a_row(write):
    talk = [("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"), ("user", "bye")]
    corpus = data.read(write("a.jsonl", [{"messages": [{"role": who, "content": what} for who, what in talk]}]))
    row = corpus.rows("train")[0]
    assert [turn.content for turn in row.asked] == ["q1", "a1", "q2"] and row.answer == "a2"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, ["messages is not a list"]),
        ({"messages": "hello"}, ["messages is not a list"]),
        ({"messages": ["hello"]}, ["messages[0]", "'hello'", '"role"']),
        ({"messages": [{"role": "boss", "content": "x"}]}, ["'boss'", "system, user, assistant"]),
        ({"messages": [{"role": "tool", "content": "x"}]}, ["'tool'", "tools are not supported"]),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, ["calls tools"]),
        ({"messages": [{"role": "user", "content": None}]}, ["content 'None'", "write a string"]),
        ({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}, ["declares tools"]),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, ["'function_call'", "human, gpt"]),
        ({"prompt": 5, "completion": "x"}, ["prompt is int '5'", "write a string"]),
        ({"prompt": None, "completion": "x"}, ["prompt is nothing"]),
        ({"prompt": "\ud800", "completion": "x"}, ["half a character"]),
        ({"instruction": "q", "output": "a", "history": ["x"]}, ["history", "pairs"]),
    ],
)
def test_bad_values_name_the_row(write, row, words):
    good = {name: CASES_BY_COLUMN[next(iter(row))][name] for name in CASES_BY_COLUMN[next(iter(row))]}
    path = write("a.jsonl", [good, row])
    refusal(BadData, str(path), "row 2", *words, source=path)


CASES_BY_COLUMN = {next(iter(row)): row for row, _, _ in reversed(CASES)}


def test_unrecognised_columns(write):
    path = write("a.jsonl", [{"q": "x", "a": "y"}])
    refusal(BadData, str(path), "Columns found: q, a", "--columns prompt=q,completion=a", source=path)
    path = write("a.csv", "review,stars\nfine,5\nbad,1\nmeh,5\n")
    refusal(BadData, "review, stars", "--columns text=review,label=stars", source=path, task="classification")


def test_columns_override(write):
    path = write("a.jsonl", [{"q": "q", "a": "a", "text": "t"}])
    corpus = data.read(path, columns={"prompt": "q", "completion": "a"})
    assert corpus.shape == "prompt/completion" and turns(corpus) == ASK
    assert "prompt = column 'q'" in corpus.describe()[0] and "columns not used: text" in corpus.describe()
    corpus = data.read(write("b.csv", "review,stars\nfine,5\nbad,1\n"), columns={"text": "review", "label": "stars"})
    assert corpus.labels == ("1", "5")
    refusal(BadData, "no column 'quest'", "columns found: q, a, text", source=path, columns={"prompt": "quest"})


def test_columns_by_number_without_header(write):
    path = write("a.csv", "what is it,an answer\nwho,me\n")
    corpus = data.read(path, columns={"prompt": "1", "completion": "2"})
    assert turns(corpus, row=0)[0][1] == "what is it"


def test_mixed_shapes_name_the_first_offending_row(write):
    path = write("a.jsonl", [CASES[0][0], {"text": "x"}, {"text": "y"}])
    refusal(BadData, "row 2", "has text but no prompt, completion", "prompt/completion", source=path)
    write("f/train.jsonl", [{"text": "x"}])
    path = write("f/test.jsonl", [{"prompt": "q", "completion": "a"}])
    refusal(BadData, "test.jsonl, row 1", source=path.parent)


def test_labels_strings_and_numbers(write):
    rows = [{"text": str(n), "label": n} for n in (10, 9, 2, True)]
    assert data.read(write("a.jsonl", rows[:3])).labels == ("2", "9", "10")
    named = data.read(write("b.jsonl", [{"sentence": "x", "label": "pos"}, {"sentence": "y", "label": "neg"}]))
    assert named.labels == ("neg", "pos")
    assert [row.value.label for row in named.rows("train")] == [1, 0]
    pair = {"sentence1": "x", "sentence2": "y", "label": 0}
    corpus = data.read(write("c.jsonl", [pair, {**pair, "label": 1.0}]))
    assert corpus.shape.startswith("sentence1") and corpus.labels == ("0", "1")
    assert corpus.rows("train")[0].value.pair == "y"


def test_bad_labels(write):
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    refusal(BadData, "row 3", "0.5", source=write("a.jsonl", [*rows, {"text": "z", "label": 0.5}]))
    refusal(BadData, "row 3", "label is empty", source=write("a.jsonl", [*rows, {"text": "z", "label": None}]))
    refusal(BadData, "1 class", "at least two", source=write("a.jsonl", rows[:1] * 3))
    write("f/train.jsonl", rows)
    path = write("f/test.jsonl", [rows[0], {"text": "z", "label": "bb"}])
    refusal(BadData, "test.jsonl, row 2", "'bb'", "did you mean 'b'?", source=path.parent)


def test_labels_of_a_trained_model(write):
    path = write("a.jsonl", [{"text": "x", "label": "b"}])
    corpus = data.read(path, labels=["z", "b"])
    assert corpus.labels == ("z", "b") and corpus.rows("train")[0].value.label == 1
    refusal(BadData, "row 1", "'b'", source=path, labels=["x", "y"])


def test_task_chooses_between_shapes(write):
    path = write("a.jsonl", [{"text": "x", "label": 0}, {"text": "y", "label": 1}])
    assert data.read(path).task == "classification"
    assert data.read(path, task="causal-lm").shape == "text"
    refusal(BadData, "to classify", source=write("b.jsonl", [{"text": "x"}]), task="classification")


@pytest.mark.parametrize(
    ("content", "columns", "first"),
    [
        ("1\tgood film\n0\tbad film\n", ("label", "text"), "good film"),
        ("good film,pos\nbad film,neg\nok film,pos\n", ("text", "label"), "good film"),
        ("stars\treview\n5\tgood film\n1\tbad\n5\tfine\n", None, None),
        ("mood\treview\npos\tgood film\npos\tfine film\nneg\tbad\nneg\tworse\n", None, None),
    ],
)
def test_two_columns_without_header(write, content, columns, first):
    path = write("a.tsv" if "\t" in content else "a.csv", content)
    if columns is None:
        refusal(BadData, "Columns found", source=path)
        return
    corpus = data.read(path)
    assert (corpus.columns, corpus.rows("train")[0].value.text) == (columns, first)
    assert "no header" in "\n".join(corpus.describe())
