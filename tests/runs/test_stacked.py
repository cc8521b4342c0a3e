"""A new adapter on top of frozen ones: training, proof, resume, and putting another one below."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import budwood as bw
from budwood.core import adapters, named_parameters, parameters
from budwood.core.registry import registry_of
from budwood.errors import BadCheckpoint, BadConfig, NotAvailable
from budwood.methods import Full, LoRA, Selective
from budwood.records import RunFolder
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.run import Run, check_job, resume, run_job, train
from budwood.train.setup import prepare
from budwood.train.stacking import find_below, lay
from tokens import model_folder, tokenizer
from training import StopAt

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip
SMALL = LoRA(rank=2, dropout=0.1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, plain text in two languages, questions, and an adapter for each language."""
    place = tmp_path_factory.mktemp("stacked")
    model_folder(place / "llama")
    for name, step in (("north", 3), ("south", 11)):
        rows = [{"text": " ".join(f"w{(n * 5 + step * k) % 60}" for k in range(9))} for n in range(24)]
        write(place / f"{name}.jsonl", rows)
        go(place / "llama", place / f"{name}.jsonl", place / name)
    write(place / "faq.jsonl", [{"question": f"what is w{n} ?", "answer": f"it is w{n * 7 % 60} ."} for n in range(24)])
    return place


@pytest.fixture(scope="module")
def stacked(place: Path) -> Run:
    return go(place / "llama", place / "faq.jsonl", place / "stacked", on=[place / "north"])


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def go(model: object, data: object, out: Path, **more: Any) -> Run:
    said = {"budget": "12steps", **{key: more.pop(key) for key in ("budget",) if key in more}}
    return train(model, data, method=more.pop("method", SMALL), config={**QUICK, **said}, out=out, **more)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def loss_of(run: Run) -> float:
    assert run.result is not None
    return next(entry.score.value for entry in run.result.quality if entry.metric == "loss")


def test_only_the_upper_one_learns_and_the_reload_has_both(place: Path, stacked: Run) -> None:
    below = str(place / "north" / "adapter")
    assert stacked.manifest.status == "finished" and stacked.manifest.on == (below,)
    assert stacked.folder.config()["on"] == [below]
    proof = next(line["proof"] for line in stacked.metrics() if "proof" in line)
    assert proof["movement"]["unmoved"] == {}
    assert proof["movement"]["moved"] == len(tensors(stacked.path))
    assert proof["reload"]["largest_difference"] == 0.0 and proof["reload"]["effect"] > 0
    assert proof["merge"]["largest_difference"] < 1e-4
    assert below in (stacked.adapter / "README.md").read_text()
    assert stacked.result is not None and stacked.result.parameters is not None
    alone = Run(RunFolder.open(place / "north")).result
    assert alone is not None and alone.parameters is not None
    assert stacked.result.parameters.base_count == alone.parameters.base_count
    assert alone.inference is not None and stacked.result.inference is not None
    assert stacked.result.inference.extra_weight_bytes == 2 * alone.inference.extra_weight_bytes


def test_gradients_reach_the_upper_one_alone(place: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "llama")
    prepared = prepare(model, SMALL, as_config(QUICK), name="task", on=find_below([place / "north", place / "south"]))
    assert prepared.below == ("north", "south")
    registry = registry_of(model)
    assert registry is not None and registry.switch.plan == bw.Stack(("north", "south", "task"))
    model.train()
    model(input_ids=torch.arange(4, 20)[None], labels=torch.arange(4, 20)[None]).loss.backward()
    assert all(p.grad is None and not p.requires_grad for name in prepared.below for p in parameters(model, name))
    assert all(p.grad is not None for p in prepared.parameters.values())
    own = {id(p) for p in prepared.parameters.values()}
    assert not any(p.requires_grad for p in model.parameters() if id(p) not in own)


def test_the_base_is_the_model_without_any_adapter(place: Path, stacked: Run) -> None:
    plain = go(place / "llama", place / "faq.jsonl", place / "plain")
    assert plain.result is not None and stacked.result is not None
    for ours, theirs in zip(stacked.result.quality, plain.result.quality, strict=True):
        assert ours.base == theirs.base
    assert loss_of(stacked) != loss_of(plain)


def test_a_run_is_loaded_with_what_it_stands_on(place: Path, stacked: Run) -> None:
    model, _ = stacked.load(name="task")
    registry = registry_of(model)
    assert registry is not None and registry.switch.plan == bw.Stack(("north", "task"))
    for key, value in tensors(place / "north").items():
        name = key.removeprefix("base_model.model.").replace("lora_A.weight", "A").replace("lora_B.weight", "B")
        assert torch.equal(named_parameters(model, "north")[name], value), key


