"""Files that are never half written: whole files are replaced in one step, growing ones are appended to."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeAlias

from budwood.errors import BadCheckpoint, BadConfig

Json: TypeAlias = Any
"""What JSON can hold: None, bool, int, float, str, lists and string-keyed mappings of these."""


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a reader sees the old file or the new one, never a part.

    Raises BadConfig, from the system's error, if the folder cannot be written.
    """
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(draft).chmod(0o666 & ~_umask())
            Path(draft).replace(path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise not_writable(path, error) from error


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Json) -> None:
    """`write_text` of indented JSON.  Non-finite numbers become "NaN", "Infinity", "-Infinity"."""
    write_text(path, json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Json]:
    """The object in a JSON file.  Raises BadCheckpoint if it is not one whole JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadCheckpoint(f"{path} cannot be read as JSON: {error}; restore the file or run again") from error
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{path} holds a JSON {type(data).__name__}, not an object; restore it or run again")
    return data


def append_line(path: Path, data: Mapping[str, Json]) -> None:
    """Add one JSON object as one line, handed to the system before this returns; cuts off a torn last line."""
    line = json.dumps(plain(data), ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with path.open("a+b") as file:
            _cut_torn_line(file)
            file.write(line.encode())
    except OSError as error:
        raise not_writable(path, error) from error


def read_lines(path: Path) -> list[dict[str, Json]]:
    """All complete lines of a JSONL file; [] if there is none.  A torn last line is left out.

    Raises BadCheckpoint, with the line number, for damage anywhere else.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, start=1):
        value = _object(line)
        if value is not None:
            found.append(value)
        elif line.strip() and number < len(lines):
            raise BadCheckpoint(
                f"{path}, line {number} is not a JSON object; delete that line, or run again in a new folder"
            )
    return found


def plain(value: Json) -> Json:
    """The same data with nothing in it that JSON lacks: paths, tuples, NumPy numbers, NaN and infinities.

    Numbers that are not finite become words ("NaN", "Infinity", "-Infinity") that float() reads back.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _finite(float(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def not_writable(path: Path, error: OSError) -> BadConfig:
    """The error for a place that cannot be written."""
    reason = error.strerror or str(error)
    return BadConfig(f"cannot write {path}: {reason}; make room or rights there, or choose another folder with --out")


def _finite(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _object(line: bytes) -> dict[str, Json] | None:
    try:
        value = json.loads(line)
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _cut_torn_line(file: Any) -> None:
    """Leave the file ending in a newline: complete a last line that is whole, remove one that is torn."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if _object(content[start:]) is None:
        file.truncate(start)
    else:
        file.write(b"\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
