"""One value of one row, as the reader of a shape takes it: checked, or refused with what to write."""

from __future__ import annotations

import re
from collections.abc import Mapping

Fields = Mapping[str, object]
"""Canonical column name to value, of one row."""


class BadValue(Exception):
    """What is wrong with one value; `assemble` turns it into BadData with the file and the row."""


def text_of(fields: Fields, name: str) -> str:
    """A value that has to be text."""
    value = fields.get(name)
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
        raise BadValue(f"{name} is {found}, expected text; write a string")
    return clean(value, name)


def clean(value: str, name: str) -> str:
    """The text, if it is whole characters."""
    if re.search("[\ud800-\udfff]", value):
        raise BadValue(f"{name} holds half a character (a lone surrogate \\ud8xx); write whole characters")
    return value


def optional_text(fields: Fields, name: str) -> str:
    """A value that may be missing: then ''."""
    return "" if fields.get(name) is None else text_of(fields, name)
