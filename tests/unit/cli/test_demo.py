from __future__ import annotations

from pathlib import Path

import pytest

from budwood.cli import demo
from world import World

from .conftest import Run


def test_demo_opens_with_what_to_use_and_says_what_comes_next(
    budwood: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = {"model": str(world.model), "data": str(world.chat), "batch": 4, "method": ("lora:rank=2", "adapter-h")}
    for name, value in {**small, "test_rows": 8}.items():
        monkeypatch.setitem(demo.SETTINGS, name, value)
    ran = budwood("demo", "--budget", "2steps", "--out", "cmp")
    assert ran.code == 0, ran.err
    talk = ran.err.splitlines()
    assert demo.WHAT in talk
    opens = next(number for number, line in enumerate(talk) if line.startswith(("Use ", "Nothing", "No ")))
    table = next(number for number, line in enumerate(talk) if "against the best" in line)
    assert opens < table < next(number for number, line in enumerate(talk) if line == "what to type next")
    assert ran.out.strip().endswith("report.html")
    assert (tmp_path / "cmp" / "report.html").is_file()
    assert "budwood compare demo-encoder YOURS.csv" in ran.err
    again = budwood("demo", "--budget", "2steps", "--out", "cmp")
    assert again.code == 0
    assert "of which 2 are done" in again.err


def test_demo_compares_at_least_six_methods() -> None:
    methods = demo.SETTINGS["method"]
    assert isinstance(methods, tuple)
    assert len(set(methods)) >= 6


def test_demo_without_network_names_the_way(budwood: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BUDWOOD_WHEELS", raising=False)
    ran = budwood("demo", "--offline")
    assert ran.code == 4 and "pip download" in ran.err
