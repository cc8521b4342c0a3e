"""A run that names no learning rate, of a method that is sensitive to it: what is tried, said, kept, and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from budwood.errors import BadCheckpoint, Diverged
from budwood.methods import LoRA
from budwood.records import RunFolder
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.run import Run, check_job, resume, run_job, train
from tokens import model_folder
from training import Recorded, StopAt

QUICK = {"device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "eval_every": 0, "budget": "24steps"}
METHOD = "lora:rank=4,dropout=0.2,targets=all"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    rows = [{"question": f"what is w{n} ?", "answer": f"it is w{n * 7 % 60} ."} for n in range(40)]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "faq.jsonl"


@pytest.fixture(autouse=True)
def sensitive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoRA, "rates", (1e-4, 1e-2, 1e30))


def go(model: Path, data: Path, out: Path, **settings: object) -> Run:
    observer = settings.pop("observer", None)
    return train(model, data, method=METHOD, config={**QUICK, **settings}, out=out, observer=observer)  # type: ignore[arg-type]


def trained(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def losses(run: Run) -> list[float]:
    return [point["loss"] for point in run.metrics() if "loss" in point]


def assert_same(first: Run, second: Run) -> None:
    assert losses(first) == losses(second)
    ours, theirs = trained(first), trained(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})


def test_the_run_is_the_one_at_the_rate_it_chose_and_says_so(llama: Path, faq: Path, tmp_path: Path) -> None:
    seen = Recorded()
    run = go(llama, faq, tmp_path / "probed", observer=seen)
    probe = run.manifest.rate_probe
    assert probe is not None
    assert probe.rate == 1e-2
    assert [(trial.rate, trial.loss is None) for trial in probe.trials] == [(1e-4, False), (1e-2, False), (1e30, True)]
    assert probe.steps == 6
    assert probe.is_clear
    assert probe.scored == "4 validation rows"
    (line,) = [note for note in seen.notes if note.startswith("learning rate")]
    assert line.startswith(f"learning rate: 0.01 (probed 0.0001 {probe.trials[0].loss:.4g}, 0.01 ")
    assert line.endswith("1e+30 diverged; 6 steps each)")
    assert line in (run.path / "log.txt").read_text()
    card = " ".join((run.adapter / "README.md").read_text().split())
    assert "learning rate 0.01 (the best of 0.0001, 0.01, 1e+30 after 6 steps each), seed 0" in card
    assert 9e-3 < max(point.learning_rate for point in seen.points) <= 1e-2
    said = go(llama, faq, tmp_path / "said", learning_rate=1e-2)
    assert said.manifest.rate_probe is None
    assert_same(run, said)
    again = yaml.safe_load((run.path / "config.yaml").read_text())
    assert_same(run, run_job(replace(Job.from_dict(again), out=tmp_path / "again")))


def test_a_resumed_run_keeps_its_rate_and_tries_none(
    llama: Path, faq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(llama, faq, tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(llama, faq, tmp_path / "run", observer=StopAt(9))
    monkeypatch.setattr("budwood.train.run.try_rates", None)
    seen = Recorded()
    rest = resume(tmp_path / "run", observer=seen)
    assert_same(rest, whole)
    assert rest.manifest.rate_probe is not None
    assert replace(rest.manifest.rate_probe, seconds=0.0) == replace(whole.manifest.rate_probe, seconds=0.0)
    assert not any(note.startswith("learning rate") for note in seen.notes)
    assert "(the best of" in (rest.adapter / "README.md").read_text()


def test_a_damaged_record_is_not_resumed(llama: Path, faq: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(llama, faq, tmp_path / "run", observer=StopAt(3))
    file = tmp_path / "run" / "run.json"
    plain = json.loads(file.read_text())
    del plain["rate_probe"]["rate"]
    file.write_text(json.dumps(plain))
    with pytest.raises(BadCheckpoint, match=r"run.json does not say which learning rates were tried"):
        resume(tmp_path / "run")


def test_preflight_says_what_will_be_tried_and_a_setting_turns_it_off(llama: Path, faq: Path, tmp_path: Path) -> None:
    job = Job(model=llama, data=faq, config=as_config(QUICK))
    (line,) = [line for line in check_job(job).lines() if "parameters trained" in line]
    assert line.endswith("learning rate the best of 0.0001, 0.01, 1e+30 after 6 steps each")
    timed = check_job(replace(job, config=as_config({**QUICK, "budget": "1h"}))).rates
    assert timed is not None
    assert timed.steps == 20
    off = go(llama, faq, tmp_path / "off", rate_steps=0, budget="2steps")
    assert off.manifest.rate_probe is None
    assert off.manifest.status == "finished"


def test_where_every_rate_diverges_the_run_fails_and_says_so(
    llama: Path, faq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoRA, "rates", (1e29, 1e30))
    with pytest.raises(Diverged, match=r"none of the learning rates 1e\+29, 1e\+30 gets through 6 steps"):
        go(llama, faq, tmp_path / "run")
    manifest = RunFolder.open(tmp_path / "run").manifest()
    assert manifest.status == "failed"
    assert manifest.rate_probe is None
