"""Clozes: patterns and verbalizers as people write them, rows as a language model reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from budwood.data import Labelled, collate, encode, preview, read, with_cloze
from budwood.data.batch import Blank, Example
from budwood.data.cloze import Writer
from budwood.data.pattern import Cloze, parse_verbalizer
from budwood.errors import BadConfig, BadData
from tiny_tokenizers import make_tokenizer
from tokens import tokenizer

WORDS = "fine=good,poor=bad|w5"


def masked() -> Any:
    """A word tokenizer as BERT's: a mask token, and special tokens around the text."""
    made = tokenizer()
    made.mask_token = "w59"
    special = [("<bos>", 1), ("<eos>", 2)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", pair=None, special_tokens=special
    )
    return made


def written(pattern: str, made: Any, *values: Labelled, is_masked: bool, most: int | None = None) -> list[Example]:
    cloze = Cloze.of(pattern, WORDS).for_model(is_masked=is_masked)
    return [example for example, _ in Writer.of(cloze, made).write(values, most)]


def shown(example: Example, made: Any) -> str:
    return " ".join(str(id) if id < 0 else made.convert_ids_to_tokens(id) for id in example.ids)


ONE = Labelled("the film w1", None, 1)
TWO = Labelled("the film w1", "it w2", 0)


def test_a_masked_lm_reads_pattern_text_and_mask() -> None:
    made = masked()
    (example,) = written("<p> {text} it is <mask> <p><p>.", made, ONE, is_masked=True)
    assert shown(example, made) == "<bos> -1 the film w1 it is w59 -2 -3 . <eos>"
    assert example.blank is not None and example.blank.place == 7 and example.label == 1
    good, bad, w5 = (made.convert_tokens_to_ids(word) for word in ("good", "bad", "w5"))
    assert example.blank.words == ((good,), (bad, w5))
    (pair,) = written("{sentence1}? <mask>, {sentence2}", made, TWO, is_masked=True)
    assert shown(pair, made).split("?")[1].split()[0] == "w59"
    assert preview(example, made, labels=("fine", "poor")).startswith("<bos><p>the film")


def test_a_mask_in_the_text_is_not_the_one_that_is_read() -> None:
    made = masked()
    (example,) = written("{text} is <mask>", made, Labelled("w59 film", None, 0), is_masked=True)
    assert shown(example, made) == "<bos> w59 film is w59 <eos>"
    assert example.blank is not None and example.blank.place == 4


@pytest.mark.parametrize("pattern", ["{text} it is", "{text} it is <mask>", "{text} it is  "])
def test_a_decoder_is_read_at_the_last_token(pattern: str) -> None:
    made = tokenizer()
    (example,) = written(pattern, made, ONE, is_masked=False)
    assert shown(example, made) == "the film w1 it is"
    assert example.blank is not None and example.blank.place == len(example.ids) - 1


def test_bytes_get_the_space_where_they_need_it() -> None:
    made = make_tokenizer(bos=True)
    for pattern in ("{text}It is <mask>", "{text}It is", "{text}<p><mask>"):
        cloze = Cloze.of(pattern, "x=a,y=the").for_model(is_masked=False)
        assert [made.convert_ids_to_tokens(of[0]) for of in Writer.of(cloze, made).words] == ["Ġa", "Ġthe"], pattern
    for pattern in ("{text} It is:\n<mask>", "{text} It is:\n", "{text}(<mask>"):
        cloze = Cloze.of(pattern, "x=a,y=t").for_model(is_masked=False)
        assert [made.convert_ids_to_tokens(of[0]) for of in Writer.of(cloze, made).words] == ["a", "t"], pattern
    (example, _), *_ = Writer.of(cloze, made).write([ONE], None)
    assert example.ids[0] == made.bos_token_id and made.eos_token_id not in example.ids


