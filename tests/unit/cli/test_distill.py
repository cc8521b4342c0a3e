"""`budwood distill` on tiny models: usage, dry run, results, resume, and settings that are wrong."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from budwood.cli.options import Distilling
from budwood.distill.config import Distillation
from budwood.records import RunFolder
from budwood.train import loop
from world import World

from .conftest import Run

QUICK = (
    *("--budget", "3steps", "--batch", "4", "--precision", "exact", "--proof-steps", "0", "--samples", "1"),
    *("--learning-rate", "1e-3"),
)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_setting_is_a_flag() -> None:
    assert set(Distillation.names()) <= set(Distilling.__dataclass_fields__)


def test_dry_run_tells_the_cost_and_writes_nothing(budwood: Run, world: World, here: Path) -> None:
    ran = budwood("distill", world.run, world.model, world.chat, *QUICK, "--top-k", "4", "--dry-run")
    assert ran.code == 0, ran.err
    assert "teacher cache of the 4 likeliest choices, 26 bytes a token" in ran.err and "nothing was trained" in ran.err
    assert list(here.iterdir()) == []
    found = budwood("distill", world.run, world.model, world.chat, *QUICK, "--dry-run", "--json").json["preflight"]
    assert any(line.startswith("teacher: ") for line in found["lesson"])


def test_student_and_teacher_side_by_side(budwood: Run, world: World) -> None:
    ran = budwood("distill", world.run, world.model, world.chat, *QUICK, "--json", "--out", "r")
    assert ran.code == 0, ran.err
    assert ran.json["run"] == "r" and ran.json["model"] == "r/model"
    assert "perplexity" in {score["name"] for score in ran.json["teacher"]}
    assert "student and teacher" in ran.err
    assert RunFolder.open("r").config()["method"].keys() == {"full"}
    assert budwood("train", "--config", "r/config.yaml").code == 2


def test_self_is_the_teacher_s_own_base(budwood: Run, world: World) -> None:
    ran = budwood("distill", world.run, "self", world.chat, *QUICK, "--method", "lora:rank=2", "--json", "--out", "r")
    assert ran.code == 0, ran.err
    assert RunFolder.open("r").config()["model"] == str(world.model) and ran.json["model"] is None
    assert "on the same weights" in ran.err


def test_a_run_can_be_repeated_from_its_own_config(budwood: Run, world: World) -> None:
    words = ("--kd-weight", "0.7", "--loss", "jsd", "--beta", "0.2", "--top-k", "9")
    first = budwood("distill", world.run, world.model, world.chat, *QUICK, *words, "--out", "a")
    assert first.code == 0, first.err
    said = yaml.safe_load(Path("a/config.yaml").read_text())
    assert (said["kd_weight"], said["loss"], said["beta"], said["top_k"]) == (0.7, "jsd", 0.2, 9)
    again = budwood("distill", "--config", "a/config.yaml", "--out", "b")
    assert again.code == 0, again.err
    losses = [[p["loss"] for p in RunFolder.open(name).metrics() if "loss" in p] for name in ("a", "b")]
    assert losses[0] == losses[1] and len(list(Path("runs/teachers").iterdir())) == 1


def test_ctrl_c_and_the_command_that_goes_on(budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.update

    def interrupting(*words: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return real(*words)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", interrupting)
        ran = budwood("distill", world.run, world.model, world.chat, *QUICK, "--out", "r")
    assert ran.code == 130 and f"go on with: budwood distill --resume {Path('r').absolute()}" in ran.err
    refused = budwood("distill", "--resume", "r", "--loss", "jsd")
    assert refused.code == 2 and "--loss" in refused.err
    assert "TEACHER" in budwood("distill", "teacher", "--resume", "r").err
    ran = budwood("distill", "--resume", "r", "--json")
    assert ran.code == 0 and "going on after step 1" in ran.err and ran.json["status"] == "finished"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--loss", "kl"), 2, ["loss is 'kl'", "forward-kl"]),
        (("--kd-weight", "0"), 2, ["nothing is learned from the teacher"]),
        (("--top-k", "0"), 2, ["top_k is 0"]),
        (("--top-k", "4", "--temperature", "2"), 2, ["only 4 of"]),
        (("--top-k", "4", "--hidden-weight", "1"), 2, ["no hidden states"]),
        (("--on-policy", "2"), 2, ["share of batches"]),
        (("--answers", "mine"), 2, ["answers is 'mine'"]),
        (("--layer-map", "first"), 2, ["layer_map", "uniform"]),
        (("--method", "lorra"), 2, ["did you mean 'lora'"]),
    ],
)
def test_bad_settings(
    budwood: Run, world: World, here: Path, flags: tuple[str, ...], code: int, words: list[str]
) -> None:
    ran = budwood("distill", world.run, world.model, world.chat, *QUICK, *flags)
    assert ran.code == code, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err and list(here.iterdir()) == []


def test_what_is_missing(budwood: Run, world: World) -> None:
    assert "budwood distill TEACHER STUDENT DATA" in budwood("distill").err
    for words in ((), (world.run,), (world.run, world.model)):
        assert budwood("distill", *words).code == 2
    assert budwood("distill", "./none", world.model, world.chat, *QUICK).code == 4
    plain = budwood("train", world.model, world.chat, *QUICK, "--out", "plain")
    assert plain.code == 0
    assert json.loads(Path("plain/run.json").read_text())["status"] == "finished"
