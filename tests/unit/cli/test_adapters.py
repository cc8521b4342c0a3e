"""eval, try, merge and export on a run and on a bare adapter folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from world import World

from .conftest import Run


@pytest.fixture
def run(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, to be written in."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(world.run, tmp_path / "runs" / world.run.name))


def test_eval_scores_trained_and_base(budwood: Run, world: World, run: Path) -> None:
    other = shutil.copy(world.chat, "other.jsonl")
    ran = budwood("eval", "latest", other, "--out", "lines.jsonl")
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out and "base" in ran.out.splitlines()[0]
    assert len(Path("lines.jsonl").read_text().splitlines()) == 32
    found = budwood("eval", run, other, "--json").json
    trained, base = ({s["name"]: s["value"] for s in found[key]} for key in ("scores", "base_scores"))
    assert trained["loss"] != base["loss"]


def test_eval_without_data_takes_the_rows_that_the_run_held_out(budwood: Run, run: Path) -> None:
    ran = budwood("eval", run, "--json")
    assert ran.json["split"] == "validation" and "3 rows" in ran.err
    assert "trained on" in budwood("eval", run, "--split", "train").err


def test_eval_of_answers(budwood: Run, world: World, run: Path) -> None:
    found = budwood("eval", run, world.chat, "--metric", "exact_match", "--answers", 2, "--json").json
    assert [s["name"] for s in found["scores"]] == ["exact_match"]
    ran = budwood("eval", run, world.chat, "--metric", "exact_mach")
    assert ran.code == 2 and "exact_match" in ran.err


def test_eval_of_a_bare_adapter(budwood: Run, world: World) -> None:
    found = budwood("eval", world.adapter, world.labelled, "--json").json
    assert {s["name"] for s in found["scores"]} == {"accuracy", "macro_f1", "mcc", "loss"}
    ran = budwood("eval", world.adapter)
    assert ran.code == 2 and "name the data" in ran.err


def test_eval_does_not_write_over_a_file(budwood: Run, world: World, run: Path) -> None:
    Path("there").write_text("x")
    ran = budwood("eval", run, world.chat, "--out", "there")
    assert ran.code == 2 and "--force" in ran.err and Path("there").read_text() == "x"
    below = budwood("eval", run, world.chat, "--out", "there/deeper/lines.jsonl")
    assert below.code == 2 and "cannot write" in below.err


def test_try_asks_prompts_and_held_out_rows(budwood: Run, world: World, run: Path) -> None:
    ran = budwood("try", run, "--prompt", "Who?", "--prompt", "Where?", "--max-new-tokens", 4)
    assert ran.code == 0, ran.err
    assert ran.out.count("before") == ran.out.count("after") == 2 and "Where?" in ran.out
    found = budwood("try", "--rows", 2, "--max-new-tokens", 4, "--json").json
    assert len(found["answers"]) == 2 and found["answers"][0]["expected"].startswith("There is")
    assert found["answers"][0]["before"] != found["answers"][0]["after"]


def test_try_of_a_classifier_says_the_class(budwood: Run, world: World) -> None:
    (answer,) = budwood("try", world.adapter, "--prompt", "good food", "--json").json["answers"]
    assert answer["after"].endswith("%)") and answer["after"][0] in "01"


def test_try_talks_on_a_terminal(budwood: Run, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["Who?", ""])
    monkeypatch.setattr("budwood.cli.attempt.is_interactive", lambda sink: True)
    monkeypatch.setattr("builtins.input", lambda mark: next(typed))
    ran = budwood("try", run, "--max-new-tokens", 2)
    assert ran.code == 0 and ran.out.count("after") == 1


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_merge_writes_what_the_adapter_computes(budwood: Run, world: World, run: Path, dtype: str | None) -> None:
    ran = budwood("merge", run, "--out", "merged", *(["--dtype", dtype] if dtype else []), "--json")
    assert ran.code == 0, ran.err
    assert ran.json["largest_difference"] < 1e-4 and ran.json["dtype"] == (dtype or "float32")
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    assert merged.dtype == (torch.bfloat16 if dtype else torch.float32)
    assert not any("deltas" in name for name in merged.state_dict())
    assert (Path("merged") / "tokenizer.json").is_file()


def test_merge_refuses_a_place_that_is_taken_or_not_writable(budwood: Run, run: Path) -> None:
    Path("full").mkdir()
    Path("full/keep").write_text("x")
    ran = budwood("merge", run, "--out", "full")
    assert ran.code == 2 and "--force" in ran.err
    assert budwood("merge", run, "--out", "full", "--force").code == 0
    assert not Path("full/keep").exists() and Path("full/config.json").is_file()
    Path("file").write_text("x")
    below = budwood("merge", run, "--out", "file/merged")
    assert below.code == 2 and "cannot write" in below.err
    assert budwood("merge", run, "--out", "x", "--dtype", "int4").code == 2 and not Path("x").exists()


def test_export_to_peft_loads_in_peft(budwood: Run, world: World, run: Path) -> None:
    peft = pytest.importorskip("peft")
    ran = budwood("export", run, "--to", "peft")
    assert ran.code == 0, ran.err
    assert ran.out.strip() == str(run / "peft")
    base = AutoModelForCausalLM.from_pretrained(world.model)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    assert not torch.equal(peft.PeftModel.from_pretrained(base, run / "peft")(ids).logits, before)


def test_export_to_adapterhub_reads_back(
    budwood: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", world.model, world.chat, "--budget", "2steps", "--precision", "exact", "-q"]
    assert budwood(*words, "--method", "adapter-p:size=4", "--out", "bottle").code == 0
    ran = budwood("export", "bottle", "--to", "adapterhub", "--out", "theirs")
    assert ran.code == 0 and "load_adapter('theirs', use_safetensors=True" in ran.err
    said = json.loads(Path("theirs/adapter_config.json").read_text())
    assert (said["name"], said["config"]["original_ln_before"]) == ("bottle", True)
    assert budwood("try", "theirs", "--model", world.model, "--prompt", "hello").code == 0
    refused = budwood("export", "bottle", "--to", "peft")
    assert refused.code == 2 and "--to adapterhub" in refused.err and not Path("bottle/peft").exists()
    back = budwood("export", "theirs", "--model", world.model, "--to", "adapterhub", "--out", "again")
    assert back.code == 0
    first, again = (load_file(Path(place, "adapter.safetensors")) for place in ("theirs", "again"))
    assert all(torch.equal(t, again[key.replace(".bottle.", ".theirs.")]) for key, t in first.items())


def test_export_to_merged(budwood: Run, run: Path) -> None:
    assert budwood("export", run, "--to", "merged", "-q").code == 0
    assert (run / "merged" / "model.safetensors").is_file()
    assert budwood("export", run, "--to", "gguff").code == 2


def test_an_adapter_of_another_base(budwood: Run, world: World, run: Path) -> None:
    other = AutoModelForCausalLM.from_pretrained(world.model)
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(2)
    shutil.copytree(world.model, "other")
    other.save_pretrained("other")
    ran = budwood("try", run, "--model", "other", "--prompt", "x")
    assert ran.code == 4 and "wrong base" in ran.err


def test_a_truncated_and_a_pickled_adapter(budwood: Run, world: World, run: Path) -> None:
    tensors = run / "adapter" / "adapter_model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    ran = budwood("try", run, "--prompt", "x")
    assert ran.code == 4 and "adapter_model.safetensors" in ran.err and "damaged" in ran.err
    tensors.unlink()
    (run / "adapter" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    ran = budwood("eval", run, world.chat)
    assert ran.code == 4 and "pickle" in ran.err


def test_unknown_tensors_in_an_adapter(budwood: Run, run: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = run / "adapter" / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({**load_file(path), "base_model.model.strange.lora_A.weight": torch.ones(2, 2)}, path, metadata)
    ran = budwood("try", run, "--prompt", "x")
    assert ran.code == 4 and "strange" in ran.err


@pytest.mark.parametrize("where", ["nothing", "./nothing", "lm"])
def test_no_such_run(budwood: Run, world: World, run: Path, where: str) -> None:
    ran = budwood("try", world.model if where == "lm" else where, "--prompt", "x")
    assert ran.code == 4, ran.err


def test_a_run_without_an_adapter_names_the_way_on(budwood: Run, run: Path) -> None:
    shutil.rmtree(run / "adapter")
    manifest = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    ran = budwood("merge", run, "--out", "m")
    assert ran.code == 4 and f"budwood train --resume {run}" in ran.err


def test_what_to_type_next_is_what_the_method_allows(
    budwood: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", world.model, world.chat, "--budget", "2steps", "--precision", "exact"]
    lora = budwood(*words, "--method", "lora:rank=2", "--out", "lora").err
    assert "budwood merge lora" in lora and "budwood export lora --to peft" in lora
    bottle = budwood(*words, "--method", "adapter-p:size=4", "--out", "bottle one").err
    assert "budwood merge" not in bottle and "budwood export 'bottle one' --to adapterhub" in bottle
    linear = budwood(*words, "--method", "linear-adapter:size=4", "--out", "linear").err
    assert "budwood merge" not in linear and "budwood export" not in linear and "budwood try linear" in linear
    for form in ("peft", "adapterhub"):
        refused = budwood("export", "linear", "--to", form)
        assert refused.code == 2 and "use it with Budwood" in refused.err and "--to" not in refused.err


def test_a_fusion_goes_to_adapterhub_and_back(
    budwood: Run, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", world.model, world.chat, "--budget", "2steps", "--precision", "exact", "-q"]
    for seed, name in enumerate(("one", "two")):  # two that are equal teach a fusion nothing
        asked = (*words, "--method", "adapter-h:size=3", "--seed", seed, "--out", f"runs/{name}")
        assert budwood(*asked).code == 0
        assert budwood("export", f"runs/{name}", "--to", "adapterhub", "--out", name).code == 0
    ran = budwood(*words, "--method", "fusion", "--on", "runs/one", "--on", "runs/two", "--out", "runs/mix")
    assert ran.code == 0, ran.err
    ran = budwood("export", "runs/mix", "--to", "adapterhub", "--out", "mix")
    assert ran.code == 0 and "load_adapter_fusion('mix'" in ran.err, ran.err
    shutil.copy(world.chat, "all.jsonl")
    asked = ("eval", "mix", "all.jsonl", "--model", world.model, "--json")
    found = budwood(*asked, "--on", "one", "--on", "two")
    assert found.code == 0, found.err
    ours = budwood("eval", "runs/mix", "all.jsonl", "--json")
    assert ours.code == 0 and ours.json["scores"] == found.json["scores"] != found.json["base_scores"]
    alone = budwood(*asked)
    assert alone.code == 2 and "each with --on" in alone.err
