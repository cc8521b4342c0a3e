"""One example as text, with what is learned marked: what preflight shows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from budwood.data.batch import IGNORE
from budwood.data.tags import OUTSIDE

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
    if example.span is not None:
        first, last = example.span
        learned = [first <= place <= last for place in range(len(example.ids))]
    elif example.parts is not None and labels is not None:
        return _tagged(example, tokenizer, labels)
    else:
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


def _tagged(example: Example, tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[tuple[str, bool]]:
    """Each word with its tag behind it; a word that is learned to belong to nothing stands alone."""
    tags = example.labels or []
    starts = [place for place, tag in enumerate(tags) if tag != IGNORE]
    found: list[tuple[str, bool]] = []
    borders = sorted({0, *starts, len(tags)})
    for begin, end in zip(borders, borders[1:], strict=False):
        text = tokenizer.decode(example.ids[begin:end], clean_up_tokenization_spaces=False).strip()
        tag = labels[tags[begin]] if begin in starts else OUTSIDE
        found += [(f"{text} ", False)] if tag == OUTSIDE else [(text, False), (tag, True), (" ", False)]
    return found
