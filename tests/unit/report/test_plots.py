from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from budwood.errors import BadConfig, NotAvailable, WrongOrder
from budwood.report.plots import plots
from report_tables import classification


@pytest.mark.parametrize(("name", "start"), [("all.png", b"\x89PNG"), ("all.pdf", b"%PDF")])
def test_all_drawings_in_one_file(tmp_path: Path, name: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    table = replace(classification(), title="a $ price \N{SNOWMAN}", limits={"memory_bytes": 2e8, "quality": 0.8})
    path = plots(table, tmp_path / name)
    assert path.read_bytes().startswith(start)
    assert path.stat().st_size > 10_000


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"x\.jpg is neither a \.png nor a \.pdf; name a file that ends in one"):
        plots(classification(), tmp_path / "x.jpg")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(BadConfig, match=r"nowhere/x\.png"):
        plots(classification(), tmp_path / "nowhere" / "x.png")


def test_with_nothing_to_draw_it_says_what_to_wait_for(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(WrongOrder, match="no two methods have a quality yet"):
        plots(replace(classification(), methods=()), tmp_path / "x.png")


def test_without_matplotlib_the_line_to_type_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NotAvailable, match=r"pip install 'budwood\[plots\]'"):
        plots(classification(), tmp_path / "x.png")
