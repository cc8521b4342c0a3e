"""Files that are never half written: atomic replacement for whole files, append-only lines for growing ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""What JSON can hold: None, bool, int, float, str, lists and string-keyed mappings of these."""


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` in one step: a reader sees the old file or the new one, never a part."""
    raise NotImplementedError


def write_json(path: Path, data: Json) -> None:
    """`write_text` of indented JSON.  Non-finite numbers become "NaN", "Infinity", "-Infinity"."""
    raise NotImplementedError


def append_line(path: Path, data: Mapping[str, Json]) -> None:
    """Add one JSON object as one line; it is on its way to the disk when this returns."""
    raise NotImplementedError


def read_lines(path: Path) -> list[dict[str, Json]]:
    """All complete lines of a JSONL file; [] if there is none.  A torn last line is left out.

    Raises BadCheckpoint, with the line number, for damage anywhere else.
    """
    raise NotImplementedError
