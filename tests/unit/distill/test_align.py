from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from budwood.distill.align import joint_positions, num_tokens, same_vocabulary, vocabulary_difference
from budwood.errors import BadData
from tiny_tokenizers import SENTENCES, make_tokenizer

TEXT = "There is a place in the city centre ."
BYTES = make_tokenizer()


def sentencepiece() -> Any:
    """As Llama 2: ▁ for spaces, one put in front of the text and left out again, bytes for what is not known."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁t", "▁the", "▁city"]
    letters = sorted(set("".join(SENTENCES)) - {" "})
    pieces += [*letters, "he", "ci", "it", "ty", "ity", "city"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "t"), ("it", "y"), ("c", "ity"), ("▁", "city")]
    inner = Tokenizer(
        models.BPE(
            vocab={piece: n for n, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece() -> Any:
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    inner.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", sep_token="[SEP]")


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def ends(tokenizer: Any, given: list[int], places: list[int]) -> list[str]:
    """What has been read at each place, by decoding from the start."""
    return [tokenizer.decode(given[: place + 1], clean_up_tokenization_spaces=False) for place in places]


# ---- vocabularies


def test_the_same_vocabulary() -> None:
    assert same_vocabulary(BYTES, make_tokenizer(bos=True)) and vocabulary_difference(BYTES, make_tokenizer()) == ""
    assert num_tokens(BYTES) == max(BYTES.get_vocab().values()) + 1


def test_the_first_token_that_differs_is_named() -> None:
    other = make_tokenizer()
    other.add_tokens(["zebra", "Alimentum!"])
    found = vocabulary_difference(BYTES, other)
    assert not same_vocabulary(BYTES, other)
    size = len(BYTES)
    assert found == (
        f"token 'zebra' is missing from the student's vocabulary and {size} in the teacher's "
        f"({size} and {size + 2} tokens)"
    )


def test_vocabularies_of_one_size_may_differ() -> None:
    a, b = make_tokenizer(), make_tokenizer()
    a.add_tokens(["red"])
    b.add_tokens(["blue"])
    assert len(a) == len(b) and not same_vocabulary(a, b)
    assert "'blue' is missing from the student's" in vocabulary_difference(a, b)


# ---- positions


def test_by_hand() -> None:
    """▁the, ▁city against single letters: only where words end have both read the same."""
    words = sentencepiece()
    assert words.convert_ids_to_tokens(ids(words, "the city")) == ["▁the", "▁city"]
    letters = [BYTES.convert_tokens_to_ids(letter) for letter in ["t", "h", "e", "Ġ", "c", "i", "t", "y"]]
    assert joint_positions(words, ids(words, "the city"), BYTES, letters) == [(0, 2), (1, 7)]
    assert joint_positions(BYTES, letters, words, ids(words, "the city")) == [(2, 0), (7, 1)]


def test_the_same_tokenizer_pairs_each_position_with_itself() -> None:
    given = ids(BYTES, TEXT)
    assert joint_positions(BYTES, given, BYTES, given) == [(n, n) for n in range(len(given))]


def test_a_character_of_several_bytes_ends_with_its_last() -> None:
    words, text = sentencepiece(), "the 木 é"
    own, other = ids(BYTES, text), ids(words, text)
    assert words.convert_ids_to_tokens(other)[2:5] == ["<0xE6>", "<0x9C>", "<0xA8>"]
    pairs = joint_positions(words, other, BYTES, own)
    assert (4, own.index(BYTES.convert_tokens_to_ids("¨"))) in pairs
    assert {i for i, _ in pairs}.isdisjoint({2, 3})
    assert ends(words, other, [i for i, _ in pairs]) == ends(BYTES, own, [j for _, j in pairs])


def test_special_tokens_are_in_no_pair() -> None:
    words = sentencepiece()
    own = [1, *ids(words, "the city"), 2]
    other = [*ids(BYTES, "the"), BYTES.eos_token_id, *ids(BYTES, " city"), BYTES.eos_token_id]
    pairs = joint_positions(words, own, BYTES, other)
    assert [i for i, _ in pairs] == [1, 2]
    assert pairs[-1][1] == len(other) - 2


def test_an_answer_that_begins_with_a_space() -> None:
    """The supervised part of a row: " the city" of one, the same without its first space of another."""
    words = sentencepiece()
    own = ids(BYTES, " the city")
    pairs = joint_positions(BYTES, own, words, ids(words, "the city"))
    assert pairs[-1] == (len(own) - 1, 1) and len(pairs) == 2


def test_a_tokenizer_without_spaces() -> None:
    pieces = wordpiece()
    own, other = ids(BYTES, TEXT), ids(pieces, TEXT)
    pairs = joint_positions(BYTES, own, pieces, other)
    assert len(pairs) >= len(TEXT.split()) and pairs[-1] == (len(own) - 1, len(other) - 1)
    for i, j in pairs:
        read, said = BYTES.decode(own[: i + 1]), pieces.decode(other[: j + 1])
        assert read.replace(" ", "") == said.replace(" ", "")


def test_lines_and_runs_of_spaces_are_text() -> None:
    words, text = sentencepiece(), "a\n\nb  the\n"
    own, other = ids(BYTES, text), ids(words, text)
    pairs = joint_positions(BYTES, own, words, other)
    read = ends(BYTES, own, [i for i, _ in pairs])
    assert read == ends(words, other, [j for _, j in pairs])
    assert {"a", "a\n\n", "a\n\nb", text} <= {*read}


def test_other_texts_are_refused() -> None:
    with pytest.raises(BadData, match=r"the student reads 'thecity' where the teacher reads 'thearea'.*character 3"):
        joint_positions(BYTES, ids(BYTES, "the city"), BYTES, ids(BYTES, "the area"))


def test_nothing_to_pair() -> None:
    assert joint_positions(BYTES, [], BYTES, [BYTES.eos_token_id]) == []


@given(st.text(alphabet="the city é木😀.\n�", max_size=25))
@settings(max_examples=60, deadline=None)
def test_pairs_read_the_same(text: str) -> None:
    """Everything that both have read, at every pair; ascending; no pair is missed."""
    words = sentencepiece()
    own, other = ids(BYTES, text), ids(words, text)
    pairs = joint_positions(BYTES, own, words, other)
    read = ends(BYTES, own, [*range(len(own))])
    said = ends(words, other, [*range(len(other))])
    for i, j in pairs:
        assert read[i].lstrip() == said[j].lstrip()
    assert pairs == sorted(pairs) and len({j for _, j in pairs}) == len(pairs)
    whole = {r.lstrip() for r in read if not r.endswith("\ufffd")} & {s.lstrip() for s in said}
    assert len(pairs) == len(whole - {""})
