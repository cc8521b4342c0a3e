"""The demo models on real text: what the default settings have to reach. Minutes, not seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from budwood.assets import get
from budwood.errors import NotAvailable
from budwood.train.run import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
DATA = Path(__file__).parents[2].parent / "shared" / "data"


def need(asset: str, file: Path) -> None:
    """Skip where the model or the data is not to be had."""
    if not file.exists():
        pytest.skip(f"no {file}")
    try:
        get(asset)
    except NotAvailable as problem:
        pytest.skip(str(problem))


def test_lora_brings_the_perplexity_of_e2e_answers_below_four(tmp_path: Path) -> None:
    need("demo-lm", DATA / "e2e" / "valid.txt")
    config = {"eval_every": 0, "test_rows": 100, "samples": 1}
    run = train("demo-lm", DATA / "e2e" / "valid.txt", budget="60steps", config=config, out=tmp_path / "run")
    assert run.result is not None
    found = next(entry for entry in run.result.quality if entry.metric == "perplexity")
    assert found.base is not None
    assert found.base.value > 9
    assert found.score.value < 4.0
    assert run.result.memory is not None
    assert run.result.memory.predicted_bytes is not None
    assert 0.7 < run.result.memory.peak_bytes / run.result.memory.predicted_bytes < 1.4


def test_lora_learns_sst2(tmp_path: Path) -> None:
    need("demo-encoder", DATA / "sst2" / "train.tsv")
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).symlink_to(DATA / "sst2" / name)
    config = {"eval_every": 0, "test_rows": 2000, "batch": 16, "samples": 1}
    run = train("demo-encoder", tmp_path, budget="200steps", config=config, out=tmp_path / "run")
    assert run.result is not None
    accuracy = next(entry for entry in run.result.quality if entry.metric == "accuracy")
    assert accuracy.score.n == 872
    assert accuracy.score.value > 0.8
