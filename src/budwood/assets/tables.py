"""Tables as Orange writes them: tab-separated, names in the first of three header lines."""

from __future__ import annotations

import csv
import io

_HEADER_LINES = 3
_FIELD_BYTES = 1 << 24


def read_table(content: str, *, text: str = "Text", label: str = "Category") -> list[tuple[str, str]]:
    """Returns (text, label) of each row that has both, stripped, in the order of the file."""
    csv.field_size_limit(_FIELD_BYTES)
    rows = csv.reader(io.StringIO(content), delimiter="\t", quoting=csv.QUOTE_NONE)
    names = next(rows)
    for _ in range(_HEADER_LINES - 1):
        next(rows)
    text_at, label_at = names.index(text), names.index(label)
    kept = [(row[text_at].strip(), row[label_at].strip()) for row in rows if len(row) == len(names)]
    return [(words, topic) for words, topic in kept if words and topic]
