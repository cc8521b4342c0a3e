"""Which tokens stay, and tokenizers made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedTokenizerFast

from budwood.errors import BadConfig, BadData
from budwood.prune.closure import Spelling
from budwood.prune.tokenizer import differing, fewer_tokens, touching
from budwood.prune.tokens import used
from tiny_tokenizers import CHATML, OF_KINDS, STRICT, make_bytes, make_tokenizer

TEXTS = ["a place in the city centre .", "What is the name ? Ünïcode", "", "  two  spaces\n", "a </s> in <s>it"]


def renumbered(kept: tuple[int, ...]) -> dict[int, int]:
    return {old: new for new, old in enumerate(kept)}


@pytest.mark.parametrize("kind", OF_KINDS)
def test_every_kind_encodes_the_texts_as_before_and_can_be_stored(kind: str, tmp_path: Path) -> None:
    tokenizer = OF_KINDS[kind]()
    found = used(tokenizer, TEXTS)
    assert found.texts == len(TEXTS)
    assert found.vocabulary == len(tokenizer)
    assert found.different < len(found.kept) < len(tokenizer)
    smaller = fewer_tokens(tokenizer, found.kept)
    new = renumbered(found.kept)
    assert list(differing(tokenizer, smaller, new, TEXTS)) == []
    assert smaller.convert_ids_to_tokens(list(range(len(new)))) == tokenizer.convert_ids_to_tokens(list(found.kept))
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert type(again) is type(tokenizer)
    for special in (True, False):
        for text in TEXTS:
            was = tokenizer(text, add_special_tokens=special).input_ids
            for other in (smaller, again):
                now = other(text, add_special_tokens=special).input_ids
                assert now == [new[number] for number in was]
                assert other.decode(now) == tokenizer.decode(was)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.get_vocab() == smaller.get_vocab()
    assert "/tmp" not in (tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")


def test_new_text_is_still_encoded() -> None:
    for kind in ("GPT-2", "ChatML", "Llama-2"):
        tokenizer = OF_KINDS[kind]()
        smaller = fewer_tokens(tokenizer, used(tokenizer, ["a place"]).kept)
        text = "An answer: Größe 漢字 ~"
        assert smaller.decode(smaller(text).input_ids, skip_special_tokens=True) == text
    tokenizer = OF_KINDS["BERT"]()
    smaller = fewer_tokens(tokenizer, used(tokenizer, ["a place"]).kept)
    assert smaller.unk_token_id not in smaller("the centre is an answer").input_ids


def test_what_a_kept_token_is_merged_from_stays() -> None:
    spelling = Spelling({"merges": [["t", "h"], ["i", "n"], ["th", "e"], ["in", "the"]]})
    assert spelling.parts_of("inthe") == {"i", "n", "t", "h", "e", "th", "the", "in", "inthe"}
    marked = Spelling(
        {"merges": ["a ##b", "ab ##c</w>"], "continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    )
    assert marked.parts_of("abc</w>") == {"a", "##b", "##c</w>", "ab", "abc</w>"}
    assert marked.parts_of("##b") == {"##b"}


def test_merges_of_what_is_gone_go_and_the_others_keep_their_order() -> None:
    tokenizer = make_bytes()
    smaller = fewer_tokens(tokenizer, used(tokenizer, ["a place in the city"]).kept)
    before, after = (json.loads(t.backend_tokenizer.to_str())["model"] for t in (tokenizer, smaller))
    assert 0 < len(after["merges"]) < len(before["merges"])
    assert after["merges"] == [m for m in before["merges"] if {*m, "".join(m)} <= after["vocab"].keys()]


@pytest.mark.parametrize("template", [CHATML, STRICT])
def test_what_the_chat_template_writes_stays(template: str) -> None:
    tokenizer = make_tokenizer(template)
    smaller = fewer_tokens(tokenizer, used(tokenizer, ["a place"]).kept)
    turns = [{"role": "user", "content": "a place"}]
    texts = [t.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) for t in (tokenizer, smaller)]
    assert texts[0] == texts[1]
    assert len(tokenizer(texts[0]).input_ids) == len(smaller(texts[1]).input_ids)


def test_settings_of_the_tokenizer_stay() -> None:
    tokenizer = make_tokenizer(bos=True)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = "<|im_end|>"
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(pad_id=4, pad_token="<|im_end|>", length=9)
    kept = used(tokenizer, TEXTS).kept
    smaller = fewer_tokens(tokenizer, kept)
    assert list(differing(tokenizer, smaller, renumbered(kept), TEXTS)) == []
    assert (smaller.padding_side, smaller.pad_token) == ("left", "<|im_end|>")
    assert smaller.backend_tokenizer.truncation["max_length"] == 3
    assert smaller.backend_tokenizer.padding["pad_id"] == renumbered(kept)[4]


def test_texts_that_differ_are_found_and_what_they_touch_mends_them() -> None:
    tokenizer = make_bytes()
    letters = tuple(
        n for token, n in sorted(tokenizer.get_vocab().items(), key=lambda e: e[1]) if len(token) == 1 or n == 0
    )
    texts = ["a place", "zz"]
    assert list(differing(tokenizer, fewer_tokens(tokenizer, letters), renumbered(letters), texts)) == ["a place"]
    more = tuple(sorted({*letters, *touching(tokenizer, ["a place"])}))
    assert list(differing(tokenizer, fewer_tokens(tokenizer, more), renumbered(more), texts)) == []


def test_another_decoder_is_a_difference() -> None:
    tokenizer, other = make_tokenizer(), make_tokenizer()
    other.backend_tokenizer.decoder = None
    everything = renumbered(tuple(range(len(tokenizer))))
    assert list(differing(tokenizer, other, everything, ["a place", "it"])) == ["a place"]


def test_texts_may_be_begun_anew_and_counts_are_told() -> None:
    tokenizer = OF_KINDS["BERT"]()
    found = used(tokenizer, lambda: (text for text in ["a place", "漢 place"]))
    assert (found.texts, found.tokens, found.different, found.unknown) == (2, 4, 3, 1)


@pytest.mark.parametrize(("texts", "said"), [([], "there are no texts"), (["a", 3], "among the texts is 3")])
def test_what_are_no_texts_is_refused(texts: Any, said: str) -> None:
    with pytest.raises(BadData, match=said):
        used(make_tokenizer(), texts)


def test_tokenizers_that_cannot_be_cut_are_refused_by_name() -> None:
    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>")), unk_token="<unk>"
    )
    with pytest.raises(BadConfig, match="of the kind WordLevel, and only BPE, WordPiece, Unigram"):
        used(words, ["a"])
    random = make_tokenizer()
    random.backend_tokenizer.model.dropout = 0.1
    with pytest.raises(BadConfig, match="set its dropout to 0"):
        used(random, ["a"])


def test_a_slow_tokenizer_is_refused_by_name() -> None:
    with pytest.raises(BadConfig, match=r"CanineTokenizer is a slow tokenizer.* load one with a tokenizer\.json"):
        used(CanineTokenizer(), ["a"])
