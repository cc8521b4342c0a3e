"""Do two models speak in the same tokens, and if not: at which positions have both read the same text?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budwood.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"
"""What tokenizers write for bytes that are no whole character (yet)."""


def vocabulary_difference(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> str:
    """The first token, by id, that is not the same in both, as a sentence; empty where none is.

    Tokens are compared, not sizes: rows with which an embedding is padded stand for no token and are no difference.
    """
    own, other = student.get_vocab(), teacher.get_vocab()
    if own == other:
        return ""
    differing = {*own.items()} ^ {*other.items()}
    number, token = min((number, token) for token, number in differing)
    here, there = (
        f"{vocabulary[token]} in the {name}'s" if token in vocabulary else f"missing from the {name}'s"
        for name, vocabulary in (("student", own), ("teacher", other))
    )
    return f"token {token!r} is {here} vocabulary and {there} ({len(own)} and {len(other)} tokens)"


def same_vocabulary(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> bool:
    """Whether every id stands for the same token in both, so that logits can be compared column by column."""
    return not vocabulary_difference(student, teacher)


def num_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """1 + the highest id: columns of logits that stand for tokens; what a model has beyond them is padding."""
    return 1 + max(tokenizer.get_vocab().values())


def joint_positions(
    student: PreTrainedTokenizerBase,
    student_ids: Sequence[int],
    teacher: PreTrainedTokenizerBase,
    teacher_ids: Sequence[int],
) -> list[tuple[int, int]]:
    """Pairs (i, j) at which the student's ids up to i and the teacher's up to j stand for the same text, ascending.

    What follows position i can be compared with what follows j (by the loss uld); so can the starts, (-1, -1), which
    are not in the list. Special tokens stand for no text and are in no pair, nor is a piece that ends inside a
    character. Spaces in front of the text do not matter, as SentencePiece leaves out one; where a tokenizer keeps no
    spaces at all (WordPiece), no spaces count, and the first position that ends a word is taken.

    student_ids, teacher_ids: of the same text, such as the supervised part of a row in both tokenizations
    Raises BadData where they do not stand for the same text.
    """
    own, other = _texts(student, student_ids), _texts(teacher, teacher_ids)
    if _last(own) != _last(other):
        own, other = ([None if t is None else "".join(t.split()) for t in texts] for texts in (own, other))
    if _last(own) != _last(other):
        raise BadData(_difference(_last(own), _last(other)))
    return _pairs(own, other)


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str | None]:
    """For each position the text up to it, without spaces in front; None where it ends no character or is special.

    Only a few tokens are decoded at a time: those of the last piece stand in front of the next, for decoders that treat
    the first token of a text differently.
    """
    special = {*tokenizer.all_special_ids}
    places = [place for place, token in enumerate(ids) if token not in special]
    found: list[str | None] = [None] * len(ids)
    text, before, begin = "", 0, 0  # tokens of the last piece: [before, begin)
    for stop, place in enumerate(places, start=1):
        window = [ids[p] for p in places[before:stop]]
        known, piece = (_decoded(tokenizer, part) for part in (window[: begin - before], window))
        if piece.endswith(_UNFINISHED):
            continue
        text += piece[len(known) :]
        before, begin = begin, stop
        found[place] = text.lstrip() or None
    return found


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """As it is written: no spaces are tidied up."""
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _last(texts: Sequence[str | None]) -> str:
    return next((text for text in reversed(texts) if text is not None), "")


def _pairs(own: Sequence[str | None], other: Sequence[str | None]) -> list[tuple[int, int]]:
    """Positions of texts of the same length; both are beginnings of one text, so these are the same texts."""
    places: dict[int, int] = {}
    for j, text in enumerate(other):
        if text is not None:
            places.setdefault(len(text), j)
    found: dict[int, tuple[int, int]] = {}
    for i, text in enumerate(own):
        if text is not None and len(text) in places:
            found.setdefault(len(text), (i, places[len(text)]))
    return list(found.values())


def _difference(own: str, other: str) -> str:
    place = next((n for n, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other)))
    near = slice(max(0, place - 10), place + 10)
    return (
        f"the student reads {own[near]!r} where the teacher reads {other[near]!r} (character {place} without spaces); "
        "positions can be paired only in tokenizations of the same text, letter by letter"
    )