def test_sentencepiece_gets_no_space_of_its_own_inside() -> None:
    vocabulary = ["<unk>", "▁it", "▁is", "▁good", "▁bad", ".", "▁.", "▁", "<mask>", "</s>"]
    inner = Tokenizer(models.Unigram([(piece, -1.0) for piece in vocabulary], unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", mask_token="<mask>", eos_token="</s>")
    cloze = Cloze.of("{text} is <mask>.", "x=good,y=bad")
    (example, _), *_ = Writer.of(cloze, made).write([Labelled("it", None, 0)], None)
    assert made.convert_ids_to_tokens(example.ids) == ["▁it", "▁is", "<mask>", "."]
    assert made.convert_ids_to_tokens([of[0] for of in example.blank.words]) == ["▁good", "▁bad"]


def test_cutting_takes_text_and_nothing_else() -> None:
    made = masked()
    long = Labelled(" ".join(f"w{n}" for n in range(30)), "it w2", 0)
    (example,) = written("<p> {sentence1}? <mask>, {sentence2} <p>", made, long, is_masked=True, most=16)
    assert len(example.ids) <= 16
    read = shown(example, made)
    assert read.startswith("<bos> -1 w0 w1") and read.endswith("-2 <eos>") and "w59" in read and "it w2" in read
    assert made.convert_ids_to_tokens(example.ids[example.blank.place]) == "w59"  # type: ignore[union-attr]
    with pytest.raises(BadConfig, match="the pattern alone has 5 tokens, and max_length is 4"):
        written("{text} it is <mask>", made, ONE, is_masked=True, most=4)


def test_rows_are_counted_as_any_others(write: Any) -> None:
    path = write("films.jsonl", [{"text": f"w{n} film", "label": ("fine", "poor")[n % 2]} for n in range(4)])
    corpus = with_cloze(read(path, task="cloze"), Cloze.of("{text} is", WORDS).for_model(is_masked=False))
    encoded = encode(corpus, "train", tokenizer(), max_length=2 + 1)
    assert encoded.report.learned_tokens == 4 and encoded.template == "none" and encoded.report.rows_cut == 0
    assert [example.row for example in encoded.examples] == [0, 1, 2, 3]
    empty = write("empty.jsonl", [{"text": "", "label": "fine"}, {"text": "a", "label": "poor"}])
    corpus = with_cloze(read(empty, task="cloze"), Cloze.of("<p> {text}", WORDS).for_model(is_masked=False))
    with pytest.raises(BadData, match=r"empty\.jsonl, row 1: neither its text nor the pattern"):
        encode(corpus, "train", tokenizer())
    with pytest.raises(BadConfig, match="task cloze needs a pattern"):
        encode(read(path, task="cloze"), "train", tokenizer())


def test_batches_lose_their_pseudo_tokens_in_one_place() -> None:
    made = masked()
    rows = [ONE, Labelled("w1 w2 w3 w4 w5 film", None, 0)]
    batch = collate(written("<p> {text} <p><p> is <mask> <p>.", made, *rows, is_masked=True), 0)
    plain = collate(written("{text} is <mask>.", made, *rows, is_masked=True), 0)
    assert batch.pseudo == 4 and batch.words is not None and batch.words.tolist()[0][1] == -1
    bare = batch.without_pseudo()
    for ours, theirs in ((bare.input_ids, plain.input_ids), (bare.attention_mask, plain.attention_mask)):
        assert ours.tolist() == theirs.tolist()
    assert bare.places is not None and plain.places is not None and bare.places.tolist() == plain.places.tolist()
    assert bare.lengths == plain.lengths and bare.pseudo == 0 and plain.without_pseudo() is plain
    (last,) = written("{text} is <p><p>", tokenizer(), ONE, is_masked=False)
    ended = collate([last], 0).without_pseudo()
    assert ended.places is not None and ended.places.tolist() == [ended.input_ids.shape[1] - 1]
    left = collate(written("{text} is <mask>.", made, *rows, is_masked=True), 0, "left")
    assert left.input_ids.gather(1, left.places[:, None]).unique().numel() == 1  # type: ignore[index]
    with pytest.raises(BadData, match="a batch mixes rows of several patterns"):
        collate([Example(ids=[1], label=0, blank=Blank(0, words), row=0) for words in (((1,),), ((2,),))], 0)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("It was <mask>.", r"has no \{text\}"),
        ("{txt} was <mask>", r"has \{txt\}; .*\{text\}"),
        ("{text} was <msk>", r"has <msk>; .*<mask>"),
        ("{text} was <mask> <mask>", "has 2 <mask>; write one"),
        ("{text} {sentence} <mask>", r"has 2 \{text\}; write one"),
    ],
)
def test_patterns_that_mean_nothing(pattern: str, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        Cloze.of(pattern, WORDS)


def test_patterns_that_do_not_fit(write: Any) -> None:
    cloze = Cloze.of("{text} is <mask>.", WORDS)
    with pytest.raises(BadConfig, match="goes on after <mask>.*put <mask> last"):
        cloze.for_model(is_masked=False)
    with pytest.raises(BadConfig, match="has no <mask>, where this masked LM"):
        Cloze.of("{text} is", WORDS).for_model(is_masked=True)
    with pytest.raises(BadConfig, match="has no mask token"):
        Writer.of(cloze, tokenizer())
    rows = [{"sentence1": "a", "sentence2": "b", "label": label} for label in ("fine", "poor")]
    pairs = read(write("pairs.jsonl", rows), task="cloze")
    with pytest.raises(BadConfig, match=r"has no \{sentence2\}, and rows are sentence1 \+ sentence2"):
        with_cloze(pairs, cloze)
    films = read(write("films.jsonl", [{"sentence": "a", "label": label} for label in ("fine", "poor")]), task="cloze")
    with pytest.raises(BadConfig, match=r"has \{sentence2\}, and rows are sentence \+ label"):
        with_cloze(films, Cloze.of("{sentence1} <mask> {sentence2}", WORDS))
    with pytest.raises(BadConfig, match="no word for the label 'poor'; labels are fine, poor: add poor=WORD"):
        with_cloze(films, Cloze.of("{text} <mask>", "fine=good"))
    with pytest.raises(BadConfig, match="a word for 'pure', which is no label; .*poor"):
        with_cloze(films, Cloze.of("{text} <mask>", WORDS + ",pure=w3"))
    swapped = with_cloze(films, Cloze.of("{text} <mask>", "poor=bad,fine=good"))
    assert swapped.cloze is not None and swapped.cloze.labels == films.labels == ("fine", "poor")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fine=good,fine=bad", "names 'fine' twice"),
        ("fine", "no word for 'fine'"),
        ("fine=good|,poor=bad", "no word for 'fine'"),
        ({"fine": 3}, "has 3 for 'fine'; write label=word pairs"),
    ],
)
def test_verbalizers_that_mean_nothing(words: Any, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        parse_verbalizer(words)


def test_words_are_one_token_each_and_differ() -> None:
    made = make_tokenizer()
    with pytest.raises(BadConfig, match=r"word 'placed' for 'poor' becomes 'Ġplace', 'd', and must be one.* do: place"):
        Writer.of(Cloze.of("{text} is", "fine=a,poor=placed").for_model(is_masked=False), made)
    with pytest.raises(BadConfig, match=r"'a' for 'poor' is the same token as 'a' for 'fine'"):
        Writer.of(Cloze.of("{text} is", "fine=a,poor=the|a").for_model(is_masked=False), made)
    with pytest.raises(BadConfig, match=r"'ugly' for 'poor' becomes '<unk>'.*do: .*bad"):
        Writer.of(Cloze.of("{text} is", "fine=good,poor=ugly").for_model(is_masked=False), tokenizer())


def test_what_is_stored_is_read_again(tmp_path: Path) -> None:
    cloze = Cloze.of("{text} is", {"1": ["good", "w4"], "0": "bad"}).for_model(is_masked=False)
    assert Cloze.from_dict(cloze.to_dict()) == cloze and cloze.pseudo == 0
    with pytest.raises(BadConfig, match="train it again"):
        Cloze.from_dict({"pattern": "{text}"})
