from __future__ import annotations

import json
from pathlib import Path

import pytest

from budwood.errors import BadCheckpoint, BadConfig, BudwoodError, NotAvailable
from budwood.records import Comparison, ComparisonFolder, Contender, Item
from budwood.report.read import read_table
from budwood.report.runs import going_on

BARE = Comparison(
    command=("budwood", "compare"), model="m", data="d", budget="1steps", seeds=(0,), status="finished",
    contenders=(Contender(label="base", method={"base": {}}),), items=(Item(name="base", label="base", seed=0),),
)  # fmt: skip


def test_a_folder_that_holds_neither_runs_nor_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(BudwoodError) as refused:
        read_table(tmp_path)
    assert isinstance(refused.value, NotAvailable | BadConfig)
    assert str(tmp_path) in str(refused.value)


def test_records_of_another_version_are_not_guessed_at(tmp_path: Path) -> None:
    ComparisonFolder(tmp_path).write(BARE)
    said = json.loads((tmp_path / "comparison.json").read_text())
    (tmp_path / "comparison.json").write_text(json.dumps({**said, "version": 99}))
    with pytest.raises(BadCheckpoint, match="version 99 .* compare again in a new folder"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("mend", "words"),
    [
        (lambda text: text[: len(text) // 2], "comparison.json"),
        (lambda text: text.replace('"seeds"', '"sedes"'), "unknown sedes"),
        (lambda text: json.dumps({**json.loads(text), "status": "perhaps"}), "status is 'perhaps'"),
    ],
    ids=["truncated", "unknown", "status"],
)
def test_damaged_records_are_named(tmp_path: Path, mend: object, words: str) -> None:
    ComparisonFolder(tmp_path).write(BARE)
    path = tmp_path / "comparison.json"
    path.write_text(mend(path.read_text()))  # type: ignore[operator]
    with pytest.raises(BadCheckpoint, match=words):
        read_table(tmp_path)


def test_a_comparison_of_which_nothing_is_finished_says_how_to_go_on(tmp_path: Path) -> None:
    ComparisonFolder(tmp_path).write(BARE)
    with pytest.raises(BudwoodError, match="--resume"):
        read_table(tmp_path)
    assert "budwood compare --resume" in going_on(BARE, tmp_path)
