"""Repeats, leakage between splits, contradictions, and splitting by group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budwood.data.corpus import Conversation, Labelled, Passage, Tagged, Text
from budwood.errors import BadConfig, BadData, did_you_mean

if TYPE_CHECKING:
    from pathlib import Path

    from budwood.data.corpus import Corpus, Row


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing `check` found."""

    kind: str
    """repeats, leakage, contradictions, empty-answers or empty-texts."""
    rows: int
    """How many rows it concerns."""
    message: str
    """What it is, where it is first seen, and what mends it."""


def normal(text: str) -> str:
    """A text as it is compared: case folded, runs of white space made one space."""
    return " ".join(text.casefold().split())


def key(row: Row) -> Hashable:
    """What makes two rows the same row: everything that is read or learned, normalised."""
    match row.value:
        case Conversation(turns):
            return tuple((turn.role, turn.learned, normal(turn.content)) for turn in turns)
        case Text(text):
            return normal(text)
        case Labelled(text, pair, label):
            return (normal(text), normal(pair or ""), label)
        case Tagged(words, tags):
            return (tuple(map(normal, words)), tags)
        case Passage(context, question, answers):
            return (normal(context), normal(question), answers)


def repeats(rows: Sequence[Row]) -> dict[int, int]:
    """Index of each row that repeats an earlier one, to the index of the first."""
    first: dict[Hashable, int] = {}
    return {place: at for place, row in enumerate(rows) if (at := first.setdefault(key(row), place)) != place}


def dedup(corpus: Corpus) -> tuple[Corpus, int]:
    """The corpus with the first of each set of equal rows in a split, and how many rows went."""
    splits, gone = {}, 0
    for split, rows in corpus.splits.items():
        again = repeats(rows)
        splits[split] = tuple(row for place, row in enumerate(rows) if place not in again)
        gone += len(again)
    return corpus.replace_splits(splits, *([f"{gone} repeated rows left out"] if gone else [])), gone


def leaks(corpus: Corpus) -> list[tuple[str, int, str, int]]:
    """(split, row, earlier split, its row) for each row whose prompt or text also stands in an earlier split."""
    found: list[tuple[str, int, str, int]] = []
    seen: dict[str, tuple[str, int]] = {}
    for split, rows in corpus.splits.items():
        here: dict[str, tuple[str, int]] = {}
        for place, row in enumerate(rows):
            asked = normal(row.prompt)
            if asked in seen:
                found.append((split, place, *seen[asked]))
            here.setdefault(asked, (split, place))
        seen = here | seen
    return found


def check(corpus: Corpus) -> tuple[Finding, ...]:
    """What deserves a look before training: repeats, leakage, contradicting labels, empty texts and answers."""
    found = [_leakage(corpus)]
    for split, rows in corpus.splits.items():
        found += [_repeats(split, rows), *_empty(split, rows), _contradictions(split, rows, corpus)]
    return tuple(finding for finding in found if finding is not None)


def split(
    rows: Sequence[Row], fractions: Mapping[str, float], *, group: str | None = None, seed: int = 0
) -> dict[str, tuple[Row, ...]]:
    """The rows dealt out to named splits by whole groups, in their order; the same for the same rows and seed.

    fractions: split to its share of the rows; they add up to 1
    group:     a column whose equal values stay together; None keeps rows about one text, or with one prompt, together
    Raises     BadConfig for fractions or a column that do not fit, BadData for fewer groups than splits
    """
    if not fractions or min(fractions.values()) <= 0 or abs(sum(fractions.values()) - 1) > 1e-6:
        given = ", ".join(f"{name}={share}" for name, share in fractions.items())
        raise BadConfig(f"split shares are {given or 'none'}; give shares above 0 that add up to 1")
    groups: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(_group(row, group), []).append(place)
    if len(groups) < len(fractions):
        by = f"the column {group!r}" if group else "the prompt or text"
        raise BadData(f"{len(groups)} different groups by {by} cannot fill {len(fractions)} splits; add rows")
    chosen = _deal(groups, {name: max(1.0, share * len(rows)) for name, share in fractions.items()}, seed)
    return {name: tuple(row for place, row in enumerate(rows) if chosen[place] == name) for name in fractions}


