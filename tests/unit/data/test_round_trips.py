"""What other tools write is what is read: csv, tsv, json and jsonl round trips."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood import data

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00"), max_size=20)
pairs = st.lists(st.tuples(texts, texts.filter(str.strip)), min_size=1, max_size=6)
one_line = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00\n\t"), max_size=20)


def contents(path: Path) -> list[tuple[str, str]]:
    rows = data.read(path).rows("train")
    return [(row.asked[0].content, row.answer) for row in rows]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
@settings(max_examples=50, deadline=None)
@given(st.data())
def test_csv_writers(suffix, delimiter, data):
    cell = texts if suffix == ".csv" else one_line
    rows = data.draw(st.lists(st.tuples(cell, cell.filter(str.strip)), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([("prompt", "completion"), *rows])
        assert contents(path) == rows


@settings(max_examples=50, deadline=None)
@given(pairs, st.booleans())
def test_json_writers(rows, escaped):
    written = [json.dumps({"prompt": a, "completion": b}, ensure_ascii=escaped) for a, b in rows]
    with tempfile.TemporaryDirectory() as folder:
        lines, whole = Path(folder) / "a.jsonl", Path(folder) / "b.json"
        lines.write_text("\n".join(written), encoding="utf-8")
        whole.write_text("[" + ",\n".join(written) + "]", encoding="utf-8")
        assert contents(lines) == contents(whole) == rows
