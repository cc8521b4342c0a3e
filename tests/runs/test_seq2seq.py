"""Encoder-decoders: one text turned into another, from rows to answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from budwood.core import Method
from budwood.data import collate, encode, read
from budwood.errors import BadConfig, NotAvailable
from budwood.evaluate import Options, evaluate, evaluate_loss, generate
from budwood.methods import Full, LoRA
from budwood.train.job import Job
from budwood.train.objective import Seq2Seq
from budwood.train.run import Run, check_job, train
from families import FAMILIES
from tokens import model_folder, tokenizer

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 8, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip


def encoder_decoder(folder: Path, family: str) -> Path:
    """A tiny T5 or BART with a word for each of the tokenizer's."""
    model = FAMILIES[family].build()
    model.config.pad_token_id, model.config.eos_token_id = 0, 2
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5, a BART, a decoder, and pairs whose target is told by one word of the source."""
    place = tmp_path_factory.mktemp("seq2seq")
    for family in ("t5", "bart"):
        encoder_decoder(place / family, family)
    model_folder(place / "llama")
    said = ["good film", "bad sound", "it is"]
    rows = [{"source": f"what is w{n % 3} of w{n % 17 + 20} ?", "target": said[n % 3]} for n in range(120)]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def go(model: object, data: object, out: Path, **more: Any) -> Run:
    said = {"budget": more.pop("budget", "60steps"), **QUICK}
    return train(model, data, config=said, out=out, **{"method": LoRA(rank=8, targets=("all",)), **more})


@pytest.mark.parametrize(("family", "method"), [("t5", LoRA(rank=8, targets=("all",))), ("bart", Full())])
def test_pairs_are_learned_and_answered(place: Path, tmp_path: Path, family: str, method: Method) -> None:
    run = go(place / family, place / "pairs.jsonl", tmp_path / "run", method=method)  # the model tells the task
    assert run.manifest.task == "seq2seq" and run.manifest.status == "finished"
    assert run.result is not None
    found = {entry.metric: entry for entry in run.result.quality}
    assert set(found) == {"loss", "perplexity", "token_accuracy"}
    loss = found["loss"]
    assert loss.base is not None and loss.score.high < 0.5 * loss.base.low
    assert "pipeline_tag: text2text-generation" in (run.adapter / "README.md").read_text()
    proof = next(line["proof"] for line in run.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] == 0.0 and proof["movement"]["frozen"] >= 0
    model, made = run.load()
    corpus = read(place / "pairs.jsonl", task="seq2seq")
    options = Options(metrics=("exact_match", "bleu", "loss"), max_new_tokens=8)
    assert evaluate(model, made, corpus, "train", options=options).score("exact_match").value > 0.9
    alone = [generate(model, made, [text], max_new_tokens=8)[0] for text in ("what is w1 of w29 ?", "w2")]
    assert alone == generate(model, made, ["what is w1 of w29 ?", "w2"], max_new_tokens=8)
    assert alone[0].strip() == "bad sound"
    assert run.samples()[-1]["now"] == run.samples()[-1]["reference"]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_loss_is_transformers_own(place: Path, family: str) -> None:
    model = AutoModelForSeq2SeqLM.from_pretrained(place / family).eval()
    made = tokenizer()
    examples = encode(read(place / "pairs.jsonl", task="seq2seq"), "train", made).examples[:6]
    batch = collate(examples, 0)
    ours = Seq2Seq()(model, batch)
    with torch.no_grad():
        theirs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    assert ours.tokens == batch.num_targets == sum(example.num_targets for example in examples)
    assert torch.allclose(ours.total / ours.tokens, theirs, rtol=1e-5)
    pieces = [Seq2Seq()(model, collate(part, 0)).total for part in (examples[:2], examples[2:])]
    assert torch.allclose(sum(pieces), ours.total, rtol=1e-5)
    report = evaluate_loss(model, [batch])
    assert report.loss.name == "loss" and report.perplexity.name == "perplexity"
    assert report.losses.sum() == pytest.approx(ours.total.item(), rel=1e-5)


def test_refusals(place: Path, tmp_path: Path) -> None:
    pairs = {"data": str(place / "pairs.jsonl"), **QUICK}
    with pytest.raises(NotAvailable, match=r"llama\) is no encoder-decoder.*--task causal-lm"):
        check_job(Job.from_dict({**pairs, "model": str(place / "llama"), "task": "seq2seq"}))
    with pytest.raises(NotAvailable, match=r"t5\) is an encoder-decoder.*--task seq2seq"):
        check_job(Job.from_dict({**pairs, "model": str(place / "t5"), "task": "causal-lm"}))
    made = tokenizer()
    with pytest.raises(BadConfig, match="LlamaForCausalLM, which does not turn one text into another"):
        given = AutoModelForCausalLM.from_pretrained(place / "llama")
        go(given, place / "pairs.jsonl", tmp_path / "a", task="seq2seq", tokenizer=made)
    with pytest.raises(BadConfig, match="T5ForConditionalGeneration, an encoder-decoder"):
        given = AutoModelForSeq2SeqLM.from_pretrained(place / "t5")
        go(given, place / "pairs.jsonl", tmp_path / "b", task="causal-lm", tokenizer=made)
