"""Whole searches on a tiny model in a folder: a ready run, its reasons, and what a stop costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from budwood.compare.compared import Compared
from budwood.compare.config import Comparing, Unheard
from budwood.compare.run import resume as resume_comparison
from budwood.compare.search import resume, search_job
from budwood.compare.work import Task
from budwood.errors import BadConfig
from budwood.records import Comparison, ComparisonFolder, Item, RunFolder
from budwood.train.config import TrainConfig
from budwood.train.job import Job
from tokens import model_folder

QUICK: dict[str, Any] = {
    "budget": "60s", "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "eval_every": 0,
    "test_rows": 12, "eval_rows": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def faq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "faq.jsonl"
    rows = [{"question": f"what is w{n} ?", "answer": f"it is w{n * 7 % 60} ."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Heard(Unheard):
    """Keeps what begins; stops at one of them where that is asked."""

    stop_at: int = 0
    begun: list[str] = field(default_factory=list)
    ended: list[tuple[str, str | None]] = field(default_factory=list)

    def begin(self, task: Task, number: int, total: int) -> None:
        self.begun.append(task.kind)
        if len(self.begun) == self.stop_at:
            raise KeyboardInterrupt

    def hear(self, task: Task, event: Mapping[str, Any]) -> None:
        assert event["event"] != "error"

    def end(self, item: Item, comparison: Comparison) -> None:
        self.ended.append((item.name, item.error))


def small(model: Path, data: Path, out: Path, *methods: str, heard: Heard, **settings: Any) -> Compared:
    job = Job(model=str(model), data=str(data), config=TrainConfig(**{**QUICK, **settings}), out=out)
    return search_job(job, Comparing(methods=methods, search=False), listener=heard)


@pytest.mark.slow
def test_a_search_ends_with_a_run_and_its_reasons_and_goes_on_after_a_stop(
    llama: Path, faq: Path, tmp_path: Path
) -> None:
    out, first = tmp_path / "found", Heard(stop_at=4)
    with pytest.raises(KeyboardInterrupt, match="budwood search --resume"):
        small(llama, faq, out, "lora:rank=2", "lora:rank=4", "bitfit", heard=first)
    assert first.begun == ["base", "trial", "trial", "trial"]
    assert len(ComparisonFolder(out).read().trials) == 2

    again = Heard()
    found = resume(out, listener=again)
    record = found.record
    assert record.kind == "search"
    assert record.status == "finished"
    assert again.begun[0] == "base"
    assert again.begun[-1] == "train"
    labels = [one.label for one in record.trials if one.rung == 0]
    assert labels == ["lora:rank=2", "lora:rank=4", "bitfit"], "what was tried is not tried again"
    refused = record.trials[2]
    assert refused.error is not None
    assert "no bias" in refused.error

    base, chosen = record.contenders
    assert base.label == "base"
    assert chosen.label.startswith("lora")
    lowest = min(loss for one in record.trials if one.rung == 0 for loss in one.scores.values())
    assert lowest in [one.scores.get(chosen.learning_rate or 0) for one in record.trials] or record.trials[-1].rung > 0
    run = RunFolder(found.folder.run(record.items[-1]).path)
    assert run.manifest().status == "finished"
    assert run.config()["learning_rate"] == chosen.learning_rate
    assert record.notes[0].startswith(f"Chosen: {chosen.label} at learning rate {chosen.learning_rate:g}")
    assert any("Not tried further, bitfit" in note for note in record.notes)
    assert chosen.label in found.report.read_text(encoding="utf-8")
    assert "Chosen: " in str(found)

    with pytest.raises(BadConfig, match="compares with|holds|no comparison"):
        small(llama, faq, out, "lora:rank=8", heard=Heard())


def test_a_time_in_which_nothing_can_be_tried(llama: Path, faq: Path, tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="nothing could be tried; give at least --budget"):
        small(llama, faq, tmp_path / "short", "lora:rank=2", heard=Heard(), budget="0.1s")


def test_a_comparison_is_not_gone_on_with_as_a_search(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path)
    folder.write(Comparison(command=(), model="m", data="d", budget="1steps", seeds=(0,)))
    (tmp_path / "config.yaml").write_text("model: m\n")
    with pytest.raises(BadConfig, match="is a comparison; go on with it by budwood compare --resume"):
        resume(tmp_path)
    assert resume_comparison is not resume
