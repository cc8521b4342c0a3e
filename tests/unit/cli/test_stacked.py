"""`--on`: a task trained on a language from the command line, and the language swapped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import budwood as bw
from budwood.cli.runs import next_steps
from budwood.records import RunFolder
from world import World

from .conftest import Ran, Run

QUICK = ("--budget", "6steps", "--batch", "4", "--precision", "exact", "--samples", "1", "--learning-rate", "0.01")


@pytest.fixture
def here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs to stand on (one of them the world's), both named."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(world.run, tmp_path / "runs" / "20260101-000000-first")
    return tmp_path


@pytest.fixture
def made(budwood: Run, world: World, here: Path) -> tuple[Path, Path]:
    """(another language, a task trained on the world's)."""
    model = AutoModelForCausalLM.from_pretrained(world.model)
    bw.attach(model, bw.IA3(), name="x")
    for parameter in bw.parameters(model, "x"):
        torch.nn.init.normal_(parameter, 1.0, 0.3)
    bw.save(model, "other/adapter", name="x")
    task = budwood("train", world.model, world.chat, *QUICK, "--on", "20260101-000000-first", "--out", "task")
    assert task.code == 0, task.err
    assert "on top of" in task.err and "20260101-000000-first/adapter" in task.err
    return Path("other/adapter"), Path("task")


def loss(ran: Ran, key: str = "scores") -> float:
    assert ran.code == 0, ran.err
    found: dict[str, Any] = ran.json
    return next(score["value"] for score in found[key] if score["name"] == "loss")


def test_eval_and_try_take_the_stack_and_another_in_its_place(
    budwood: Run, world: World, here: Path, made: tuple[Path, Path]
) -> None:
    other, task = made
    first = str(here / "runs" / "20260101-000000-first" / "adapter")
    asked = ("eval", task, "--json")
    own, swapped, bare = (budwood(*asked, *more) for more in ((), ("--on", other), ("--on", "none")))
    assert f"task, on {first}" in own.err and f"on {here / 'other' / 'adapter'}" in swapped.err
    assert own.json["on"] == [first] and swapped.json["on"] == [str(here / "other" / "adapter")]
    assert bare.json["on"] == [] and ", on " not in bare.err
    assert len({loss(own), loss(swapped), loss(bare)}) == 3
    assert loss(own, "base_scores") == loss(swapped, "base_scores") == loss(bare, "base_scores")
    two = budwood(*asked, "--on", other, "--on", first)
    assert two.json["on"] == [str(here / "other" / "adapter"), first] and loss(two) not in (loss(own), loss(swapped))
    said = budwood("try", task, "--on", other, "--rows", 1, "--max-new-tokens", 2)
    assert said.code == 0 and "other/adapter" in said.err
    assert ["on", "top", "of", first] in [line.split() for line in budwood("runs", "show", task).out.splitlines()]


def test_the_adapter_alone_still_knows_its_stack(
    budwood: Run, world: World, here: Path, made: tuple[Path, Path]
) -> None:
    shutil.copytree("task/adapter", "copied")
    asked = (shutil.copy(world.chat, "other.jsonl"), "--json")
    assert loss(budwood("eval", "copied", *asked)) == loss(budwood("eval", "task", *asked))
    shutil.rmtree(here / "runs" / "20260101-000000-first")
    gone = budwood("eval", "copied", world.chat)
    assert gone.code == 4 and "is not there any more" in gone.err and "--on none" in gone.err
    assert budwood("eval", "copied", world.chat, "--on", "none").code == 0


def test_merge_folds_the_whole_stack_and_export_says_what_is_missing(
    budwood: Run, world: World, here: Path, made: tuple[Path, Path]
) -> None:
    merged = budwood("merge", "task", "--out", "merged", "--json")
    assert merged.code == 0 and "folded in as well" in merged.err and merged.json["largest_difference"] < 1e-4
    plain = AutoModelForCausalLM.from_pretrained("merged")
    stacked, _ = _loaded(Path("task"))
    ids = {"input_ids": stacked.dummy_inputs["input_ids"]}
    assert (plain(**ids).logits - stacked(**ids).logits).abs().max() < 1e-4
    exported = budwood("export", "task", "--to", "peft", "--out", "peft")
    assert exported.code == 0 and "which is not in it" in exported.err


def _loaded(path: Path) -> tuple[Any, Any]:
    from budwood.train.run import Run as Trained

    return Trained(RunFolder.open(path)).load()


def test_on_from_a_file_and_the_environment(
    budwood: Run, world: World, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = str(here / "runs" / "20260101-000000-first" / "adapter")
    Path("a.yaml").write_text("on: [latest]\n")  # for YAML, a bare `on` is true
    Path("b.yaml").write_text("'on': latest\n")
    asked = ("train", world.model, world.chat, *QUICK, "--dry-run", "--json")
    for name in ("a.yaml", "b.yaml"):
        assert budwood(*asked, "--config", name).json["preflight"]["on"] == [first]
    assert budwood(*asked, "--config", "a.yaml", "--on", "none").json["preflight"]["on"] == []
    monkeypatch.setenv("BUDWOOD_ON", "latest")
    assert budwood(*asked).json["preflight"]["on"] == [first]
    Path("a.yaml").write_text("on: {a: 1}\n")
    monkeypatch.delenv("BUDWOOD_ON")
    ran = budwood(*asked[:-1], "--config", "a.yaml")
    assert ran.code == 2 and "write a word or a list of words" in ran.err


def test_what_cannot_be_stood_on(budwood: Run, world: World, here: Path) -> None:
    for method in ("full", "selective"):
        ran = budwood("train", world.model, world.chat, "--method", method, "--on", "latest")
        assert ran.code == 2 and f"{method} trains the base's own weights" in ran.err and "budwood merge" in ran.err
    ran = budwood("train", world.model, world.chat, "--on", "nowhere")
    assert ran.code == 4 and "nowhere" in ran.err
    ran = budwood("train", world.encoder, world.labelled, "--on", "latest", *QUICK)
    assert ran.code != 0 and "20260101-000000-first" in ran.err
    ran = budwood("train", "--resume", "latest", "--on", "latest")
    assert ran.code == 2 and "--on would not be used" in ran.err


def test_an_adapter_in_a_pickle_is_read_where_that_is_allowed(budwood: Run, world: World, here: Path) -> None:
    shutil.copytree("runs/20260101-000000-first/adapter", "old")
    torch.save(load_file("old/adapter_model.safetensors"), "old/adapter_model.bin")
    Path("old/adapter_model.safetensors").unlink()
    asked = ("train", world.model, world.chat, *QUICK, "--on", "old", "--out", "task")
    ran = budwood(*asked)
    assert ran.code != 0 and "--allow-pickle" in ran.err
    ran = budwood(*asked, "--allow-pickle")
    assert ran.code == 0, ran.err
    assert budwood("eval", "task").code == 0
    assert len(_loaded(Path("task"))[0].budwood.adapters) == 2


def test_how_to_go_on_is_said_for_any_folder(here: Path) -> None:
    folder = RunFolder(Path("runs") / "20260101-000000-first")
    folder.state.mkdir()
    (folder.state / "state.json").write_text("{}")
    assert next_steps(folder, "interrupted") == [f"go on with   budwood train --resume {here / folder.path}"]
    (folder.state / "state.json").unlink()
    (line,) = next_steps(folder, "interrupted")
    assert line.startswith("start again  budwood train") and line.endswith(" --force")
