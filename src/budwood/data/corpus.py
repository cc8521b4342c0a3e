"""What reading gives: rows in one recognised shape, in named splits, with where each came from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from budwood.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from budwood.data.pattern import Cloze

Task = Literal[
    "causal-lm", "classification", "masked-lm", "seq2seq", "cloze", "token-classification", "question-answering"
]
TASKS: tuple[Task, ...] = get_args(Task)
"""What rows can be used for."""

WITH_LABELS: tuple[Task, ...] = ("classification", "cloze", "token-classification")
"""Those that tell named things apart."""

SPLITS = ("train", "validation", "test")
"""The names a split can have, in the order they are shown."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation; `learned` turns are the answers the model is trained on."""

    role: Literal["system", "user", "assistant"]
    content: str
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; prompt/completion, question/answer and instruction/output are conversations of two."""

    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text, learned whole."""

    text: str


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or a pair of them, and its class."""

    text: str
    pair: str | None
    label: int
    """Index into the corpus' labels."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """Words, and the tag of each."""

    words: tuple[str, ...]
    tags: tuple[int, ...]
    """Indices into the corpus' labels."""

    @property
    def prompt(self) -> str:
        """The words, with a space between."""
        return " ".join(self.words)


@dataclass(frozen=True, slots=True)
class Answer:
    """A piece of a text that answers a question."""

    text: str
    start: int
    """Characters of the text in front of it."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A text, a question about it, and the pieces of the text that answer it."""

    context: str
    question: str
    answers: tuple[Answer, ...]
    """Each of them is right; the first is learned. None where the text has no answer."""
    is_first_of_several: bool = False
    """Whether an answer came without its place and stands in the text more than once: the first place was taken."""

    @property
    def prompt(self) -> str:
        """The text and the question."""
        return f"{self.context}\n{self.question}"


Value: TypeAlias = Conversation | Text | Labelled | Tagged | Passage
"""What a row holds, by shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: its value in the recognised shape, as it was read, and where it stands."""

    value: Value
    raw: Mapping[str, object]
    """The row as the file has it: column to value."""
    file: str
    number: int
    """1-based among the file's rows (a header and blank lines are not rows)."""
    line: int | None = None
    """1-based line of the file, where the file has lines."""

    @property
    def where(self) -> str:
        """For messages: 'faq.jsonl, row 3', with the line where that differs."""
        return place(self.file, self.number, self.line)

    @property
    def prompt(self) -> str:
        """What is asked: turns before the last answer, or the text; what leakage and groups go by."""
        if isinstance(self.value, Text):
            return self.value.text
        if isinstance(self.value, Tagged | Passage):
            return self.value.prompt
        if isinstance(self.value, Labelled):
            return "\n".join(filter(None, (self.value.text, self.value.pair)))
        return "\n".join(turn.content for turn in self.asked)

    @property
    def belongs_to(self) -> str:
        """What rows that belong together share: the text that questions are about, else the prompt."""
        return self.value.context if isinstance(self.value, Passage) else self.prompt

    @property
    def asked(self) -> tuple[Turn, ...]:
        """The turns before the last answer, which a model is given to answer; empty for other shapes."""
        if not isinstance(self.value, Conversation):
            return ()
        turns = self.value.turns
        answers = [place for place, turn in enumerate(turns) if turn.learned]
        return turns[: answers[-1]] if answers else turns

    @property
    def answer(self) -> str:
        """The last answer of a conversation, the first of a passage, or '' where there is none."""
        if isinstance(self.value, Passage):
            return self.value.answers[0].text if self.value.answers else ""
        if not isinstance(self.value, Conversation):
            return ""
        return next((turn.content for turn in reversed(self.value.turns) if turn.learned), "")


def place(file: str, number: int, line: int | None) -> str:
    """'faq.jsonl, row 3' or, where lines and rows differ, 'faq.csv, row 3 (line 4)'."""
    return f"{file}, row {number}" + (f" (line {line})" if line not in (None, number) else "")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Rows of one shape in named splits: what `read` returns and everything in data works on."""

    origin: str
    """What was read, as the user named it."""
    shape: str
    """The recognised shape: 'messages', 'prompt/completion', 'text + label', ..."""
    task: Task
    columns: tuple[str, ...]
    """Columns found in the file."""
    used: Mapping[str, str]
    """Canonical name of each column that is used, to its name in the file."""
    splits: Mapping[str, tuple[Row, ...]]
    """By name, in the order train, validation, test."""
    labels: tuple[str, ...] | None = None
    """Names of classes or tags in order, for the tasks of `WITH_LABELS`."""
    cloze: Cloze | None = None
    """How a language model is asked for the class, for cloze."""
    notes: tuple[str, ...] = ()
    """What was decided on the way and deserves to be seen: splits carved off, rows left out."""

    def rows(self, split: str) -> tuple[Row, ...]:
        """The rows of a split. Raises BadData, naming the splits there are."""
        if split not in self.splits:
            there = ", ".join(f"{name} ({len(rows)} rows)" for name, rows in self.splits.items())
            raise BadData(
                f"{self.origin} has no {split} split; it has {there}. "
                f"Name one file to read it as train, or add a file {split}.* to the folder"
            )
        return self.splits[split]

    def where(self, split: str, row: int) -> str:
        """Where the row of an `Example` stands: 'faq.jsonl, row 3'."""
        return self.rows(split)[row].where

    def all_rows(self) -> Iterator[tuple[str, Row]]:
        """Every row with the name of its split."""
        for split, rows in self.splits.items():
            for row in rows:
                yield split, row

    def replace_splits(self, splits: Mapping[str, tuple[Row, ...]], *notes: str) -> Corpus:
        """The same corpus with other rows, and notes on why."""
        ordered = {name: splits[name] for name in sorted(splits, key=_split_rank)}
        return replace(self, splits=ordered, notes=(*self.notes, *notes))

    def describe(self) -> tuple[str, ...]:
        """Lines that say what was recognised: shape, columns, rows, labels, notes."""
        used = ", ".join(
            name if name == column else f"{name} = column {column!r}" for name, column in self.used.items()
        )
        ignored = [column for column in self.columns if column not in self.used.values()]
        lines = [f"{self.origin}: recognised {self.shape} ({used})"]
        if ignored:
            lines.append(f"columns not used: {', '.join(ignored)}")
        lines.append("rows: " + ", ".join(f"{name} {len(rows)}" for name, rows in self.splits.items()))
        if self.labels is not None:
            shown = ", ".join(self.labels[:12]) + (", ..." if len(self.labels) > 12 else "")
            lines.append(f"labels: {len(self.labels)} ({shown})")
        return (*lines, *self.notes)

    def hash(self) -> str:
        """sha256 of what is learned from (splits, values, labels), whatever the file or column names: 64 hex."""
        digest = hashlib.sha256(json.dumps([self.task, self.labels]).encode())
        for split, row in self.all_rows():
            digest.update(json.dumps([split, *_content(row)]).encode() + b"\n")
        return digest.hexdigest()


def _content(row: Row) -> list[object]:
    match row.value:
        case Conversation(turns):
            return [[turn.role, turn.content, turn.learned] for turn in turns]
        case Text(text):
            return [text]
        case Labelled(text, pair, label):
            return [text, pair, label]
        case Tagged(words, tags):
            return [words, tags]
        case Passage(context, question, answers):
            return [context, question, [[answer.text, answer.start] for answer in answers]]


def _split_rank(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)