def with_validation(corpus: Corpus, *, fraction: float = 0.1, seed: int = 0, group: str | None = None) -> Corpus:
    """The corpus with a validation split: its own, or `fraction` of train carved off by group and noted.

    A train split of a single group cannot be divided: the corpus comes back without validation, with a note.
    group: a column whose equal values stay together; None keeps rows about one text, or with one prompt, together
    """
    if "validation" in corpus.splits:
        return corpus
    rows = corpus.rows("train")
    if len({_group(row, group) for row in rows}) < 2:
        return corpus.replace_splits(corpus.splits, "no validation: all rows of train ask the same")
    parts = split(rows, {"train": 1 - fraction, "validation": fraction}, group=group, seed=seed)
    share = len(parts["validation"]) / len(rows)
    by = f"the same {group}" if group else "the same prompt or text"
    note = (
        f"validation: {len(parts['validation'])} of {len(rows)} rows ({share:.0%}) carved off train, "
        f"rows with {by} kept together, seed {seed}"
    )
    return corpus.replace_splits({**corpus.splits, **parts}, note)


def write_jsonl(rows: Sequence[Row], path: Path) -> None:
    """The rows as they were read, one JSON object per line, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(dict(row.raw), ensure_ascii=False, default=str) + "\n")


def _group(row: Row, column: str | None) -> str:
    if column is None:
        return normal(row.belongs_to)
    if column not in row.raw:
        raise BadConfig(f"{row.where}: there is no column {column!r} to group by; {did_you_mean(column, row.raw)}")
    return json.dumps(row.raw[column], default=str)


def _deal(groups: Mapping[str, Sequence[int]], targets: Mapping[str, float], seed: int) -> dict[int, str]:
    """The split of each row: groups in an order drawn from the seed, each to the split that lacks most rows."""

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"budwood split {seed} {name}".encode()).digest()

    lacking = dict(targets)
    dealt: dict[str, list[str]] = {name: [] for name in targets}
    for name in sorted(groups, key=drawn):
        split = max(lacking, key=lambda one: (lacking[one], -targets[one]))
        dealt[split].append(name)
        lacking[split] -= len(groups[name])
    for split in dealt:
        if not dealt[split]:  # large groups took every turn: the smallest one that can be spared
            giver, name = min(
                ((one, name) for one in dealt if len(dealt[one]) > 1 for name in dealt[one]),
                key=lambda pair: (len(groups[pair[1]]), drawn(pair[1])),
            )
            dealt[giver].remove(name)
            dealt[split].append(name)
    return {place: split for split, names in dealt.items() for name in names for place in groups[name]}


def _repeats(split: str, rows: Sequence[Row]) -> Finding | None:
    again = repeats(rows)
    if not again:
        return None
    place, first = next(iter(again.items()))
    return Finding(
        kind="repeats",
        rows=len(again),
        message=f"{split}: {len(again)} of {len(rows)} rows repeat an earlier one, first "
        f"{rows[place].where} = {rows[first].where}; `budwood data dedup` leaves them out",
    )


def _leakage(corpus: Corpus) -> Finding | None:
    found = leaks(corpus)
    if not found:
        return None
    split, place, other, first = found[0]
    return Finding(
        kind="leakage",
        rows=len(found),
        message=f"{len(found)} rows ask what an earlier split asks too, first {corpus.where(split, place)} "
        f"({split}) = {corpus.where(other, first)} ({other}); scores on {split} will flatter. "
        "`budwood data split` divides the rows anew with equal prompts together",
    )


def _empty(split: str, rows: Sequence[Row]) -> list[Finding]:
    answers = [
        row
        for row in rows
        if isinstance(row.value, Conversation)
        and not any(turn.learned and turn.content.strip() for turn in row.value.turns)
    ]
    texts = [row for row in rows if not row.prompt.strip()]
    return [
        Finding(kind=kind, rows=len(bad), message=f"{split}: {len(bad)} rows {what}, first {bad[0].where}; {mend}")
        for kind, bad, what, mend in (
            ("empty-answers", answers, "have no answer to learn", "write one or leave the rows out"),
            ("empty-texts", texts, "have an empty prompt or text", "fill them or leave the rows out"),
        )
        if bad
    ]


def _contradictions(split: str, rows: Sequence[Row], corpus: Corpus) -> Finding | None:
    """Equal texts with different labels or tags."""
    if corpus.labels is None:
        return None
    first: dict[str, Row] = {}
    against = [
        (row, earlier) for row in rows if _said(earlier := first.setdefault(normal(row.prompt), row)) != _said(row)
    ]
    if not against:
        return None
    row, earlier = against[0]
    return Finding(
        kind="contradictions",
        rows=len(against),
        message=f"{split}: {len(against)} rows have the text of an earlier one and another label, first "
        f"{row.where} and {earlier.where}; decide which is right",
    )


def _said(row: Row) -> object:
    """The label or the tags of a row."""
    match row.value:
        case Labelled(_, _, label):
            return label
        case Tagged(_, tags):
            return tags
        case _:
            return None
