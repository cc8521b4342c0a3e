"""A cloze put to a language model by hand: which class its words name for a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from budwood.data import Cloze, Labelled, Writer, collate
from budwood.errors import BadData
from budwood.evaluate.classify import classify
from budwood.evaluate.generate import longest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 1024
"""Tokens a text keeps where the model names no limit, as in training."""


def answer(
    model: Any, tokenizer: PreTrainedTokenizerBase, cloze: Cloze, texts: Sequence[str]
) -> list[tuple[str, float]]:
    """(class, its share among the classes) of each text, cut to what the model reads.

    Where the pattern has two places, a text has two lines.
    Raises BadData where it has not, and BadConfig as `Writer.of` does.
    """
    has_pair = any(kind == "pair" for kind, _ in cloze.pieces())
    values = []
    for text in texts:
        first, line, second = text.partition("\n")
        if has_pair and not line:
            raise BadData(f"{text[:60]!r} is one line; this cloze compares two texts: write each on a line of its own")
        values.append(Labelled(first, second, 0) if has_pair else Labelled(text, None, 0))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    written = Writer.of(cloze, tokenizer).write(values, longest_of(model, tokenizer) or LONGEST)
    found = classify(model, (collate([example], int(pad or 0)) for example, _ in written))
    return [
        (cloze.labels[guess], float(share)) for guess, share in zip(found.predictions, found.confidences, strict=True)
    ]
