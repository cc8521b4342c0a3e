"""`budwood train` on a tiny model: preflight, layers, results, resume, and every bad input with its exit code."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from budwood.cli import doctor
from budwood.errors import NotAvailable
from budwood.methods import LoRA
from budwood.records import RunFolder
from budwood.train import loop
from budwood.train.job import Job
from budwood.train.start import Started
from world import World

from .conftest import Ran, Run

QUICK = ("--budget", "3steps", "--batch", "4", "--precision", "exact", "--proof-steps", "0", "--samples", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, *lines: str) -> Path:
    Path(name).write_text("".join(f"{line}\n" for line in lines))
    return Path(name)


def config(ran: Ran) -> dict[str, Any]:
    """config.yaml of the run that a command line made."""
    assert ran.code == 0, ran.err
    return RunFolder.open(ran.out.strip()).config()


def test_dry_run_shows_preflight_and_writes_nothing(budwood: Run, world: World, here: Path) -> None:
    ran = budwood("train", world.model, world.chat, *QUICK, "--dry-run")
    assert ran.code == 0, ran.err
    assert "[[There is" in ran.err and "parameters trained" in ran.err and "nothing was trained" in ran.err
    assert list(here.iterdir()) == []
    found = budwood("train", world.model, world.chat, *QUICK, "--dry-run", "--json").json["preflight"]
    assert found["trained_count"] > 0 and found["predicted_bytes"] > 0 and found["steps"] == 3


def test_train_says_what_came_out_and_prints_the_folder(budwood: Run, world: World) -> None:
    ran = budwood("train", world.model, world.chat, *QUICK)
    assert ran.code == 0, ran.err
    folder = RunFolder.open(ran.out.strip())
    assert folder.manifest().status == "finished" and folder.manifest().command[:2] == ("budwood", "train")
    for words in ("peak memory", "tokens/s", "perplexity", "in use", f"budwood try {folder.path}", "asked"):
        assert words in ran.err


def test_json_is_one_object_with_the_five_dimensions(budwood: Run, world: World) -> None:
    ran = budwood("train", world.model, world.chat, *QUICK, "--json", "--out", "r")
    assert ran.json["run"] == "r" and ran.json["status"] == "finished"
    assert {"parameters", "memory", "speed", "quality", "inference"} <= {
        name for name, value in ran.json["result"].items() if value
    }


def test_learning_rates_that_are_tried_are_shown_and_in_json(
    budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert budwood("train", world.model, world.chat, *QUICK, "--json").json["rate_probe"] is None
    monkeypatch.setattr(LoRA, "rates", (1e-4, 1e-2))
    monkeypatch.setattr(LoRA, "rates_why", "it is made up")
    shown = budwood("methods", "lora")
    assert "tried first    0.0001, 0.01, where a run names none: it is made up" in shown.out
    assert budwood("methods", "lora", "--json").json["rates"] == [1e-4, 1e-2]
    words = [*QUICK[2:], "--budget", "16steps", "--rate-steps", "4", "--out", "tried"]
    ran = budwood("train", world.model, world.chat, *words, "--json")
    found = ran.json["rate_probe"]
    assert found["rate"] in (1e-4, LoRA().rate, 1e-2) and found["steps"] == 4 and len(found["trials"]) == 2
    assert f"learning rate: {found['rate']:g} (probed 0.0001 {found['trials'][0]['loss']:.4g}, 0.01 " in ran.err
    assert "(probed 0.0001" in budwood("runs", "show", "tried").out
    assert budwood("runs", "show", "tried", "--json").json["manifest"]["rate_probe"] == found


def test_a_classifier(budwood: Run, world: World) -> None:
    ran = budwood("train", world.encoder, world.labelled, *QUICK, "--json", "--method", "bitfit")
    assert ran.code == 0, ran.err
    assert "accuracy" in {entry["score"]["name"] for entry in ran.json["result"]["quality"]}


def test_flag_over_environment_over_file_over_default(
    budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(
        "run.yaml", f"model: {world.model}", f"data: {world.chat}", "budget: 2steps", "seed: 1", "batch: 2",
        "lr: 0.01", "precision: exact", "proof_steps: 0", "method: {lora: {r: 3}}",
    )  # fmt: skip
    found = config(budwood("train", "--config", "run.yaml"))
    assert (found["seed"], found["batch"], found["learning_rate"]) == (1, 2, 0.01)
    assert found["method"]["lora"]["rank"] == 3
    monkeypatch.setenv("BUDWOOD_SEED", "2")
    monkeypatch.setenv("BUDWOOD_BATCH", "3")
    found = config(budwood("train", "--config", "run.yaml", "--seed", 4, "--method", "lora:rank=2"))
    assert (found["seed"], found["batch"], found["method"]["lora"]["rank"]) == (4, 3, 2)


def test_a_run_can_be_repeated_from_its_own_config(budwood: Run, world: World) -> None:
    first = budwood("train", world.model, world.chat, *QUICK)
    path = Path(first.out.strip()) / "config.yaml"
    assert config(budwood("train", "--config", path, "--out", "again")) == yaml.safe_load(path.read_text())


def test_ctrl_c_exits_130_with_the_command_that_goes_on(
    budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.update

    def interrupting(*words: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return real(*words)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", interrupting)
        ran = budwood("train", world.model, world.chat, *QUICK, "--out", "r")
    assert ran.code == 130
    assert f"go on with: budwood train --resume {Path('r').absolute()}" in ran.err
    assert budwood("runs", "ls", "--root", ".").out.split("\n")[1].split()[1] == "interrupted"
    refused = budwood("train", "--resume", "r", "--seed", 3)
    assert refused.code == 2 and "--seed" in refused.err
    ran = budwood("train", "--resume", "r")
    assert ran.code == 0 and "going on after step 1" in ran.err and "3 steps" in ran.err


@pytest.mark.parametrize(("first", "then"), [((), ("--offline",)), (("--offline",), ())])
def test_a_resumed_run_is_offline_if_asked_now_or_then(
    budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch, first: tuple[str, ...], then: tuple[str, ...]
) -> None:
    def stopping(*words: Any) -> float:
        signal.raise_signal(signal.SIGINT)
        return 1.0

    seen: list[bool] = []

    def looking(job: Job, **_: Any) -> Started:
        seen.append(job.offline)
        raise NotAvailable("far enough")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "update", stopping)
        assert budwood("train", world.model, world.chat, *QUICK, "--out", "r", *first).code == 130
    monkeypatch.setattr("budwood.train.run.start", looking)
    assert budwood("train", "--resume", "r", *then).code == 4
    assert seen == [True]
    assert RunFolder.open("r").config()["offline"] is bool(first)


def test_ctrl_c_and_sigterm_outside_of_steps(budwood: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for signum, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):

        def stopped(offline: bool, signum: signal.Signals = signum) -> None:
            os.kill(os.getpid(), signum)
            time.sleep(30)  # the handler runs in here

        monkeypatch.setattr(doctor, "gather", stopped)
        assert budwood("doctor").code == code


def test_nothing_to_resume(budwood: Run, world: World) -> None:
    assert budwood("train", "--resume", "latest").code == 4
    assert budwood("train", "--resume", "./none").code == 4


def test_force_replaces_a_run_and_nothing_else(budwood: Run, world: World) -> None:
    words = ("train", world.model, world.chat, *QUICK, "--out", "r")
    assert budwood(*words).code == 0
    again = budwood(*words)
    assert again.code == 2 and "--force" in again.err
    assert budwood(*words, "--force").code == 0
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    assert budwood(*words[:-1], "mine", "--force").code == 2 and Path("mine/thesis.txt").exists()


CHAT = '{"prompt": "a b c d e f g h", "completion": "i j k l"}'


@pytest.mark.parametrize(
    ("lines", "flags", "code", "words"),
    [
        ([], (), 3, ["data.jsonl", "no rows"]),
        ([CHAT, "[1]"], (), 3, ["data.jsonl, row 2", "object"]),
        (['{"q": "a", "r": "b"}'], (), 3, ["q", "r", "--columns"]),
        ([CHAT, CHAT.replace("a", "z")], ("--max-length", 8), 3, ["max_length"]),
        ([CHAT], ("--method", "lorra"), 2, ["did you mean 'lora'"]),
        ([CHAT], ("--method", "lora:rnk=2"), 2, ["did you mean 'rank'"]),
        ([CHAT], ("--method", "lora:targets=attn.x"), 2, ["attn.x", "attn.q"]),
        ([CHAT], ("--budget", "soon"), 2, ["budget", "10m"]),
        ([CHAT], ("--device", "cuda:9"), 2, ["cuda:9"]),
        ([CHAT], ("--template", "chatty"), 2, ["did you mean 'chat'"]),
        ([CHAT], ("--out", "data.jsonl/deeper"), 2, ["cannot write", "--out"]),
        ([CHAT], ("--config", "none.yaml"), 2, ["none.yaml"]),
    ],
)
def test_bad_input(
    budwood: Run, world: World, here: Path, lines: list[str], flags: tuple[str, ...], code: int, words: list[str]
) -> None:
    write("data.jsonl", *lines)
    budget = () if "--budget" in flags else ("--budget", "1steps")
    ran = budwood("train", world.model, "data.jsonl", "--precision", "exact", *budget, *flags)
    assert ran.code == code, ran.err
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err and ran.out == ""
    assert {path.name for path in here.iterdir()} == {"data.jsonl"}


def test_bad_method_in_yaml(budwood: Run, world: World) -> None:
    for text, hint in (("{lora: {rnk: 2}}", "'rank'"), ("lorra", "'lora'")):
        write("run.yaml", f"model: {world.model}", f"data: {world.chat}", f"method: {text}")
        ran = budwood("train", "--config", "run.yaml")
        assert ran.code == 2 and hint in ran.err


def test_missing_things(budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert budwood("train").code == 2 and "MODEL DATA" in budwood("train").err
    missing = budwood("train", world.model, "none.jsonl")
    assert missing.code == 4 and "none.jsonl" in missing.err
    hub = budwood("train", "some-org/some-model", world.chat)  # the tests run with HF_HUB_OFFLINE=1
    assert hub.code == 4 and "some-org/some-model" in hub.err


def test_a_hub_id_without_network_answers_soon(budwood: Run, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    ran = budwood("train", "some-org/some-model", world.chat)
    assert ran.code == 4 and "some-org/some-model" in ran.err
    assert time.perf_counter() - began < 5


def test_a_pickled_and_a_truncated_model(budwood: Run, world: World, here: Path) -> None:
    import shutil

    shutil.copytree(world.model, "m")
    weights = Path("m/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    ran = budwood("train", "m", world.chat)
    assert ran.code == 4 and "damaged" in ran.err
    weights.unlink()
    Path("m/pytorch_model.bin").write_bytes(b"\x80\x04.")
    ran = budwood("train", "m", world.chat)
    assert ran.code == 4 and "pickle" in ran.err and "save_file" in ran.err


def test_what_json_says_of_bad_input(budwood: Run, world: World) -> None:
    write("data.jsonl", CHAT, "[1]")
    found = budwood("train", world.model, "data.jsonl", "--json").json["error"]
    assert found["kind"] == "BadData" and found["exit_code"] == 3 and "row 2" in found["message"]
    assert json.dumps(found)
