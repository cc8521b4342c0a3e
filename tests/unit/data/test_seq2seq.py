"""Rows for encoder-decoders: sources read as plain text, targets that end."""

from __future__ import annotations

from typing import Any

import pytest

from budwood.data import IGNORE, collate, encode, encode_sources, for_encoder_decoder, preview, read
from budwood.errors import BadConfig, BadData
from tiny_tokenizers import make_tokenizer


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ({"source": "There is", "target": "a place"}, "There is"),
        ({"prompt": "There is", "completion": "a place"}, "There is"),
        ({"question": "There is", "answer": "a place"}, "There is"),
        ({"instruction": "There is", "input": "city", "output": "a place"}, "There is\ncity"),
    ],
)
def test_every_pair_of_texts_is_read(write: Any, base: Any, row: dict[str, str], source: str) -> None:
    path = write("rows.jsonl", [row])
    encoded = encode(read(path, task="seq2seq"), "train", base)
    (example,) = encoded.examples
    assert base.decode(example.ids) == source
    assert example.target is not None and base.decode(example.target) == "a place</s>"
    assert example.num_targets == encoded.report.learned_tokens == len(example.target) and example.labels is None
    assert preview(example, base) == f"{source} -> [[a place</s>]]"
    assert read(path).task == "causal-lm"  # a decoder learns the same rows where nobody says
    assert for_encoder_decoder(read(path)).task == "seq2seq"


def test_rows_that_are_no_pairs_stay_what_they_are(write: Any) -> None:
    text = read(write("text.jsonl", [{"text": "a place"}]))
    films = read(write("films.jsonl", [{"text": "a", "label": label} for label in "xy"]))
    assert for_encoder_decoder(text) is text and for_encoder_decoder(films) is films


def test_a_target_ends_once_and_rows_lose_their_end(write: Any, base: Any) -> None:
    ending = make_tokenizer(bos=True)
    ending.backend_tokenizer.post_processor = _framed()
    corpus = read(write("rows.jsonl", [{"source": "There is " * 9, "target": "a place " * 7}]), task="seq2seq")
    (example,) = encode(corpus, "train", ending).examples
    assert example.target is not None and example.target[0] == 0 and example.target.count(1) == 1
    short = encode(corpus, "train", ending, max_length=6)
    assert short.report.rows_cut == 1 and short.report.longest > 6
    assert short.examples[0].ids[-1] == 1 and len(short.examples[0].ids) == 6
    assert short.examples[0].target == example.target[:6]


def _framed() -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])


def test_batches_pad_both_sides_by_themselves(write: Any, base: Any) -> None:
    rows = [
        {"source": "There is", "target": "a place in the city centre"},
        {"source": "What is it ? " * 4, "target": "a"},
    ]
    examples = encode(read(write("rows.jsonl", rows), task="seq2seq"), "train", base).examples
    batch = collate(examples, 2)
    assert batch.labels is not None and batch.labels.shape[1] != batch.input_ids.shape[1]
    assert batch.target_lengths == tuple(example.num_targets for example in examples) and not batch.shift
    assert batch.num_targets == sum(batch.target_lengths) and int((batch.labels == IGNORE).sum()) > 0
    assert "decoder_input_ids" not in batch.inputs()  # the model makes them
    assert [example.row for example in encode_sources(["a", "b"], base)] == [0, 1]


def test_refusals(write: Any) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    with pytest.raises(BadData, match="no shape recognised to turn one text into another.*source=messages"):
        read(write("chat.jsonl", rows), task="seq2seq")
    unanswered = [{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}]
    corpus = read(write("rows.jsonl", unanswered), task="seq2seq")
    with pytest.raises(BadData, match="none of 1 rows has an answer to learn from; give each row a target"):
        encode(corpus, "train", make_tokenizer())
    with pytest.raises(BadConfig, match="no eos token to end an answer with"):
        encode(corpus, "train", make_tokenizer(eos=None))
