"""A teacher with another tokenizer: it reads its own tokens of the same rows, and speaks where both end together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from budwood.data import IGNORE, Batch, Example, collate
from budwood.distill.align import joint_positions
from budwood.distill.content import counts_of, keys_of
from budwood.distill.teacher import LiveTeacher, Said
from budwood.errors import BadData
from budwood.train.material import spread

LOOKED_AT = 1000
"""Rows that are aligned before training, to say how many can be; the others are when they come."""
Pairs = list[tuple[int, int]]
"""Targets of a row in the student's tokens and in the teacher's that mean the same, counted from 0."""


@dataclass(frozen=True)
class Aligned:
    """How much of the rows both can speak of."""

    rows: int
    """Looked at."""
    without: int
    """Of them, those with no position in common."""
    targets: int
    """Of the student, in the rows that were looked at."""
    covered: int
    """Of them, those that have a counterpart."""

    def __str__(self) -> str:
        missing = f"; {self.without:,} rows have none" if self.without else ""
        return f"{self.covered:,} of {self.targets:,} positions in {self.rows:,} rows have a counterpart{missing}"


@dataclass(frozen=True, kw_only=True)
class TwoTongues:
    """What tells which targets of a row mean the same in two tokenizations."""

    task: str
    student: Any
    """Its tokenizer."""
    teacher: Any
    """Its tokenizer."""

    def pairs(self, own: Example, other: Example) -> Pairs:
        """None where the two are not of the same text, as where one is cut."""
        if self.task in ("classification", "cloze"):
            return [(0, 0)]
        if self.task == "token-classification":  # a target is a word
            return [(word, word) for word in range(min(own.num_targets, other.num_targets))]
        ours, theirs = list(_pieces(own)), list(_pieces(other))
        if len(ours) != len(theirs):
            return []
        found: Pairs = []
        for (at, a), (there, b) in zip(ours, theirs, strict=True):
            try:
                ends = joint_positions(self.student, a, self.teacher, b)
            except BadData:
                continue
            found += [(at + i + 1, there + j + 1) for i, j in [(-1, -1), *ends] if i + 1 < len(a) and j + 1 < len(b)]
        return [pair for pair in found if min(pair) >= 0]


@dataclass(kw_only=True)
class Translated:
    """Asks a teacher about its own tokens of the rows of a batch, which are found by what the student reads."""

    live: LiveTeacher
    tongues: TwoTongues
    pad_id: int
    """Of the teacher."""
    rows: dict[bytes, tuple[Example, Example]]
    """Content of a row to how the student and the teacher read it (`beside`)."""
    scale: float = 1.0
    """`Said.scale`."""
    known: dict[bytes, Pairs] = field(default_factory=dict)
    """Pairs of rows that came before."""

    def say(self, batch: Batch) -> Said:
        """What the teacher says at the positions that have a counterpart; nothing of rows that it does not know."""
        keys = [key if key in self.rows and self._pairs(key) else None for key in keys_of(batch)]
        counts = counts_of(batch)
        starts = list(accumulate(counts, initial=0))
        chosen = [(place, key) for place, key in enumerate(keys) if key is not None]
        covered = torch.zeros(sum(counts), dtype=torch.bool)
        if not chosen:
            return Said(count=len(covered), covered=covered.to(batch.input_ids.device))
        theirs = [self.rows[key][1] for _, key in chosen]
        said = self.live.say(collate(theirs, self.pad_id).to(batch.input_ids.device))
        counterpart = torch.zeros(len(covered), dtype=torch.int64)
        for (place, key), begin in zip(chosen, accumulate((e.num_targets for e in theirs), initial=0), strict=False):
            for own, other in self._pairs(key):
                covered[starts[place] + own] = True
                counterpart[starts[place] + own] = begin + other

        def full(positions: slice | Tensor) -> Tensor:
            return said.at(counterpart[positions][covered[positions]].to(batch.input_ids.device))

        return Said(count=len(covered), full=full, covered=covered.to(batch.input_ids.device), scale=self.scale)

    def look(self) -> Aligned:
        """Align some rows, and count. Raises BadData where none has a counterpart."""
        chosen = spread(list(self.rows), LOOKED_AT)
        found = [len(self._pairs(key)) for key in chosen]
        targets = sum(self.rows[key][0].num_targets for key in chosen)
        if not any(found):
            raise BadData(
                f"none of {len(chosen)} rows reads the same in the tokens of student and teacher, so there is nothing "
                "to compare; raise max_length if rows are cut, or take a teacher that keeps the text as it is"
            )
        self.scale = targets / sum(found)
        return Aligned(len(chosen), sum(not count for count in found), targets, sum(found))

    def _pairs(self, key: bytes) -> Pairs:
        if key not in self.known:
            self.known[key] = self.tongues.pairs(*self.rows[key])
        return self.known[key]


def beside(own: Sequence[Example], other: Sequence[Example], pad_id: int) -> dict[bytes, tuple[Example, Example]]:
    """Rows of a split as both read them, by what the student reads; rows of which one is missing are left out."""
    ours, theirs = _by_row(own), _by_row(other)
    return {
        keys_of(collate([a], pad_id))[0]: (a, b)
        for row, examples in ours.items()
        if len(examples) == len(theirs[row])
        for a, b in zip(examples, theirs[row], strict=True)
    }


def _by_row(examples: Sequence[Example]) -> dict[int, list[Example]]:
    found: dict[int, list[Example]] = defaultdict(list)
    for example in examples:
        found[example.row].append(example)
    return found


def _pieces(example: Example) -> Iterator[tuple[int, list[int]]]:
    """Runs of learned tokens: (which target the first is, or -1 where nothing predicts it; the tokens)."""
    labels = example.target if example.target is not None else example.labels or []
    run: list[int] = []
    begin, target = 0, 0
    for place, label in enumerate([*labels, IGNORE]):
        if label != IGNORE:
            is_target = place >= int(example.shift)
            begin = begin if run else target - (not is_target)
            run.append(label)
            target += is_target
        elif run:
            yield begin, run
            run = []
