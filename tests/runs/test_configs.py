"""Every file of configs/ trains a tiny model for a few steps, and lowers its loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from budwood.cli.app import main
from budwood.cli.layers import layered, method_of, split
from budwood.methods import METHODS
from budwood.records import RunFolder
from budwood.train.config import TrainConfig
from world import World, make_world

FOLDER = Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))
MOST_LINES = 40


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_there_is_one_file_a_method() -> None:
    assert {path.stem for path in FILES} == {method.name for method in METHODS}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_short_and_complete(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES
    settings, beside = split(layered({}, path, {}))
    assert {"model", "data", "method"} <= beside.keys()
    assert method_of(beside["method"]).name == path.stem
    TrainConfig.from_dict(settings)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_learns(
    path: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    is_classifier = "encoder" in yaml.safe_load(path.read_text())["model"]
    model, data = (world.encoder, world.labelled) if is_classifier else (world.model, world.chat)
    words = ["train", str(model), str(data), "--config", str(path), "--budget", "40steps", "--batch", "8", "--json"]
    rate = [] if path.stem in ("ia3", "lora") else ["--learning-rate", "0.01"]  # tiny models want more than large ones
    below = _below(str(model), str(data)) if path.stem == "fusion" else []
    capsys.readouterr()
    assert main([*words, *rate, *below, "--precision", "exact", "--out", "run", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "finished"
    losses = [point["loss"] for point in RunFolder.open("run").metrics() if "loss" in point]
    assert len(losses) == 40
    assert sum(losses[-8:]) < sum(losses[:8])


def _below(model: str, data: str) -> list[str]:
    """Flags for two adapters, each trained for a few steps."""
    for name, method in (("one", "adapter-p:size=4"), ("two", "adapter-p:size=8")):
        words = ["train", model, data, "--method", method, "--budget", "8steps", "--precision", "exact", "--out", name]
        assert main([*words, "--learning-rate", "0.01", "-q"]) == 0
    return ["--on", "one", "--on", "two"]
