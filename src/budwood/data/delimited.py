"""csv and tsv, with a header or, for a label and a text, without one."""

from __future__ import annotations

import csv
import re
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from budwood.data.corpus import place
from budwood.data.files import Record, Table, lines
from budwood.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

Cells = tuple[int, list[str]]
"""The 1-based line a row starts on, and its cells."""

QUOTED = re.compile(r'"(?:[^"]|"")*"')
MOST_LABELS = 50
LONGEST_LABEL = 30


def read_delimited(path: Path, known: Collection[str]) -> Table:
    """The table in a csv or tsv file.

    The first row is a header if a cell of it is a `known` name. Otherwise two columns, one of few distinct short
    values, are a label and a text; and if every name in `known` that the user mapped is a number, columns are
    numbered. Anything else has its first row taken for a header.
    Raises BadData for a ragged row or a quote that is never closed, naming the row.
    """
    numbered = list(lines(path))
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(numbered)
    rows = _rows(path, numbered, delimiter)
    if not rows:
        return Table(file=str(path), records=[])
    header, note = _header(path, rows, known)
    body = rows[1:] if header is None else rows
    names = [cell.strip() for cell in rows[0][1]] if header is None else header
    _refuse_bad_header(path, names)
    records = []
    for count, (line, cells) in enumerate(body, start=1):
        if len(cells) != len(names):
            raise _ragged(path, count, line, cells, names)
        records.append(Record(dict(zip(names, cells, strict=True)), count, line))
    return Table(file=str(path), records=records, note=note)


def _delimiter(numbered: list[tuple[int, str]]) -> str:
    """Comma, unless the first line has none and semicolons or tabs instead (spreadsheets write those too)."""
    first = next((line for _, line in numbered if line.strip()), "")
    return "," if "," in first else next((mark for mark in (";", "\t") if mark in first), ",")


def _rows(path: Path, numbered: list[tuple[int, str]], delimiter: str) -> list[Cells]:
    """Cells of each row. In a tsv, quotes are ordinary characters unless they are used as csv uses them."""
    if delimiter == "\t":
        rows = [(number, line.rstrip("\n").split("\t")) for number, line in numbered if line.strip()]
        marked = [cell for _, cells in rows for cell in cells if '"' in cell]
        even = len({len(cells) for _, cells in rows}) <= 1
        if not marked or (even and not all(QUOTED.fullmatch(cell) for cell in marked)):
            return rows
    with _no_field_limit():
        return _quoted_rows(path, [line for _, line in numbered], delimiter)


def _quoted_rows(path: Path, texts: list[str], delimiter: str) -> list[Cells]:
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    rows: list[Cells] = []
    done = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((done + 1, cells))
            done = reader.line_num
    except csv.Error as error:
        raise BadData(
            f'{path}, line {done + 1}: {error}. Close every quote, and write a quote inside a quoted cell twice ("")'
        ) from error
    return rows


@contextmanager
def _no_field_limit() -> Iterator[None]:
    """Cells of any size, with csv's own limit as it was afterwards."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _header(path: Path, rows: list[Cells], known: Collection[str]) -> tuple[list[str] | None, str | None]:
    """Names for the columns of a file without a header, and a note; (None, None) if its first row is one."""
    first = rows[0][1]
    if any(cell.strip() in known or cell.strip().lower() in known for cell in first):
        return None, None
    numbers = [str(number + 1) for number in range(len(first))]
    if any(number in known for number in numbers):
        return numbers, f"{path}: no header, columns are numbered 1 to {len(numbers)}"
    place_of_label = _label_column([cells for _, cells in rows])
    if place_of_label is None:
        return None, None
    names = ["label", "text"] if place_of_label == 0 else ["text", "label"]
    return names, f"{path}: no header; column {place_of_label + 1} is the label, the other the text"


def _label_column(rows: list[list[str]]) -> int | None:
    """Which of two columns holds few distinct short values, if one does and the first row is not a header."""
    if any(len(cells) != 2 for cells in rows):
        return None
    columns = [[cells[place].strip() for cells in rows] for place in (0, 1)]
    label = min((0, 1), key=lambda place: sum(map(len, columns[place])))
    values = columns[label]
    distinct = set(values)
    most = max(2, min(MOST_LABELS, len(rows) // 2))
    if len(distinct) > most or not all(0 < len(value) <= LONGEST_LABEL for value in distinct):
        return None
    first, rest = values[0], values[1:]
    alone = len(rest) > 1 and first not in rest
    others_recur = all(rest.count(value) > 1 for value in set(rest))
    if alone and (others_recur or (_all_whole(rest) and not _all_whole([first]))):
        return None
    return label


def _all_whole(values: list[str]) -> bool:
    return all(re.fullmatch(r"-?\d+", value) for value in values)


def _refuse_bad_header(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or "" in names:
        what = f"the column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise BadData(f"{path}: the header has {what} ({', '.join(names)}); give every column its own name")


def _ragged(path: Path, count: int, line: int, cells: list[str], names: list[str]) -> BadData:
    shown = " | ".join(cells)
    return BadData(
        f"{place(str(path), count, line)}: {len(cells)} cells, expected {len(names)} ({', '.join(names)}): "
        f"{shown[:60]!r}. Give the row {len(names)} cells; put a cell that holds the separator in quotes"
    )
