"""Verbs that need no training: data, methods, inspect, runs, assets, doctor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from budwood.cli import doctor
from budwood.methods import METHODS
from world import World

from .conftest import Run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_data_show(budwood: Run, world: World) -> None:
    ran = budwood("data", "show", world.chat, "--rows", 1)
    assert ran.code == 0
    assert "prompt/completion" in ran.out and "rows: train 32" in ran.out and "There is Alimentum ." in ran.out
    found = budwood("data", "show", world.chat, "--json").json
    assert found["rows"] == {"train": 32} and len(found["shown"]["train"]) == 3


def test_data_show_with_a_model_marks_what_is_learned(budwood: Run, world: World) -> None:
    ran = budwood("data", "show", world.chat, "--model", world.model, "--rows", 1)
    assert ran.code == 0, ran.err
    assert "[[There is Alimentum .<|im_end|>]]" in ran.out
    found = budwood("data", "show", world.chat, "--model", world.model, "--json").json
    assert found["encoded"]["train"]["examples_shown"][0].endswith("<|im_end|>]]")
    assert found["encoded"]["train"]["learned_tokens"] > 0


def test_data_check_exits_3_when_it_finds_something(budwood: Run, world: World, here: Path) -> None:
    assert budwood("data", "check", world.chat).code == 0
    path = write(here / "twice.jsonl", *['{"prompt": "a", "completion": "b"}'] * 2)
    ran = budwood("data", "check", path)
    assert ran.code == 3 and "repeats:" in ran.out
    assert [f["kind"] for f in budwood("data", "check", path, "--json").json["findings"]] == ["repeats"]


def test_data_dedup_and_split(budwood: Run, world: World, here: Path) -> None:
    path = write(here / "twice.jsonl", *['{"text": "a"}'] * 2, '{"text": "b"}')
    ran = budwood("data", "dedup", path, "--out", here / "once.jsonl")
    assert ran.code == 0 and "1 of 3 rows" in ran.err and ran.out == f"{here / 'once.jsonl'}\n"
    assert len((here / "once.jsonl").read_text().splitlines()) == 2
    again = budwood("data", "dedup", path, "--out", here / "once.jsonl")
    assert again.code == 2 and "--force" in again.err
    assert budwood("data", "dedup", path, "--out", here / "once.jsonl", "--force").code == 0
    ran = budwood("data", "split", world.chat, "--out", here / "parts", "--shares", "train=0.5,test=0.5", "--json")
    assert sum(ran.json["rows"].values()) == 32
    assert {p.name for p in (here / "parts").iterdir()} == {"train.jsonl", "test.jsonl"}
    assert budwood("data", "split", world.chat, "--out", here / "x", "--shares", "half").code == 2


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        ([], 3, "no rows"),
        (['{"prompt": "a", "completion": "b"}', "[1]"], 3, "row 2"),
        (['{"prompt": "a", "completion": "b"}', '{"prompt": '], 3, "row 2"),
        (['{"q": "a", "a": "b"}'], 3, "--columns"),
    ],
)
def test_data_that_cannot_be_read(budwood: Run, here: Path, lines: list[str], code: int, message: str) -> None:
    ran = budwood("data", "show", write(here / "bad.jsonl", *lines))
    assert ran.code == code
    assert "bad.jsonl" in ran.err and message in ran.err


def test_data_that_is_not_there(budwood: Run, here: Path) -> None:
    ran = budwood("data", "show", "none.jsonl")
    assert ran.code == 4 and "none.jsonl" in ran.err


def test_columns(budwood: Run, here: Path) -> None:
    path = write(here / "odd.jsonl", '{"q": "a", "a": "b"}')
    assert budwood("data", "show", path, "--columns", "prompt=q,completion=a").code == 0
    ran = budwood("data", "show", path, "--columns", "promt=q")
    assert ran.code == 2 and "prompt" in ran.err


def test_methods_lists_every_method(budwood: Run) -> None:
    ran = budwood("methods")
    found = budwood("methods", "--json").json
    assert {m["name"] for m in found["methods"]} == {m.name for m in METHODS}
    for method in METHODS:
        assert method.name in ran.out and method.paper in ran.out
        shown = budwood("methods", method.name)
        assert shown.code == 0 and method.formula in shown.out
    assert "bitfit" in ran.err


def test_methods_shows_fields_with_their_meaning(budwood: Run) -> None:
    ran = budwood("methods", "lora:r=4")
    (line,) = [line for line in ran.out.splitlines() if line.startswith("rank ")]
    assert line.split()[1] == "4" and "Rank of the update." in line and "lora_r" in line
    for method in METHODS:
        for field in budwood("methods", method.name, "--json").json["fields"]:
            assert field["about"], f"{method.name}.{field['name']} does not say what it is"


def test_inspect(budwood: Run, world: World) -> None:
    ran = budwood("inspect", world.model, "--method", "lora", "--method", "full", "--method", "lora:targets=nowhere")
    assert ran.code == 0, ran.err
    assert "attn.q" in ran.out and "model.layers.*.self_attn.q_proj" in ran.out
    assert "no site matches 'nowhere'" in ran.out
    found = budwood("inspect", world.model, "--json").json
    lora, full = (next(m for m in found["methods"] if m["method"] == name) for name in ("lora", "full"))
    assert full["trained"] == found["parameters"] > lora["trained"] > 0
    assert found["roles"]["attn.q"] == 2 and found["unresolved"] == []
    assert "attn.q" in budwood("inspect", world.model, "--sites").out
    assert "input of model.layers.*.post_attention_layernorm  none (pre-LN)" in ran.out
    assert [(s["role"], s["layer"]) for s in found["sublayers"]] == [("attn", 0), ("mlp", 0), ("attn", 1), ("mlp", 1)]
    listed = {m["method"]: m for m in found["methods"]}
    assert set(listed) == {m.name for m in METHODS} - {"fusion"} and listed["adapter-p"]["trained"] > 0


def test_inspect_of_an_encoder_counts_the_head(budwood: Run, world: World) -> None:
    found = budwood("inspect", world.encoder, "--method", "lora", "--json").json
    assert found["class"] == "BertForSequenceClassification" and "head" in found["roles"]


@pytest.mark.parametrize(("name", "hint"), [("nowhere", "demo"), ("./nowhere", "nowhere"), ("demo-chat", "demo-lm")])
def test_a_model_that_is_not_there(budwood: Run, here: Path, name: str, hint: str) -> None:
    ran = budwood("inspect", name)
    assert ran.code == 4 and hint in ran.err


def test_runs(budwood: Run, world: World, here: Path) -> None:
    empty = budwood("runs", "ls")
    assert empty.code == 0 and "budwood train" in empty.err and empty.out == ""
    root = world.run.parent
    ran = budwood("runs", "ls", "--root", root)
    assert world.run.name in ran.out and "finished" in ran.out
    assert budwood("runs", "ls", "--root", root, "--json").json["runs"][0]["status"] == "finished"
    shown = budwood("runs", "show", world.run)
    assert "lora" in shown.out and "budwood try" in shown.err
    assert budwood("runs", "show", "latest", "--root", root, "--json").json["manifest"]["status"] == "finished"
    missing = budwood("runs", "show", "nothing", "--root", root)
    assert missing.code == 4 and "nothing" in missing.err


def test_a_broken_run_is_told_and_does_not_hide_the_others(budwood: Run, world: World, here: Path) -> None:
    shutil.copytree(world.run, here / "runs" / "good")
    shutil.copytree(world.run, here / "runs" / "bad")
    (here / "runs" / "bad" / "run.json").write_text("{")
    ran = budwood("runs", "ls")
    assert ran.code == 0 and "good" in ran.out and "bad" in ran.err
    shutil.copytree(world.run, here / "runs" / "worse")
    (here / "runs" / "worse" / "result.json").write_text("{")
    ran = budwood("runs", "ls")
    assert ran.code == 0 and "good" in ran.out and "worse" in ran.out and "result.json" in ran.err


def test_assets(budwood: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_CACHE", str(here / "cache"))
    monkeypatch.delenv("BUDWOOD_WHEELS", raising=False)
    found = budwood("assets", "ls", "--json").json
    assert {a["name"] for a in found["assets"]} >= {"demo-lm", "demo-encoder", "demo-chat"}
    assert all(a["path"] is None and len(a["sha256"]) == 64 for a in found["assets"])
    ran = budwood("assets", "get", "demo-chat", "--offline")
    assert ran.code == 4 and "BUDWOOD_WHEELS" in ran.err
    assert budwood("assets", "get", "demo-chatt").code == 4
    assert budwood("assets", "clean", "--json").json == {"freed_bytes": 0}


def test_doctor_tells_everything_without_the_network(budwood: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = budwood("doctor", "--offline", "--json").json
    assert found["hub"] is None
    assert found["torch"]["gemm"]["name"] in ("default", "onednn") and found["torch"]["gemm"]["why"]
    assert found["torch"]["float32_gflops"] > 0 and found["torch"]["bfloat16_gflops"] > 0
    assert found["machine"]["versions"]["torch"] and found["cache"]["free_bytes"] > 0
    assert set(found["extras"]) == set(doctor.EXTRAS)


def test_doctor_does_not_wait_for_a_hub_that_is_silent(budwood: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket
    import time

    def silent(*_: object, **__: object) -> None:
        time.sleep(0.5)
        raise TimeoutError

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setattr(doctor, "HUB_S", 0.1)
    began = time.perf_counter()
    ran = budwood("doctor")
    assert time.perf_counter() - began < 5
    assert ran.code == 0 and "no answer" in ran.out and "--offline" in ran.err


def test_doctor_is_readable_json_lines_apart(budwood: Run) -> None:
    ran = budwood("doctor", "--offline", "--json", "-q")
    assert ran.err == "" and json.loads(ran.out)
