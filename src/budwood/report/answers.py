"""What methods answer to the same prompt: equal answers together, with the words marked that set one apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher

from budwood.records.pages import shortened
from budwood.report.table import Sample

HEAD = 280
"""Letters that are seen without unfolding."""
WORDS = 120
"""Of longer answers, only so many words are compared."""


@dataclass(frozen=True)
class Text:
    """A text that may be unfolded."""

    head: str
    rest: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one or more methods said."""

    pieces: tuple[tuple[str, bool], ...]
    """(text, whether the measure lacks it)."""
    rest: str
    """What is seen only after unfolding."""
    labels: tuple[str, ...]
    is_right: bool
    """It is the reference."""
    is_measure: bool
    """It is what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One sample."""

    prompt: Text
    reference: Text
    answers: tuple[Answer, ...]
    """The measure first, then those that more gave."""
    agreement: str


def shown(sample: Sample, letters: int) -> Shown:
    """A sample as the page shows it, with no text longer than so many letters."""
    said: dict[str, list[str]] = {}
    for label, answer in sample.answers.items():
        said.setdefault(answer.strip(), []).append(label)
    right = sample.reference.strip()
    usual = max(said, key=lambda text: len(said[text]), default="")
    measure = right if right in said or all(len(labels) == 1 for labels in said.values()) else usual
    ordered = sorted(said.items(), key=lambda item: (item[0] != measure, -len(item[1])))
    answers = tuple(_answer(text, labels, letters, measure=measure, right=right) for text, labels in ordered)
    count = len(said)
    agreement = "all say the same" if count == 1 else f"{count} different answers"
    return Shown(
        prompt=folded(sample.prompt, letters),
        reference=folded(sample.reference, letters),
        answers=answers,
        agreement=agreement,
    )


def folded(text: str, letters: int) -> Text:
    """A text, at most so many letters of it, with a beginning that is always seen."""
    whole = shortened(text, letters)
    return Text(whole, "") if len(whole) <= HEAD + 60 else Text(whole[:HEAD], whole[HEAD:])


def _answer(text: str, labels: list[str], letters: int, *, measure: str, right: str) -> Answer:
    parts = folded(text, letters)
    return Answer(
        pieces=_apart(measure, parts.head)
        if measure and text != measure
        else ((parts.head, False),) * bool(parts.head),
        rest=parts.rest,
        labels=tuple(labels),
        is_right=bool(right) and text == right,
        is_measure=text == measure,
    )


def _apart(measure: str, text: str) -> tuple[tuple[str, bool], ...]:
    """The text in pieces, each with whether `measure` lacks it."""
    old, new = (re.findall(r"\s*\S+", side)[:WORDS] for side in (measure, text))
    if not new:
        return ()
    steps = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    pieces = []
    for kind, _, _, start, end in steps.get_opcodes():
        run = "".join(new[start:end])
        words = run.lstrip()
        pieces += [(run[: len(run) - len(words)], False), (words, kind != "equal")]
    return tuple(piece for piece in (*pieces, (text[sum(map(len, new)) :], False)) if piece[0])
