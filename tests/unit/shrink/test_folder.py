from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from budwood.errors import BadCheckpoint, BadConfig, VerificationFailed
from budwood.records import Manifest, RunFolder, Timing, machine
from budwood.shrink import folder as shelves
from budwood.shrink.folder import Shelf, stages_of
from budwood.shrink.stage import Stage
from shrinking import model_at


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    manifest = Manifest(command=(), model="m", method={"shrink": {}}, data="d", seed=0)
    run = RunFolder.create(tmp_path, manifest, config={}, data={}, environment=machine(), out=tmp_path / "run")
    return Shelf(run, "causal-lm", None)


@pytest.fixture
def model(tmp_path: Path) -> tuple[Any, Any]:
    place = model_at(tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)


def stage(number: int, **more: Any) -> Stage:
    timing = Timing(batch=1, prompt_tokens=4, prefill_s=1.0, per_token_s=None, how="")
    return Stage(
        number=number, kind="cut", what="x", sizes={"layers": 2}, parameters=10, share=0.5, scores=(), quality=None,
        timing=timing, speedup=float("inf"), **more,
    )  # fmt: skip


def test_stages_come_back_and_work_is_cleared(shelf: Shelf) -> None:
    assert shelf.stages == [] and shelf.work == "work/00"
    (shelf.root / "work" / "00").mkdir(parents=True)
    shelf.add(stage(0, candidates={"ffn": 1.5}, folder="stages/00-cut"))
    shelf.add(stage(1, accepted=False))
    assert not (shelf.root / "work").exists() and shelf.work == "work/02"
    first, second = stages_of(shelf.run)
    assert first.candidates == {"ffn": 1.5} and float(first.speedup) == float("inf") and not second.accepted


def test_a_stage_that_cannot_be_read(shelf: Shelf) -> None:
    (shelf.root / "stages.jsonl").write_text('{"number": 0}\n')
    with pytest.raises(BadCheckpoint, match=r"stages.jsonl holds a stage that cannot be read .*start the run again"):
        stages_of(shelf.run)


def test_a_folder_is_whole_and_delivered(shelf: Shelf, model: tuple[Any, Any]) -> None:
    assert shelf.save(*model, "stages/01-cut", []) == "stages/01-cut"
    assert shelf.deliver("stages/01-cut") == shelf.root / "model"
    files = {file.name for file in (shelf.root / "model").iterdir()}
    assert files == {file.name for file in (shelf.root / "stages" / "01-cut").iterdir()} and "config.json" in files
    assert shelf.deliver("stages/01-cut") == shelf.root / "model"  # once more
    loaded = shelf.load("model")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model[0].parameters(), strict=True))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device")]
)
def test_a_full_disk(shelf: Shelf, model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    shelf.save(*model, "stages/01-cut", [])

    def full(self: Any, place: Path, **more: Any) -> None:
        Path(place).mkdir(parents=True)
        (Path(place) / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(BadConfig, match=r"cannot write .*01-cut: .*No space left on device; make room"):
        shelf.save(*model, "stages/01-cut", [])
    assert [path.name for path in (shelf.root / "stages").iterdir()] == ["01-cut"]
    assert shelf.load("stages/01-cut").num_parameters() == model[0].num_parameters()


def test_what_is_read_again_must_be_the_same(
    shelf: Shelf, model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([[torch.zeros(2)], [torch.ones(2)]])
    monkeypatch.setattr(shelves, "sample_logits", lambda *given: next(answers))
    with pytest.raises(VerificationFailed, match="logits that differ by 1; nothing was kept"):
        shelf.save(*model, "stages/01-cut", [])
    assert not list((shelf.root / "stages").iterdir())
