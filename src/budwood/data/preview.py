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
    found = [(_text([id for id, _ in run], tokenizer), is_learned) for is_learned, run in runs]
    if example.target is not None:
        found += [(" -> ", False), (_text(example.target, tokenizer), True)]
    if example.label is not None:
        found += [(" -> ", False), (str(example.label) if labels is None else labels[example.label], True)]
    return found


def _text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokens as text, <p> for pseudo tokens."""
    runs = [(is_pseudo, list(run)) for is_pseudo, run in groupby(ids, key=lambda id: id < 0)]
    texts = [
        "<p>" * len(run) if is_pseudo else str(tokenizer.decode(run, clean_up_tokenization_spaces=False))
        for is_pseudo, run in runs
    ]
    return "".join(texts)


def preview(example: Example, tokenizer: PreTrainedTokenizerBase, *, labels: Sequence[str] | None = None) -> str:
    """The example as one text with [[learned]] stretches in double brackets. Colours: use `stretches`."""
    found = stretches(example, tokenizer, labels=labels)
    return "".join(f"[[{text}]]" if is_learned else text for text, is_learned in found)
