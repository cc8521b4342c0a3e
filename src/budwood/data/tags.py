"""What tags mark, read as conlleval reads them.

B-, I-, E- and S- (or L- and U-) stand in front of what is marked; a span begins at B and S, wherever what is marked
changes, and at any tag after O, E or S.  A tag without such a letter is read as if it had an I.
Strictly, a span also has to be well formed: B and then I, or with E or S among all tags, S alone or B, I, E.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import TypeAlias

OUTSIDE = "O"
"""The tag of a word that belongs to nothing."""

Span: TypeAlias = tuple[int, int, str]
"""[begin, end) in words, and what it is."""

LETTERED = re.compile(r"([BIESLU])-(.*)", re.DOTALL)
SAME = {"L": "E", "U": "S"}
WELL_FORMED = {False: re.compile("BI*|I+"), True: re.compile("S|BI*E|I+")}
"""By whether some tag says that a span ends; I alone is for tags without a letter."""


def spans(tags: Sequence[str], strictly_of: Collection[str] | None = None) -> list[Span]:
    """The spans that tags mark.

    strictly_of: all tags there are, which say how spans are written: those that are not well formed are left out
    """
    parsed = [_parsed(tag) for tag in tags]
    found: list[Span] = []
    begin: int | None = None
    for place, (letter, kind) in enumerate([*parsed, ("", "")]):
        before = parsed[place - 1] if place else ("", "")
        if begin is not None and (letter in ("", "B", "S") or kind != before[1] or before[0] in ("E", "S")):
            found.append((begin, place, before[1]))
            begin = None
        if begin is None and letter:
            begin = place
    if strictly_of is None:
        return found
    pattern = WELL_FORMED[any(_parsed(tag)[0] in ("E", "S") for tag in strictly_of)]
    lettered = {kind for letter, kind in map(_parsed, strictly_of) if letter in ("B", "S")}
    written = {span: "".join(letter for letter, _ in parsed[span[0] : span[1]]) for span in found}
    return [
        span
        for span, letters in written.items()
        if pattern.fullmatch(letters) and (letters[0] != "I" or span[2] not in lettered)
    ]


def split_words(text: str) -> list[str]:
    """A typed sentence in words, punctuation by itself."""
    return re.findall(r"\w+(?:[-'’.]\w+)*|[^\w\s]", text)


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """The words with each span in brackets: '[PER Ada] sings'."""
    pieces = list(words)
    for begin, end, kind in reversed(spans(tags)):
        pieces[begin:end] = [f"[{kind} {' '.join(words[begin:end])}]"]
    return " ".join(pieces)


def _parsed(tag: str) -> tuple[str, str]:
    """(letter, kind); two empty ones for a word outside."""
    if tag == OUTSIDE:
        return "", ""
    match = LETTERED.fullmatch(tag)
    return (SAME.get(match[1], match[1]), match[2]) if match else ("I", tag)
