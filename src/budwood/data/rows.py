"""Tables to a corpus: one shape for all rows, and one set of labels for all splits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from budwood.data.corpus import SPLITS, WITH_LABELS, Corpus, Labelled, Row, Tagged, Task, place
from budwood.data.fields import BadValue
from budwood.data.shapes import Shape, recognise
from budwood.data.spans import notes as answer_notes
from budwood.data.tagging import in_order, numbered, tag_names
from budwood.errors import BadData, did_you_mean

if TYPE_CHECKING:
    from budwood.data.files import Record, Table

Splits = dict[str, tuple[Row, ...]]


def assemble(
    origin: str,
    tables: Mapping[str, Sequence[Table]],
    *,
    columns: Mapping[str, str],
    task: Task | None,
    labels: Sequence[str] | None,
) -> Corpus:
    """The corpus in these tables, by split; the first row says what shape all have. Raises BadData."""
    ordered = {name: tables[name] for name in (*SPLITS, *tables) if name in tables}
    first = next(iter(ordered.values()))[0]
    found = tuple(dict.fromkeys(name for parts in ordered.values() for table in parts for name in table.columns))
    shape, used = recognise(tuple(first.records[0].values), found, columns, task, first.file)
    splits: Splits = {
        split: tuple(row for table in parts for row in _rows(table, shape, used, first.file))
        for split, parts in ordered.items()
    }
    notes = [table.note for parts in ordered.values() for table in parts if table.note]
    names = None
    use = task or shape.tasks[0]
    if use in WITH_LABELS:
        naming = _tags if use == "token-classification" else _classes
        splits, names, more = naming(splits, used, labels)
        notes += more
    if use == "question-answering":
        notes += answer_notes([row for rows in splits.values() for row in rows])
    return Corpus(
        origin=origin, shape=shape.name, task=use, columns=found, used=used, splits=splits,
        labels=names, notes=tuple(notes),
    )  # fmt: skip


def _classes(
    splits: Splits, used: Mapping[str, str], labels: Sequence[str] | None
) -> tuple[Splits, tuple[str, ...], list[str]]:
    """The rows with the numbers of their classes, the classes, and notes."""
    splits, notes = _without_unlabelled(splits, used["label"])
    names = _label_names(splits, used["label"]) if labels is None else tuple(labels)
    numbered = {split: tuple(_with_label(row, used["label"], names) for row in rows) for split, rows in splits.items()}
    return numbered, names, notes


def _tags(
    splits: Splits, used: Mapping[str, str], labels: Sequence[str] | None
) -> tuple[Splits, tuple[str, ...], list[str]]:
    """The rows with the numbers of their tags, and the tags of the train split (or the first)."""
    said = {split: [_tag_names(row, used["tags"], labels) for row in rows] for split, rows in splits.items()}
    first, rows = next(iter(splits.items()))
    names = in_order({tag for tags in said[first] for tag in tags}) if labels is None else tuple(labels)
    if len(names) < 2:
        raise BadData(
            f"{rows[0].file}: {used['tags']} holds {len(names)} tag ({', '.join(names)}) in {first}; there is nothing "
            "to tell apart. Give rows with at least two tags, such as O and B-PER"
        )
    numbered = {
        split: tuple(_with_tags(row, tags, names) for row, tags in zip(rows, said[split], strict=True))
        for split, rows in splits.items()
    }
    return numbered, names, []


def _tag_names(row: Row, column: str, labels: Sequence[str] | None) -> list[str]:
    try:
        return tag_names(row.raw[column], labels)
    except BadValue as error:
        raise BadData(f"{row.where}: {error}") from error


def _with_tags(row: Row, tags: Sequence[str], names: Sequence[str]) -> Row:
    assert isinstance(row.value, Tagged)
    try:
        return replace(row, value=numbered(row.value, tags, names))
    except BadValue as error:
        raise BadData(f"{row.where}: {error}") from error


def _rows(table: Table, shape: Shape, used: Mapping[str, str], first_file: str) -> list[Row]:
    rows = []
    for record in table.records:
        where = place(table.file, record.number, record.line)
        lacking = [used[name] for name in shape.required if used[name] not in record.values]
        if lacking:
            raise BadData(
                f"{where}: has {', '.join(record.values) or 'no columns'} but no {', '.join(lacking)}; "
                f"row 1 of {first_file} was recognised as {shape.name}, and all rows must be. "
                f"Write {shape.example}"
            )
        rows.append(_row(table.file, record, shape, used, where))
    return rows


def _row(file: str, record: Record, shape: Shape, used: Mapping[str, str], where: str) -> Row:
    fields = {name: record.values.get(column) for name, column in used.items()}
    try:
        value = shape.build(fields)
    except BadValue as error:
        raise BadData(f"{where}: {error}. A row of this shape: {shape.example}") from error
    return Row(value=value, raw=record.values, file=file, number=record.number, line=record.line)


def _label_name(row: Row, column: str) -> str | None:
    """The class of a row as text, None where it has none."""
    value = row.raw[column]
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        if isinstance(value, bool):
            return str(value).lower()
        raise BadData(f"{row.where}: {column} is {value!r}; classes are whole numbers or text")
    return str(value).strip()


def _without_unlabelled(splits: Splits, column: str) -> tuple[Splits, list[str]]:
    """The splits that have labels, with a note on those that have none at all (test sets are published so)."""
    bare = [
        name
        for name, rows in splits.items()
        if name != "train" and len(splits) > 1 and all(_label_name(row, column) is None for row in rows)
    ]
    notes = [f"{name} has no labels ({len(splits[name])} rows), left out" for name in bare]
    return {name: rows for name, rows in splits.items() if name not in bare}, notes


def _label_names(splits: Splits, column: str) -> tuple[str, ...]:
    """Classes of the train split (or the first): whole numbers by value, anything else by alphabet."""
    split, rows = next(iter(splits.items()))
    names = {name for row in rows if (name := _label_name(row, column))}
    if len(names) < 2:
        raise BadData(
            f"{rows[0].file}: {column} holds {len(names)} class ({', '.join(names)}) in {split}; "
            "classification needs at least two. Check --columns label=..., or read it as text"
        )
    if all(re.fullmatch(r"-?\d+", name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def _with_label(row: Row, column: str, names: tuple[str, ...]) -> Row:
    name = _label_name(row, column)
    if not name:
        raise BadData(f"{row.where}: {column} is empty; write one of {', '.join(names[:12])}")
    if name not in names:
        raise BadData(
            f"{row.where}: {column} is {name!r}, which is not a class of the train split or the model; "
            f"{did_you_mean(name, names)}"
        )
    assert isinstance(row.value, Labelled)
    return replace(row, value=replace(row.value, label=names.index(name)))
