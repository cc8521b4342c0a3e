"""Which tokens must stay with those that are needed, for a tokenizer to go on as before: read from its description."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Description = Mapping[str, Any]
"""A tokenizer as the tokenizers library writes it down: the content of tokenizer.json."""


def vocabulary_of(description: Description) -> dict[str, int]:
    """Every token to its id, those included that were added."""
    model = description["model"]
    pieces = model["vocab"]
    own = {entry[0]: place for place, entry in enumerate(pieces)} if model["type"] == "Unigram" else pieces
    return {**own, **{entry["content"]: entry["id"] for entry in description["added_tokens"]}}


def unknown_id(description: Description) -> int | None:
    """The id that stands for what cannot be encoded; None where all can be, or the rest is dropped."""
    model = description["model"]
    if model["type"] == "Unigram":
        return None if model["unk_id"] is None else int(model["unk_id"])
    return vocabulary_of(description).get(model["unk_token"])


def closure(description: Description, needed: Iterable[int]) -> set[int]:
    """The needed ids, and all that stay with them.

    A BPE token that a text is encoded to was merged as if it stood alone, since no merge reached over its ends: so the
    merges of its own characters, by rank, are all that it needs.  The other kinds choose among whole pieces, where
    taking away what was not chosen changes nothing, except that Unigram derives the score of the unknown from the
    lowest one.
    """
    model, vocabulary = description["model"], vocabulary_of(description)
    stay = set(needed) | _around(description["post_processor"])
    stay |= {entry["id"] for entry in description["added_tokens"]}
    if description["padding"] is not None:
        stay.add(description["padding"]["pad_id"])
    if (unknown := unknown_id(description)) is not None:
        stay.add(unknown)
    spelling = Spelling(model)
    stay |= {number for token, number in vocabulary.items() if spelling.is_basic(token)}
    if model["type"] == "BPE":
        names = {number: token for token, number in vocabulary.items()}
        parts = {part for number in stay if number in names for part in spelling.parts_of(names[number])}
        stay |= {vocabulary[part] for part in parts if part in vocabulary}
    if model["type"] == "Unigram":
        scores = [score for _, score in model["vocab"]]
        stay.add(scores.index(min(scores)))
    return stay


class Spelling:
    """How tokens are made up of characters in one tokenizer's model."""

    def __init__(self, model: Description) -> None:
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""
        self.has_bytes = bool(model.get("byte_fallback"))
        pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", ()))
        self.ranks: dict[tuple[str, str], int] = {(left, right): rank for rank, (left, right) in enumerate(pairs)}

    def is_basic(self, token: str) -> bool:
        """True for a byte, and for a character that could not be written without the token (or is of ASCII)."""
        if self.has_bytes and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return True
        letter = self.bare(token)
        return len(letter) == 1 and (not self.has_bytes or letter.isascii() or letter == "▁")

    def bare(self, token: str) -> str:
        """The token's letters, without the marks of where in a word it stands."""
        return token.removeprefix(self.prefix).removesuffix(self.suffix) or token

    def merged(self, left: str, right: str) -> str:
        """The token that two are merged to."""
        return left + right.removeprefix(self.prefix)

    def parts_of(self, token: str) -> set[str]:
        """The token's characters, and what they are merged to on the way to it; the token itself if it gets there."""
        parts = self._characters(token)
        met = set(parts)
        while len(parts) > 1:
            ranks = [self.ranks.get(pair, len(self.ranks)) for pair in zip(parts, parts[1:], strict=False)]
            place = ranks.index(min(ranks))
            if ranks[place] == len(self.ranks):
                break
            parts[place : place + 2] = [self.merged(parts[place], parts[place + 1])]
            met.add(parts[place])
        return met

    def _characters(self, token: str) -> list[str]:
        begins = not (self.prefix and token.startswith(self.prefix))
        ends = bool(self.suffix) and token.endswith(self.suffix)
        letters = token.removeprefix(self.prefix).removesuffix(self.suffix)
        parts = [letter if begins and not place else self.prefix + letter for place, letter in enumerate(letters)]
        if ends and parts:
            parts[-1] += self.suffix
        return parts


def _around(processor: Description | None) -> set[int]:
    """The ids that a post-processor puts around a text."""
    if processor is None:
        return set()
    inside = {number for inner in processor.get("processors", ()) for number in _around(inner)}
    own = {number for entry in processor.get("special_tokens", {}).values() for number in entry["ids"]}
    return inside | own | {processor[name][1] for name in ("cls", "sep") if name in processor}
