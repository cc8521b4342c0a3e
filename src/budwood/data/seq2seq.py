"""Rows for encoder-decoders: the source as the encoder reads it, the target as the decoder writes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budwood.data.batch import Example
from budwood.data.corpus import Conversation
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.corpus import Corpus, Row


def encode_sources(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> list[Example]:
    """Texts as an encoder reads them, with its special tokens; longer ones than max_length lose their end."""
    ids = tokenizer(list(texts), truncation=max_length is not None, max_length=max_length, verbose=False)["input_ids"]
    return [Example(ids=source, row=place) for place, source in enumerate(ids)]


def encode_pairs(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Examples of rows with an answer, and the longer of source and target before cutting; all others learn nothing.

    A target ends with the eos, unless it is cut. Raises BadConfig for a tokenizer without one.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise BadConfig("this tokenizer has no eos token to end an answer with; set tokenizer.eos_token first")
    sources = encode_sources([row.prompt for row in rows], tokenizer)
    cut = encode_sources([row.prompt for row in rows], tokenizer, max_length=max_length)
    targets: list[list[int]] = tokenizer(text_target=[row.answer for row in rows], verbose=False)["input_ids"]
    examples, lengths = [], []
    for row, source, short, target in zip(rows, sources, cut, targets, strict=True):
        target = target if eos in target else [*target, int(eos)]
        lengths.append(max(len(source.ids), len(target)))
        assert isinstance(row.value, Conversation)
        learned = target[:max_length] if any(turn.learned for turn in row.value.turns) else []
        examples.append(Example(ids=short.ids, target=learned, row=short.row))
    return examples, lengths
