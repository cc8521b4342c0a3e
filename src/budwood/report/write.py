"""Reports as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from budwood.errors import BadConfig, did_you_mean
from budwood.records.files import not_writable, write_text
from budwood.report.page import page
from budwood.report.read import read_table
from budwood.report.recommend import recommend
from budwood.report.table import Table
from budwood.report.text import as_json, csv, latex, markdown

TEXTS: Mapping[str, Callable[[Table], str]] = {
    "html": lambda table: page(table, recommend(table)),
    "md": markdown,
    "csv": csv,
    "json": lambda table: json.dumps(as_json(table), indent=2, ensure_ascii=False) + "\n",
    "tex": latex,
}
PICTURES = ("png", "pdf")


def write(
    where: str | Path | Sequence[str | Path], folder: str | Path, kinds: Sequence[str] = tuple(TEXTS)
) -> list[Path]:
    """FOLDER/report.html and so on, for a comparison or for runs; the paths that were written.

    kinds: html, md, csv, json, tex, png, pdf
    Raises BadConfig for a kind that there is not or a folder that cannot be written, NotAvailable for pictures without
    matplotlib, and what `read_table` does.
    """
    for kind in kinds:
        if kind not in TEXTS and kind not in PICTURES:
            raise BadConfig(f"no report is called {kind!r}; {did_you_mean(kind, (*TEXTS, *PICTURES))}")
    table, place = read_table(where), Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(place, error) from error
    return [_written(table, kind, place / f"report.{kind}") for kind in kinds]


def _written(table: Table, kind: str, path: Path) -> Path:
    if kind in PICTURES:
        from budwood.report.plots import plots

        plots(table, path)
    else:
        write_text(path, TEXTS[kind](table))
    return path
