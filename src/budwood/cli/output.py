"""The one way out: talk on stderr, data on stdout, exactly one JSON object with `--json`.

Everything a verb says goes through a `Sink`. On a terminal it is styled and fitted to the window; anywhere else it is
plain lines that grep and diff like.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

from budwood.records.amounts import amount as amount
from budwood.records.amounts import duration as duration
from budwood.records.amounts import size as size

if TYPE_CHECKING:
    from rich.console import Console


class Level(IntEnum):
    """How much is said on stderr."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


Row = Sequence[object]
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Table:
    """Rows under headings; a heading that starts with > has its column set to the right."""

    columns: tuple[str, ...]
    rows: Sequence[Row]
    title: str = ""


@dataclass
class Sink:
    """Where a verb's words go."""

    is_json: bool = False
    """One JSON object on stdout, nothing else there."""
    level: Level = Level.NORMAL
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)

    @cached_property
    def console(self) -> Console | None:
        """rich on stderr, where that is a terminal; None for plain lines."""
        return _console(self.stderr)

    @property
    def is_live(self) -> bool:
        """Whether a line on stderr can be redrawn."""
        return self.console is not None and self.console.is_terminal and self.level > Level.QUIET

    def say(self, text: str = "", style: str = "") -> None:
        """A line for the human, on stderr; silent with -q."""
        if self.level >= Level.NORMAL:
            self._talk(text, style)

    def say_marked(self, text: str) -> None:
        """A line in which [[some stretches]] stand out: bold on a terminal, in their brackets elsewhere."""
        if self.console is None or self.level < Level.NORMAL:
            self.say(text)
            return
        from rich.text import Text

        styled = Text()
        for place, part in enumerate(re.split(r"\[\[(.*?)\]\]", printable(text), flags=re.DOTALL)):
            styled.append(part, "bold green" if place % 2 else "")
        self.console.print(styled, soft_wrap=True)

    def head(self, text: str) -> None:
        """A heading."""
        self.say()
        self.say(text, "bold")

    def detail(self, text: str) -> None:
        """A line for those who asked with -v."""
        if self.level >= Level.VERBOSE:
            self._talk(text, "dim")

    def complain(self, text: str, style: str = "red") -> None:
        """A line on stderr, also with -q."""
        self._talk(text, style)

    def tell(self, table: Table) -> None:
        """A table for the human, on stderr."""
        if self.level >= Level.NORMAL:
            self._draw(table, self.stderr, self.console)

    def data(self, text: str) -> None:
        """What was asked for, as a line on stdout; left to `result` with --json."""
        if not self.is_json:
            print(printable(text), file=self.stdout, flush=True)

    def show(self, table: Table) -> None:
        """What was asked for, as a table on stdout; left to `result` with --json."""
        if not self.is_json:
            self._draw(table, self.stdout, _console(self.stdout))

    def result(self, payload: Mapping[str, Any]) -> None:
        """The one JSON object of --json; nothing without it."""
        if self.is_json:
            print(json.dumps(_plain(payload), ensure_ascii=False), file=self.stdout, flush=True)

    def _talk(self, text: str, style: str) -> None:
        if self.console is None:
            print(printable(text), file=self.stderr, flush=True)
        else:
            self.console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, table: Table, stream: TextIO, console: Console | None) -> None:
        if console is None:
            print("\n".join(plain_table(table)), file=stream, flush=True)
        else:
            _rich_table(table, console)


def _console(stream: TextIO) -> Console | None:
    """A rich console where the stream is a terminal that can do more than lines."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    return Console(file=stream, highlight=False)


def plain_table(table: Table) -> list[str]:
    """The table as aligned lines without frames, two spaces between columns."""
    texts = [[_cell(value) for value in row] for row in table.rows]
    heads = [name.lstrip(">") for name in table.columns]
    widths = [max(map(len, column)) for column in zip(heads, *texts, strict=True)]

    def line(cells: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if name.startswith(">") else cell.ljust(width)
            for cell, width, name in zip(cells, widths, table.columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    shown = [line(heads), *map(line, texts)] if any(heads) else [line(cells) for cells in texts]
    return [table.title, *shown] if table.title else shown


def _rich_table(table: Table, console: Console) -> None:
    from rich.table import Table as Frame
    from rich.text import Text

    frame = Frame(
        title=table.title or None, title_justify="left", title_style="bold", box=None, show_header=any(table.columns),
        header_style="dim", padding=(0, 2, 0, 0),
    )  # fmt: skip
    for name in table.columns:
        right = name.startswith(">")
        frame.add_column(name.lstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for row in table.rows:
        frame.add_row(*(Text(_cell(value)) for value in row))
    console.print(frame)


def _cell(value: object) -> str:
    return "" if value is None else printable(str(value)).replace("\n", " ")


def printable(text: str) -> str:
    """The text without control characters: what a model or a file says must not steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _plain(value: Any) -> Any:
    """The same data in what JSON has; numbers that JSON lacks become words."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
