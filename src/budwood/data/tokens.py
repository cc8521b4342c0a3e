"""Text to token ids without special tokens, whole or cut at given characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK = 512
"""Texts handed to the tokenizer at once."""


def tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), CHUNK):
        chunk = list(texts[start : start + CHUNK])
        ids += tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def pieces(
    texts: Sequence[str], borders: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> list[list[list[int]]]:
    """Ids of each text up to its last border, cut at its borders.

    The whole text is tokenised at once. Where a token would lie across a border, the pieces are tokenised one by
    one instead, so that a piece always has ids of its own.
    """
    beginnings = [text[:end] for text, ends in zip(texts, borders, strict=True) for end in ends]
    found = iter(tokens(tokenizer, beginnings))
    parts = []
    for text, ends in zip(texts, borders, strict=True):
        upto = [next(found) for _ in ends]
        if all(upto[-1][: len(ids)] == ids for ids in upto):
            places = [0, *(len(ids) for ids in upto)]
            parts.append([upto[-1][a:b] for a, b in zip(places, places[1:], strict=False)])
        else:
            cuts = zip([0, *ends], ends, strict=False)
            parts.append(tokens(tokenizer, [text[start:end] for start, end in cuts]))
    return parts


def around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts in front of a text and behind it."""
    whole, (bare,) = tokenizer("a", verbose=False)["input_ids"], tokens(tokenizer, ["a"])
    start = next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)
    return whole[:start], whole[start + len(bare) :]
