from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from budwood.errors import BadCheckpoint, BadConfig
from budwood.records.files import append_line, plain, read_json, read_lines, write_json, write_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6), st.data())
def test_lines_read_back_up_to_where_the_file_was_cut(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    for line in lines:
        append_line(path, line)
    assert read_lines(path) == lines
    if not lines:
        return
    content = path.read_bytes()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    kept = read_lines(path)
    assert kept == lines[: len(kept)] and len(kept) >= content[:cut].count(b"\n")
    append_line(path, {"after": 1})
    assert read_lines(path) == [*kept, {"after": 1}]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(BadCheckpoint, match=r"x.jsonl, line 2 is not a JSON object"):
        read_lines(path)
    assert read_lines(tmp_path / "none.jsonl") == []


def test_numbers_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float32(0.5), "e": np.int64(3), "f": (1, 2)}
    write_json(path, values | {"g": tmp_path, "h": {"z", "y"}, "i": np.bool_(True).item()})
    assert json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(word)) == {
        "a": "NaN",
        "b": "Infinity",
        "c": "-Infinity",
        "d": 0.5,
        "e": 3,
        "f": [1, 2],
        "g": str(tmp_path),
        "h": ["y", "z"],
        "i": True,
    }
    assert math.isnan(float("NaN")) and float("-Infinity") == -math.inf
    with pytest.raises(TypeError, match="cannot hold a object"):
        plain({"x": object()})


def test_replacing_leaves_no_draft_and_keeps_the_old_file_on_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadConfig, match=r"cannot write .*x.txt: No space left on device; make room"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_line_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot write"):
        append_line(tmp_path / "none" / "x.jsonl", {"a": 1})


def test_reading_what_is_not_an_object(tmp_path: Path) -> None:
    with pytest.raises(BadCheckpoint, match="cannot be read as JSON"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(BadCheckpoint, match="cannot be read as JSON"):
        read_json(tmp_path / "bytes.json")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
