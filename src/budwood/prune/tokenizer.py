"""A tokenizer with some of its tokens, and the proof that it encodes texts as before."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from budwood.prune.closure import Description, Spelling, vocabulary_of
from budwood.prune.tokens import Texts, backend, chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Fresh = Mapping[int, int]
"""Ids of the old vocabulary that stay, to those of the new one."""
ABOUT_LOADING = ("is_local", "local_files_only")
"""Settings that say how a tokenizer was loaded, and nothing of it."""


def fewer_tokens(tokenizer: PreTrainedTokenizerBase, kept: Sequence[int]) -> PreTrainedTokenizerBase:
    """A new tokenizer of the same class with the kept tokens, numbered in their old order.

    It comes from a folder, through the class' own reader, so that it is what anyone gets who loads it from one.
    kept: ascending ids; what `closure` names must be among them
    """
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = described(description, {old: new for new, old in enumerate(kept)})
    with TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        (Path(name) / "tokenizer.json").write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
        smaller = type(tokenizer).from_pretrained(name, local_files_only=True)
    smaller.name_or_path = tokenizer.name_or_path
    smaller.init_kwargs = {name: value for name, value in smaller.init_kwargs.items() if name not in ABOUT_LOADING}
    smaller.padding_side, smaller.truncation_side = tokenizer.padding_side, tokenizer.truncation_side
    return smaller


def described(description: Description, new: Fresh) -> dict[str, Any]:
    """The content of tokenizer.json with the tokens that stay and their new ids, wherever ids stand in it."""
    padding = description["padding"]
    return {
        **description,
        "model": _model(description, new),
        "added_tokens": [{**entry, "id": new[entry["id"]]} for entry in description["added_tokens"]],
        "post_processor": _processor(description["post_processor"], new),
        "padding": None if padding is None else {**padding, "pad_id": new[padding["pad_id"]]},
    }


def differing(
    old: PreTrainedTokenizerBase, smaller: PreTrainedTokenizerBase, new: Fresh, texts: Texts
) -> Iterator[str]:
    """The texts that the two tokenizers do not encode to the same tokens, or decode to the same text.

    What comes before the vocabulary (the words of a text) and after it (special tokens around it, the text again) hangs
    on no text: where the two say the same of it, the first texts are tried with it, otherwise all.
    """
    before, after = backend(old), backend(smaller)
    alike = _surroundings(described(json.loads(before.to_str()), new)) == _surroundings(json.loads(after.to_str()))
    for place, chunk in enumerate(chunks(texts)):
        wrong = set(_differing(before, after, new, chunk, special=False))
        if place == 0 or not alike:
            wrong |= set(_differing(before, after, new, chunk, special=True))
        yield from (chunk[place] for place in sorted(wrong))


def _surroundings(description: Description) -> dict[str, Any]:
    return {name: content for name, content in description.items() if name != "model"}


def _differing(before: Tokenizer, after: Tokenizer, new: Fresh, chunk: list[str], *, special: bool) -> Iterator[int]:
    """Places of the texts that differ; with special tokens around them, and then also decoded again, or without."""
    ids, found = (
        [encoding.ids for encoding in inner.encode_batch_fast(chunk, add_special_tokens=special)]
        for inner in (before, after)
    )
    yield from (place for place, was in enumerate(ids) if [new.get(number) for number in was] != found[place])
    if special:
        for skipped in (False, True):
            texts = before.decode_batch(ids, skip_special_tokens=skipped)
            again = after.decode_batch(found, skip_special_tokens=skipped)
            yield from (place for place, text in enumerate(texts) if text != again[place])


def _model(description: Description, new: Fresh) -> dict[str, Any]:
    model = description["model"]
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        stay = [entry for place, entry in enumerate(model["vocab"]) if place in new]
        return {**model, "vocab": stay, "unk_id": None if unknown is None else new[unknown]}
    vocabulary = {token: new[number] for token, number in model["vocab"].items() if number in new}
    if model["type"] == "WordPiece":
        return {**model, "vocab": vocabulary}
    spelling = Spelling(model)
    merges = [
        list(pair) for pair in spelling.ranks if {*pair, spelling.merged(*pair)} <= vocabulary.keys()
    ]  # in the order of their ranks
    return {**model, "vocab": vocabulary, "merges": merges}


def _processor(processor: Description | None, new: Fresh) -> dict[str, Any] | None:
    if processor is None:
        return None
    changed = dict(processor)
    if "processors" in changed:
        changed["processors"] = [_processor(inner, new) for inner in changed["processors"]]
    if "special_tokens" in changed:
        changed["special_tokens"] = {
            name: {**entry, "ids": [new[number] for number in entry["ids"]]}
            for name, entry in changed["special_tokens"].items()
        }
    for name in {"cls", "sep"} & changed.keys():
        token, number = changed[name]
        changed[name] = [token, new[number]]
    return changed


def touching(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> set[int]:
    """The ids of every token whose letters stand anywhere in the words that the tokenizer sees in the texts."""
    inner = backend(tokenizer)
    description = json.loads(inner.to_str())
    spelling = Spelling(description["model"])
    words: set[str] = set()
    for text in texts:
        normal = text if inner.normalizer is None else inner.normalizer.normalize_str(text)
        cut = [(normal, None)] if inner.pre_tokenizer is None else inner.pre_tokenizer.pre_tokenize_str(normal)
        words.update(word for word, _ in cut)
    found: dict[str, set[int]] = {}
    for token, number in vocabulary_of(description).items():
        found.setdefault(spelling.bare(token), set()).add(number)
    longest = max(map(len, found))
    return {
        number
        for word in words
        for start in range(len(word))
        for stop in range(start + 1, min(start + longest, len(word)) + 1)
        for number in found.get(word[start:stop], ())
    }
