"""One file to one table of records: json, jsonl, txt, conll, parquet here; csv and tsv in `delimited`."""

from __future__ import annotations

import codecs
import importlib
import io
import json
import re
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from budwood.data.corpus import place
from budwood.data.spans import squad_rows
from budwood.errors import BadData, NotAvailable, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".conll")
"""File name endings that can be read."""

OBJECT = '{"prompt": "...", "completion": "..."}'
"""How a row is written, for messages."""

BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the file has it."""

    values: Mapping[str, object]
    number: int
    line: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The records of one file."""

    file: str
    records: list[Record]
    note: str | None = None
    """What was decided about a file that does not name its columns."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns in order of appearance."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.values))


def read_file(path: Path, known: Collection[str]) -> Table:
    """The table in a file.

    known: column names that tell a header from a first row (canonical ones and those the user mapped)
    Raises NotAvailable if it cannot be opened, BadData if it is empty or malformed (naming the row).
    """
    from budwood.data.delimited import read_delimited

    match path.suffix.lower():
        case ".jsonl":
            table = Table(file=str(path), records=list(_jsonl(path)))
        case ".json":
            table = Table(file=str(path), records=_json(path))
        case ".csv" | ".tsv":
            table = read_delimited(path, known)
        case ".txt":
            table = _txt(path)
        case ".conll":
            table = Table(file=str(path), records=list(_conll(path)))
        case ".parquet":
            table = Table(file=str(path), records=_parquet(path))
        case suffix:
            raise BadData(
                f"{path}: cannot read {suffix or 'a file without an ending'}; "
                f"rename it to what it holds, one of {' '.join(SUFFIXES)}"
            )
    if not table.records:
        raise BadData(f"{path} has no rows; write at least one, for example {OBJECT}")
    return table


def missing(path: Path) -> NotAvailable:
    """The error for a path that does not exist, with the nearest name beside it."""
    parent = path.parent
    if not parent.is_dir():
        return NotAvailable(f"{path} does not exist, nor does its folder {parent}; check the path")
    beside = [
        item.name
        for item in sorted(parent.iterdir())
        if item.suffix.lower() in SUFFIXES or (item.is_dir() and not item.name.startswith("."))
    ]
    hint = did_you_mean(path.name, beside[:20]) if beside else "there is no data file there"
    return NotAvailable(f"{path} does not exist; in {parent.resolve()}: {hint}")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(1-based number, line with its line end as a newline), decoded as UTF-8, or UTF-16 with a byte order mark.

    Raises BadData naming the line that is not text in that encoding.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                yield from enumerate(io.StringIO(_utf16(path)), start=1)
                return
            file.seek(0)
            for number, raw in enumerate(file, start=1):
                line = _utf8(raw, path, number)
                yield number, line[:-2] + "\n" if line.endswith("\r\n") else line
    except OSError as error:
        raise NotAvailable(f"{path} cannot be read: {error.strerror}; check its permissions") from error


def _utf8(raw: bytes, path: Path, number: int) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise BadData(
            f"{path}, line {number}: byte {raw[error.start]:#04x} at {error.start + 1} is not UTF-8. "
            f"Save the file as UTF-8, for example: iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}"
        ) from error


def _utf16(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-16").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} starts as UTF-16 but is not: {error}; save it as UTF-8") from error


def _jsonl(path: Path) -> Iterator[Record]:
    count = 0
    for number, line in lines(path):
        if not line.strip():
            continue
        count += 1
        where = place(str(path), count, number)
        yield Record(_object(_parsed(line, where, f"write one object per line, {OBJECT}"), where), count, number)


def _json(path: Path) -> list[Record]:
    """A list of objects; also one under the key 'data', and JSON Lines under a .json name."""
    text = "".join(line for _, line in lines(path))
    if not text.strip():
        return []
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return list(_jsonl(path))
        raise BadData(
            f"{path}, row {_items_before(text, error.pos) + 1} (line {error.lineno}): not valid JSON, {error.msg}: "
            f"{_excerpt(error.doc[error.pos :])}; write a list of objects, [{OBJECT}, ...]"
        ) from error
    if isinstance(whole, dict) and isinstance(whole.get("data"), list):
        whole = whole["data"]
    if isinstance(whole, list) and whole and isinstance(whole[0], dict) and "paragraphs" in whole[0]:
        whole = _squad(whole, path)
    if isinstance(whole, dict):
        return [Record(whole, 1)]
    if not isinstance(whole, list):
        raise BadData(f"{path} holds {_kind(whole)}; write a list of objects, [{OBJECT}, ...]")
    return [Record(_object(item, place(str(path), n, None)), n) for n, item in enumerate(whole, start=1)]


def _squad(articles: list[Any], path: Path) -> list[Any]:
    try:
        return list(squad_rows(articles))
    except (KeyError, TypeError) as error:
        raise BadData(
            f"{path}: it begins like a file of SQuAD and goes on otherwise ({error!r}); every article needs "
            "paragraphs, every paragraph a context and qas, every one of these a question and answers"
        ) from error


def _items_before(text: str, position: int) -> int:
    """How many whole items of a JSON list end before a position, read one by one."""
    decoder, count = json.JSONDecoder(), 0
    at = text.find("[") + 1
    while 0 < at < position:
        try:
            _, at = decoder.raw_decode(text, BETWEEN.match(text, at).end())  # type: ignore[union-attr]
        except json.JSONDecodeError:
            break
        count += 1
    return count


def _parsed(text: str, where: str, instead: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BadData(
            f"{where}: not valid JSON, {error.msg} at character {error.pos + 1}: {_excerpt(text)}; {instead}"
        ) from error


def _object(value: object, where: str) -> Mapping[str, object]:
    if isinstance(value, dict):
        return value
    raise BadData(f"{where}: found {_kind(value)}, expected an object; write {OBJECT}")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return f"{names.get(type(value), 'null')} ({_excerpt(json.dumps(value, ensure_ascii=False))})"


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 60 else text[:57] + "..."


def _txt(path: Path) -> Table:
    """`prompt||completion` where every line holds exactly one ||, else one text per line."""
    texts = [(number, line.strip()) for number, line in lines(path) if line.strip()]
    halved = sum(line.count("||") == 1 for _, line in texts)
    if texts and halved == len(texts):
        pairs = [(number, line.split("||")) for number, line in texts]
        records = [
            Record({"prompt": ask.strip(), "completion": answer.strip()}, count, number)
            for count, (number, (ask, answer)) in enumerate(pairs, start=1)
        ]
        return Table(file=str(path), records=records, note=f"{path}: every line is prompt || completion")
    note = f"{path}: one text per line"
    if halved:
        note += f" ({halved} of {len(texts)} lines hold one ||; prompt || completion needs it in every line)"
    records = [Record({"text": line}, count, number) for count, (number, line) in enumerate(texts, start=1)]
    return Table(file=str(path), records=records, note=note)


def _conll(path: Path) -> Iterator[Record]:
    """A word and its tag on each line, the first and the last of its columns; an empty line ends a sentence."""
    count, first = 0, 1
    words: list[str] = []
    tags: list[str] = []
    for number, line in chain(lines(path), [(0, "")]):
        parts = [part.strip() for part in line.split("\t" if "\t" in line else None)]
        if parts and parts[0] and parts[0] != "-DOCSTART-":
            if len(parts) < 2:
                raise BadData(
                    f"{path}, line {number}: {_excerpt(line)!r} is one column; write a word, a space, its tag"
                )
            first = first if words else number
            words.append(parts[0])
            tags.append(parts[-1])
        elif words:
            count += 1
            yield Record({"tokens": words, "tags": tags}, count, first)
            words, tags = [], []


def _parquet(path: Path) -> list[Record]:
    parquet = hub_module("pyarrow.parquet", f"reading {path}")
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's errors are these two
        raise BadData(f"{path} is not a readable parquet file: {_excerpt(str(error))}; write it again") from error
    return [Record(row, number) for number, row in enumerate(rows, start=1)]


def hub_module(name: str, purpose: str) -> Any:
    """A module that comes with the [hub] extra. Raises NotAvailable with the line that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotAvailable(f'{purpose} needs an extra package; run: pip install "budwood[hub]"') from error
