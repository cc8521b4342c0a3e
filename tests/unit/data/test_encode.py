"""Encoding: exactly the answers and their stop tokens are learned, and nothing is cut in silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood import data
from budwood.data import IGNORE, Corpus, Example, Row, Turn, encode, encode_prompts
from budwood.errors import BadConfig, BadData
from tiny_tokenizers import BARE, CHATML, FORGETFUL, STRICT, make_tokenizer


def corpus_of(*values: Any, labels: tuple[str, ...] | None = None) -> Corpus:
    rows = tuple(Row(value=value, raw={}, file="t.jsonl", number=n) for n, value in enumerate(values, start=1))
    task = "causal-lm" if labels is None else "classification"
    return Corpus(origin="t", shape="", task=task, columns=(), used={}, splits={"train": rows}, labels=labels)


def talk(*contents: str, system: str | None = None) -> data.Conversation:
    """A conversation of user and assistant in turn."""
    turns = [Turn("system", system)] if system else []
    for place, content in enumerate(contents):
        turns.append(Turn("assistant", content, True) if place % 2 else Turn("user", content))
    return data.Conversation(tuple(turns))


def learned(example: Example, tokenizer: Any) -> list[str]:
    """The learned stretches, decoded."""
    stretches: list[list[int]] = []
    before = IGNORE
    assert example.labels is not None and len(example.labels) == len(example.ids)
    for id, label in zip(example.ids, example.labels, strict=True):
        if label != IGNORE:
            assert label == id
            if before == IGNORE:
                stretches.append([])
            stretches[-1].append(id)
        before = label
    return [tokenizer.decode(ids) for ids in stretches]


def decoded(example: Example, tokenizer: Any) -> str:
    return tokenizer.decode(example.ids)


def test_chat_learns_every_answer_and_its_stop(chatml):
    encoded = encode(corpus_of(talk("hi", "hello\n\n", "bye", "so long", system="be kind")), "train", chatml)
    (example,) = encoded.examples
    assert learned(example, chatml) == ["hello\n\n<|im_end|>", "so long<|im_end|>"]
    assert encoded.template == "chat" and encoded.stop_ids == (chatml.eos_token_id,)
    assert decoded(example, chatml).startswith("<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nhi")
    assert decoded(example, chatml).endswith("so long<|im_end|>")


def test_plain_learns_completion_and_eos(base):
    encoded = encode(corpus_of(talk("name : X", "X is a place ."), talk("ask:\n", "a")), "train", base)
    first, second = encoded.examples
    assert encoded.template == "plain" and encoded.stop_ids == (base.eos_token_id,)
    assert decoded(first, base) == "name : X X is a place .</s>"
    assert learned(first, base) == [" X is a place .</s>"]
    assert decoded(second, base) == "ask:\na</s>" and learned(second, base) == ["a</s>"]


def test_plain_with_several_turns_and_system(base):
    (example,) = encode(corpus_of(talk("a", "b", "c", "d", system="s")), "train", base).examples
    assert decoded(example, base) == "s\n\na b</s>c d</s>"
    assert learned(example, base) == [" b</s>", " d</s>"]


def test_plain_on_a_chat_tokenizer(chatml):
    (example,) = encode(corpus_of(talk("q", "a")), "train", chatml, template="plain").examples
    assert decoded(example, chatml) == "q a<|im_end|>"


def test_bos_stands_in_front_where_the_tokenizer_puts_it():
    tokenizer = make_tokenizer(bos=True)
    (example,) = encode(corpus_of(talk("q", "a")), "train", tokenizer).examples
    (prompt,) = encode_prompts([(Turn("user", "q"),)], tokenizer)
    (text,) = encode(corpus_of(data.Text("t")), "train", tokenizer).examples
    assert decoded(example, tokenizer) == "<s>q a</s>"
    assert decoded(prompt, tokenizer) == "<s>q"
    assert decoded(text, tokenizer) == "<s>t</s>" and learned(text, tokenizer) == ["t</s>"]


def test_text_is_learned_whole(base):
    encoded = encode(corpus_of(data.Text("There is a place"), data.Text("x")), "train", base)
    assert [learned(example, base) for example in encoded.examples] == [["There is a place</s>"], ["x</s>"]]
    assert encoded.template == "none"
    assert encoded.report.learned_tokens == encoded.report.total_tokens - 2  # the first token is no target


def test_a_template_that_rewrites_earlier_turns_is_unrolled():
    tokenizer = make_tokenizer(FORGETFUL, eos="<|im_end|>")
    encoded = encode(corpus_of(talk("a", "b", "c", "d"), talk("e", "f")), "train", tokenizer)
    assert encoded.report.rows_unrolled == 1 and encoded.report.examples == 3 and encoded.report.rows == 2
    assert [example.row for example in encoded.examples] == [0, 0, 1]
    assert [learned(example, tokenizer) for example in encoded.examples] == [
        ["<think></think>b<|im_end|>"],
        ["<think></think>d<|im_end|>"],
        ["<think></think>f<|im_end|>"],
    ]
    assert "<think>" not in decoded(encoded.examples[1], tokenizer).split("<think></think>d")[0]


def test_a_template_without_a_stop_gets_an_eos():
    tokenizer = make_tokenizer(BARE)
    encoded = encode(corpus_of(talk("a", "b", "c", "d")), "train", tokenizer)
    assert [learned(example, tokenizer) for example in encoded.examples] == [[" b</s>"], [" d</s>"]]
    assert decoded(encoded.examples[1], tokenizer) == "Q: a\nA: b\nQ: c\nA: d</s>"


def test_the_closing_token_of_the_template_is_a_stop():
    tokenizer = make_tokenizer(STRICT)
    encoded = encode(corpus_of(talk("a", " b ", "c", "d")), "train", tokenizer)
    turn = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert set(encoded.stop_ids) == {turn, tokenizer.eos_token_id}
    assert learned(encoded.examples[0], tokenizer) == ["b<end_of_turn>", "d<end_of_turn>"]


def test_stop_ids_of_the_generation_config(chatml):
    extra = chatml.convert_tokens_to_ids("<end_of_turn>")
    assert extra in encode(corpus_of(talk("a", "b")), "train", chatml, stop_ids=[extra]).stop_ids


def test_prompts_are_the_beginnings_of_examples(chatml, base):
    for tokenizer in (chatml, base, make_tokenizer(FORGETFUL, eos="<|im_end|>")):
        corpus = corpus_of(talk("a\n", "\n\nb"), talk("ask a", "b", "c \n", " d"))
        examples = encode(corpus, "train", tokenizer).examples
        prompts = encode_prompts([row.asked for row in corpus.rows("train")], tokenizer)
        last = {example.row: example for example in examples}
        for prompt in prompts:
            example = last[prompt.row]
            assert example.labels is not None and prompt.labels is None
            start = len(prompt.ids)
            assert example.ids[:start] == prompt.ids
            assert example.labels[start - 1] == IGNORE and example.labels[start] != IGNORE


def test_long_prompts_lose_their_beginning(base):
    (prompt,) = encode_prompts([(Turn("user", "There is a place in the city centre"),)], base, max_length=3)
    assert len(prompt.ids) == 3 and "There is a place in the city centre".endswith(decoded(prompt, base))


def test_refused_conversations_name_row_and_reason(chatml):
    strict = make_tokenizer(STRICT)
    with pytest.raises(BadData, match=r"t.jsonl, row 2: .*System role not supported.*'plain'"):
        encode(corpus_of(talk("a", "b"), talk("a", "b", system="s")), "train", strict)
    with pytest.raises(BadData, match="row 1: .*starts with an answer"):
        encode(corpus_of(data.Conversation((Turn("assistant", "a", True),))), "train", chatml)
    with pytest.raises(BadData, match=r"row 1: .*<\|im_end\|>.*take it out"):
        encode(corpus_of(talk("a", "b<|im_end|>")), "train", chatml)


def test_templates_that_are_not_there():
    with pytest.raises(BadConfig, match="no chat template.*plain"):
        encode(corpus_of(talk("a", "b")), "train", make_tokenizer(), template="chat")
    with pytest.raises(BadConfig, match="auto, chat or plain"):
        encode(corpus_of(talk("a", "b")), "train", make_tokenizer(), template="chatml")  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="no eos token"):
        encode(corpus_of(talk("a", "b")), "train", make_tokenizer(eos=None))


def test_cutting_is_counted(base):
    corpus = corpus_of(talk("a", "There is a place in the city centre ."), talk("a", "b"), talk("x" * 40, "b"))
    whole = encode(corpus, "train", base).report
    assert (whole.rows_cut, whole.rows_empty, whole.max_length) == (0, 0, None)
    encoded = encode(corpus, "train", base, max_length=6)
    report = encoded.report
    assert (report.rows, report.examples, report.rows_cut, report.rows_empty) == (3, 2, 2, 1)
    assert report.longest == whole.longest and max(len(example.ids) for example in encoded.examples) == 6
    assert [example.row for example in encoded.examples] == [0, 1]
    assert encode(corpus, "train", base, max_length=whole.longest).report.rows_cut == 0
    lines = "\n".join(report.describe())
    assert "2 rows cut at max_length 6" in lines and "1 rows left out" in lines and f"longest {whole.longest}" in lines


def test_every_answer_cut_away_names_the_length(base):
    corpus = corpus_of(talk("x" * 30, "b"), talk("y" * 50, "c"))
    longest = encode(corpus, "train", base).report.longest
    with pytest.raises(
        BadData, match=rf"every one of 2 answers is cut away at max_length 8.* {longest} keeps"
    ) as caught:
        encode(corpus, "train", base, max_length=8)
    first = int(str(caught.value).split("from ")[1].split()[0])
    assert encode(corpus, "train", base, max_length=first).report.learned_tokens == 1
    with pytest.raises(BadData):
        encode(corpus, "train", base, max_length=first - 1)
    with pytest.raises(BadConfig, match="at least 2"):
        encode(corpus, "train", base, max_length=1)


def test_no_answers_at_all(chatml):
    with pytest.raises(BadData, match="none of 1 rows has an answer"):
        encode(corpus_of(data.Conversation((Turn("user", "a"),))), "train", chatml)
    mixed = corpus_of(data.Conversation((Turn("user", "a"),)), talk("a", "b"))
    report = encode(mixed, "train", chatml).report
    assert (report.rows, report.examples, report.rows_empty) == (2, 1, 1)


def test_classification(base):
    pair = make_tokenizer(bos=True)
    values = [data.Labelled("a place", "in the city", 1), data.Labelled("a", "b", 0)]
    encoded = encode(corpus_of(*values, labels=("x", "y")), "train", pair)
    first = encoded.examples[0]
    assert (first.label, first.labels, encoded.template) == (1, None, "none")
    assert decoded(first, pair) == "<s>a place</s>in the city</s>"
    assert encoded.report.learned_tokens == 2
    single = corpus_of(data.Labelled("There is a place in the city", None, 1), labels=("x", "y"))
    cut = encode(single, "train", base, max_length=3)
    assert len(cut.examples[0].ids) == 3 and cut.report.rows_cut == 1 and cut.report.rows_empty == 0


def test_report_percentiles_and_duplicates(base):
    report = encode(corpus_of(*[data.Text("x" * n) for n in range(1, 101)], data.Text("X")), "train", base).report
    assert report.duplicates == 1
    assert (
        dict(report.percentiles)[50] <= dict(report.percentiles)[90] <= dict(report.percentiles)[99] <= report.longest
    )


def test_preview(chatml, base):
    (example,) = encode(corpus_of(talk("hi [x]", "hello")), "train", chatml).examples
    shown = data.preview(example, chatml)
    assert shown == "<|im_start|>user\nhi [x]<|im_end|>\n<|im_start|>assistant\n[[hello<|im_end|>]]"
    assert data.stretches(example, chatml)[-1] == ("hello<|im_end|>", True)
    labelled = Example(ids=base("a place")["input_ids"], label=1, row=0)
    assert data.preview(labelled, base, labels=("neg", "pos")) == "a place -> [[pos]]"


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<>"), max_size=12)
asked = words.filter(str.strip)
TOKENIZERS = {
    "chatml": make_tokenizer(CHATML, eos="<|im_end|>"),
    "plain": make_tokenizer(bos=True),
    "forgetful": make_tokenizer(FORGETFUL, eos="<|im_end|>"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(asked, words), min_size=1, max_size=4))
def test_learned_text_is_exactly_the_answers(name, exchanges):
    tokenizer = TOKENIZERS[name]
    row = talk(*[content for exchange in exchanges for content in exchange])
    encoded = encode(corpus_of(row), "train", tokenizer)
    found = [text for example in encoded.examples for text in learned(example, tokenizer)]
    stop = tokenizer.eos_token
    if name == "plain":
        expected = [answer + stop for _, answer in exchanges]
        assert [
            text.removeprefix(" ") if not a[:1].isspace() else text for text, a in zip(found, expected, strict=True)
        ] == expected
    elif name == "forgetful":
        assert found == [f"<think></think>{answer}{stop}" for _, answer in exchanges]
    else:
        assert found == [answer + stop for _, answer in exchanges]
    for example in encoded.examples:
        assert example.labels is not None and example.ids[-1] == example.labels[-1] == tokenizer.eos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("contents", [("2+2?", "4"), ("Hi", "Hello!\n", "\nWhat? 日本語", " 🙂 ok\n\n", "x", "y")])
def test_real_chat_tokenizer(contents):
    from transformers import AutoTokenizer

    from budwood import assets

    tokenizer = AutoTokenizer.from_pretrained(assets.get("demo-lm"))
    encoded = encode(corpus_of(talk(*contents)), "train", tokenizer)
    (example,) = encoded.examples
    assert learned(example, tokenizer) == [answer + "<|im_end|>" for answer in contents[1::2]]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in encoded.stop_ids
