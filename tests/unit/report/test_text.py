from __future__ import annotations

import csv as csv_format
import io
import json
from dataclasses import replace

import pytest

from budwood.report.table import Table
from budwood.report.text import COLUMNS, as_json, brief, csv, latex, markdown
from report_tables import EVIL, classification, language

from .test_recommend import VALUES, ranked

TABLES = [ranked(VALUES), replace(language(), between={})]


@pytest.mark.parametrize("table", TABLES, ids=["classes", "words"])
def test_a_line_has_a_cell_under_every_heading(table: Table) -> None:
    headings, rows = brief(table)
    assert headings[0] == "method"
    assert len(rows) == len(table.methods)
    assert {len(row) for row in rows} == {len(headings)}


def test_markdown_opens_with_what_to_use_and_is_a_table() -> None:
    text = markdown(ranked(VALUES)).splitlines()
    assert text[0].startswith("# ")
    assert text[2].startswith("**Use ia3")
    lines = [line for line in text if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines[: len(VALUES) + 2]}) == 1
    evil = replace(ranked(VALUES), notes=(("a|b", "c\nd"),))
    assert "budwood compare" in markdown(evil)


def test_csv_reads_back_and_leaves_empty_what_nobody_measured() -> None:
    table = classification()
    rows = list(csv_format.DictReader(io.StringIO(csv(table))))
    assert [row["method"] for row in rows] == [one.label for one in table.methods]
    assert set(rows[0]) == {"metric", *COLUMNS}
    lora = next(row for row in rows if row["method"] == "lora")
    one = table.method("lora")
    assert one.quality is not None
    assert float(lora["quality"]) == one.quality.value
    assert int(lora["peak_memory_bytes"]) == one.peak_bytes
    refused = next(row for row in rows if row["method"] == "compacter")
    assert refused["quality"] == refused["train_s"] == ""


def test_json_is_plain_and_holds_the_recommendation() -> None:
    found = json.loads(json.dumps(as_json(ranked(VALUES))))
    assert found["version"] == 1
    assert found["recommendation"]["label"] == "ia3"
    assert len(found["table"]["methods"]) == len(VALUES)


def test_latex_is_booktabs_and_escapes_what_people_wrote() -> None:
    table = ranked(VALUES)
    named = tuple(replace(one, label="a_b & 50%") if one.label == "lora" else one for one in table.methods)
    text = latex(replace(table, title=f"{EVIL}\nsecond line", methods=named))
    assert text.splitlines()[0].startswith("% ")
    assert "second line; needs \\usepackage{booktabs}" in text.splitlines()[0]
    for rule in ("\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"):
        assert text.count(rule) == 1
    assert "a\\_b \\& 50\\%" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({line.replace("\\&", "").count("&") for line in rows}) == 1
