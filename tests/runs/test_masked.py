"""Masked language modelling: a language learned from plain text, and a task on top of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, BertModel

from budwood.core import adapters
from budwood.data import IGNORE, read
from budwood.errors import BadConfig, BadData, NotAvailable
from budwood.evaluate import evaluate
from budwood.methods import LoRA
from budwood.records import RunFolder
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job
from budwood.train.run import Run, check_job, resume, train
from budwood.train.stacking import lay
from tokens import model_folder, tokenizer
from training import StopAt

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip


def words(folder: Path) -> None:
    """The tokenizer, with a mask token."""
    made = tokenizer()
    made.mask_token = "w59"
    made.save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head for words, one without, a decoder, plain text and films."""
    place = tmp_path_factory.mktemp("masked")
    model_folder(place / "bert", "bert")
    words(place / "bert")
    BertModel.from_pretrained(place / "bert").save_pretrained(place / "headless")
    words(place / "headless")
    model_folder(place / "llama")
    rows = [
        {"text": f"the {('color', 'sound', 'name')[n % 3]} of w{n % 7} is good ." + " ." * (n % 4)} for n in range(80)
    ]
    (place / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = ["good", "bad"]
    lines = [f"the film w{n % 40} is {said[n % 2]} w{n % 13} .\t{said[n % 2]}" for n in range(60)]
    (place / "films.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return place


@pytest.fixture(scope="module")
def language(place: Path) -> Run:
    return go(place / "bert", place / "plain.jsonl", place / "language", budget="60steps")


def go(model: object, data: object, out: Path, **more: Any) -> Run:
    said = {"budget": more.pop("budget", "16steps"), **QUICK}
    more = {"method": LoRA(rank=4, dropout=0.1), "task": "masked-lm", **more}
    return train(model, data, config=said, out=out, **more)


def scores(run: Run) -> dict[str, Any]:
    assert run.result is not None
    return {entry.metric: entry for entry in run.result.quality}


def test_a_language_is_learned_from_plain_text(place: Path, language: Run) -> None:
    assert language.manifest.task == "masked-lm" and language.manifest.status == "finished"
    found = scores(language)
    assert set(found) == {"loss", "masked_perplexity", "token_accuracy"}
    perplexity = found["masked_perplexity"]
    assert perplexity.base is not None
    assert perplexity.score.low <= perplexity.score.value <= perplexity.score.high < perplexity.base.low
    sample = language.samples()[-1]
    assert "w59" in sample["prompt"] and "w59" not in sample["reference"] and sample["base"] and sample["now"]
    assert "pipeline_tag: fill-mask" in (language.adapter / "README.md").read_text()
    proof = next(line["proof"] for line in language.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] == 0.0 and proof["movement"]["unmoved"] == {}
    facts = json.loads((language.path / "data.json").read_text())
    assert facts["train"]["learned_tokens"] < 0.3 * facts["train"]["total_tokens"]
    model, _ = language.load()
    assert type(model).__name__ == "BertForMaskedLM" and set(adapters(model)) == {"default"}


def test_scores_are_the_same_every_time_and_for_every_seed(place: Path, language: Run) -> None:
    other = train(
        place / "bert", place / "plain.jsonl", out=place / "seed", task="masked-lm", method="lora:rank=2",
        config={**QUICK, "budget": "1steps", "seed": 0, "test_rows": 256}, force=True,
    )  # fmt: skip
    assert scores(other)["loss"].base == scores(language)["loss"].base
    model, made = language.load()
    corpus = read(place / "plain.jsonl", task="masked-lm")
    first, second = (evaluate(model, made, corpus, "train").scores for _ in range(2))
    assert first == second


def test_resumed_is_bit_for_bit_what_was_not_stopped(place: Path, tmp_path: Path) -> None:
    whole = go(place / "bert", place / "plain.jsonl", tmp_path / "whole", budget="2epochs")
    with pytest.raises(Interrupted):
        go(place / "bert", place / "plain.jsonl", tmp_path / "cut", budget="2epochs", observer=StopAt(12))
    done = resume(tmp_path / "cut")
    left, right = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, done))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_a_task_stands_on_the_language_and_on_another(place: Path, language: Run, tmp_path: Path) -> None:
    task = go(place / "bert", place / "films.tsv", tmp_path / "task", task=None, on=[language.path])
    assert task.manifest.task == "classification" and task.manifest.on == (str(language.adapter),)
    proof = next(line["proof"] for line in task.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] == 0.0


