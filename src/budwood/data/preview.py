"""One example as text, with what is learned marked: what preflight shows."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape

from budwood.data.batch import IGNORE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from budwood.data.batch import Example


def preview(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    *,
    labels: Sequence[str] | None = None,
    rich: bool = False,
) -> str:
    """The tokens decoded, special ones included, with [[learned]] stretches; a class stands after an arrow.

    labels: class names, for classification
    rich:   markup for a rich console (learned stretches bold green) instead of the brackets
    """
    learned = [label != IGNORE for label in example.labels or [IGNORE] * len(example.ids)]
    text = ""
    for is_learned, stretch in groupby(zip(example.ids, learned, strict=True), key=lambda pair: pair[1]):
        words = tokenizer.decode([id for id, _ in stretch], clean_up_tokenization_spaces=False)
        text += _marked(words, rich) if is_learned else _plain(words, rich)
    if example.label is not None:
        name = str(example.label) if labels is None else labels[example.label]
        text += f" -> {_marked(name, rich)}"
    return text


def _marked(text: str, rich: bool) -> str:
    return f"[bold green]{escape(text)}[/bold green]" if rich else f"[[{text}]]"


def _plain(text: str, rich: bool) -> str:
    return escape(text) if rich else text