def test_resumed_is_bit_for_bit_what_was_not_stopped(place: Path, stacked: Run, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(place / "llama", place / "faq.jsonl", tmp_path / "run", on=[place / "north"], observer=StopAt(5))
    done = resume(tmp_path / "run")
    assert done.manifest.on == stacked.manifest.on
    left, right = tensors(stacked.path), tensors(done.path)
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    assert loss_of(done) == loss_of(stacked)


def test_a_run_does_not_go_on_over_another_adapter(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "north", tmp_path / "north")
    with pytest.raises(Interrupted):
        go(place / "llama", place / "faq.jsonl", tmp_path / "run", on=[tmp_path / "north"], observer=StopAt(2))
    shutil.rmtree(tmp_path / "north")
    with pytest.raises(NotAvailable, match="north"):
        resume(tmp_path / "run")
    shutil.copytree(place / "south", tmp_path / "north")
    with pytest.raises(BadConfig, match="adapters below was"):
        resume(tmp_path / "run")


def test_a_loaded_model_keeps_both_and_stacks_again(place: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(place / "llama")
    for number in (1, 2):
        name = f"task{number}"
        go(model, place / "faq.jsonl", tmp_path / name, on=[place / "north"], name=name, budget="4steps",
           tokenizer=tokenizer())  # fmt: skip
    assert list(adapters(model)) == ["north", "task1", "north-2", "task2"]
    registry = registry_of(model)
    assert registry is not None and registry.switch.plan == bw.Stack(("north-2", "task2"))


def test_the_config_on_disk_runs_the_same_job_again(place: Path, stacked: Run, tmp_path: Path) -> None:
    said = yaml.safe_load((stacked.path / "config.yaml").read_text())
    job = Job.from_dict(said)
    assert job.on == stacked.manifest.on
    assert job.to_dict() == said
    facts = check_job(job)
    assert f"on top of {job.on[0]}, which stays as it is" in facts.lines()
    assert facts.base_count == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(place / "llama").parameters()
    )


@pytest.mark.parametrize("method", [Full(), Selective()])
def test_methods_that_train_the_base_itself_are_refused(place: Path, method: bw.Method) -> None:
    with pytest.raises(BadConfig, match=f"{method.name} trains the base's own weights, which cannot stand on"):
        Job(model="no such model", data="no such data", method=method, on=(str(place / "north"),))


def test_nothing_stands_on_a_base_trained_in_place(place: Path, tmp_path: Path) -> None:
    whole = go(place / "llama", place / "north.jsonl", tmp_path / "whole", method="selective", budget="2steps")
    with pytest.raises(BadConfig, match=r"\(selective\) trained the base's own weights, so nothing can stand on it"):
        find_below([whole.path])


def test_what_was_trained_on_others_comes_with_them(place: Path, stacked: Run) -> None:
    with pytest.raises(BadConfig, match=r"was itself trained on others.*--on .*north.* --on .*stacked"):
        find_below([stacked.path])
    both = find_below([place / "south", stacked.path])
    assert both == (str(place / "south" / "adapter"), str(stacked.adapter))


def test_words_that_mean_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_below("none") == find_below([]) == ()
    with pytest.raises(BadConfig, match="none cannot be said beside others"):
        find_below(["none", place / "north"])
    with pytest.raises(BadConfig, match="on is 3"):
        find_below(3)
    with pytest.raises(NotAvailable, match="nowhere"):
        find_below(["nowhere"])
    shutil.copytree(place / "north", tmp_path / "empty", ignore=shutil.ignore_patterns("adapter_config.json"))
    with pytest.raises(NotAvailable, match="has no adapter yet"):
        find_below(["empty"])


def test_an_adapter_for_another_base_is_refused(place: Path, tmp_path: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(place / "llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    with pytest.raises(BadCheckpoint, match=r"north/adapter, which the adapter is to stand on: wrong base"):
        lay(other, find_below([place / "north"]), top="task")
    assert adapters(other) == {}


def test_a_run_cannot_replace_what_it_stands_on(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "north", tmp_path / "north")
    job = Job(
        model=str(place / "llama"), data=str(place / "faq.jsonl"), on=(str(tmp_path / "north"),),
        out=tmp_path / "north", force=True,
    )  # fmt: skip
    with pytest.raises(BadConfig, match="which this run stands on"):
        run_job(job)
    assert (tmp_path / "north" / "run.json").is_file()