def test_a_new_head_is_trained_or_refused(place: Path, tmp_path: Path) -> None:
    asked = {"model": str(place / "headless"), "data": str(place / "plain.jsonl"), "task": "masked-lm"}
    with pytest.raises(BadConfig, match=r"dense is not in the checkpoint.*--method lora:trained=cls\.predictions\.tr"):
        check_job(Job.from_dict({**asked, **QUICK}))
    method = LoRA(rank=4, trained=("cls.predictions.transform.dense",))
    run = go(place / "headless", place / "plain.jsonl", tmp_path / "run", method=method, budget="60steps")
    perplexity = scores(run)["masked_perplexity"]
    assert perplexity.score.high < perplexity.base.value
    proof = next(line["proof"] for line in run.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] == 0.0
    model = AutoModelForSequenceClassification.from_pretrained(place / "headless")
    assert lay(model, [str(run.adapter)], top="task") == ("run",)  # its head stays behind
    assert {site.path for site in adapters(model)["run"].sites} == {
        site.path for site in adapters(run.load()[0])["default"].sites if not site.path.startswith("cls.")
    }


def test_refusals(place: Path, tmp_path: Path) -> None:
    plain = {"data": str(place / "plain.jsonl"), "task": "masked-lm", **QUICK}
    with pytest.raises(NotAvailable, match=r"llama\) is no masked LM.*--task causal-lm"):
        check_job(Job.from_dict({**plain, "model": str(_with_mask(place / "llama", tmp_path / "llama"))}))
    with pytest.raises(BadConfig, match="has no mask token"):
        check_job(Job.from_dict({**plain, "model": str(place / "llama")}))
    with pytest.raises(NotAvailable, match="--task masked-lm"):
        check_job(Job.from_dict({**plain, "model": str(place / "bert"), "task": None}))
    with pytest.raises(BadConfig, match="task is 'mlm'.*masked-lm"):
        Job.from_dict({**plain, "model": str(place / "bert"), "task": "mlm"})
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(BadData, match=r"no shape recognised to learn text with hidden words.*--columns text=prompt"):
        check_job(Job.from_dict({**plain, "model": str(place / "bert"), "data": str(tmp_path / "chat.jsonl")}))
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n' * 4)
    with pytest.raises(BadData, match="has a word to hide"):
        check_job(Job.from_dict({**plain, "model": str(place / "bert"), "data": str(tmp_path / "empty.jsonl")}))
    given = AutoModelForSequenceClassification.from_pretrained(place / "bert")
    made = tokenizer()
    made.mask_token = "w59"
    with pytest.raises(BadConfig, match="BertForSequenceClassification, which cannot fill in hidden words"):
        go(given, place / "plain.jsonl", tmp_path / "given", tokenizer=made)


def _with_mask(source: Path, target: Path) -> Path:
    model_folder(target)
    words(target)
    return target


def test_the_loss_is_transformers_own(place: Path) -> None:
    from budwood.data import collate, encode
    from budwood.train.objective import MaskedLM

    made = tokenizer()
    made.mask_token = "w59"
    model = AutoModelForMaskedLM.from_pretrained(place / "bert").eval()
    examples = encode(read(place / "plain.jsonl", task="masked-lm"), "train", made).examples[:6]
    batch = collate(examples, 0)
    ours = MaskedLM()(model, batch)
    with torch.no_grad():
        theirs = model(**batch.inputs(), labels=batch.labels).loss
    assert ours.tokens == batch.num_targets == int((batch.labels != IGNORE).sum()) == MaskedLM().targets(batch)
    assert torch.allclose(ours.total / ours.tokens, theirs, rtol=1e-6)
    found = evaluate(model, made, read(place / "plain.jsonl", task="masked-lm"), "train")
    assert found.score("masked_perplexity").value > 1


def test_a_run_is_named_by_its_task_on_disk(language: Run) -> None:
    assert RunFolder.open(language.path).config()["task"] == "masked-lm"
