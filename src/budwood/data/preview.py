"""One example as text, with what is learned marked: what preflight shows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from budwood.data.batch import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from budwood.data.batch import Example


def stretches(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] | None = None
) -> list[tuple[str, bool]]:
    """(text, whether it is learned) for each stretch of tokens, special ones included; a class comes last.

    labels: class names, for classification
    """
    learned = [label != IGNORE for label in example.labels or [IGNORE] * len(example.ids)]
    runs = groupby(zip(example.ids, learned, strict=True), key=lambda pair: pair[1])
    found = [
        (tokenizer.decode([id for id, _ in run], clean_up_tokenization_spaces=False), is_learned)
        for is_learned, run in runs
    ]
    if example.label is not None:
        found += [(" -> ", False), (str(example.label) if labels is None else labels[example.label], True)]
    return found


def preview(example: Example, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] | None = None) -> str:
    """The example as one text with [[learned]] stretches in double brackets. Colours: use `stretches`."""
    found = stretches(example, tokenizer, labels=labels)
    return "".join(f"[[{text}]]" if is_learned else text for text, is_learned in found)
