"""`budwood eval --with`: runs of one task answer together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import budwood as bw
from world import World

from .conftest import Run


@pytest.fixture
def here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters for the world's decoder and its encoder."""
    monkeypatch.chdir(tmp_path)
    labels = {0: "0", 1: "1"}
    classes = {"num_labels": 2, "id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    causal, classifier = AutoModelForCausalLM, AutoModelForSequenceClassification
    for seed, (name, model, method) in enumerate([
        ("prefix", causal.from_pretrained(world.model), bw.PrefixTuning(length=3, width=None)),
        ("prompt", causal.from_pretrained(world.model), bw.PromptTuning(length=2)),
        ("longer", causal.from_pretrained(world.model), bw.PromptTuning(length=5)),
        ("full", causal.from_pretrained(world.model), bw.Full()),
        ("classes", classifier.from_pretrained(world.encoder, **classes), bw.PTuningV2(length=3)),
        ("names", classifier.from_pretrained(world.encoder, num_labels=2, id2label={0: "a", 1: "b"}), bw.LoRA(rank=2)),
    ]):  # fmt: skip
        torch.manual_seed(seed)
        bw.attach(model, method, name="x")
        with torch.no_grad():
            for parameter in bw.parameters(model, "x"):
                parameter.add_(0.2 * torch.randn_like(parameter))
        bw.save(model, name, name="x")
    shutil.copytree(world.run / "adapter", "lora")
    return tmp_path


def test_runs_are_scored_together_and_alone(budwood: Run, world: World, here: Path) -> None:
    asked = ("--precision", "exact", "--metric", "loss", "--metric", "rouge_l", "--answers", 6, "--json")
    names = ("prefix", "lora", "prompt", "longer")
    alone = [budwood("eval", name, world.chat, *asked) for name in names]
    ran = budwood("eval", *names[:1], world.chat, *(w for n in names[1:] for w in ("--with", n)), *asked, "--out", "p")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["with"] == list(names[1:]) and " and prompt" in ran.err
    for one, scores in zip(alone, found["scores_alone"], strict=True):
        for ours, theirs in zip(one.json["scores"], scores, strict=True):
            assert ours["value"] == pytest.approx(theirs["value"], rel=1e-5)
        assert one.json["base_scores"] == found["base_scores"]
        assert one.json["with"] == [] and one.json["scores_alone"] == []
    losses = [scores[0]["value"] for scores in found["scores_alone"]]
    assert len(set(losses)) == 4 and found["scores"][0]["value"] < sum(losses) / 4
    lines = [json.loads(line) for line in Path("p").read_text().splitlines()]
    assert sum(line["prediction"] is not None for line in lines) == 6


def test_classes_with_heads_of_their_own(budwood: Run, world: World, here: Path) -> None:
    ran = budwood("eval", "classes", world.labelled, "--with", world.adapter)
    assert ran.code == 0, ran.err
    assert "each alone" in ran.out and "accuracy" in ran.out


def test_what_does_not_answer_together(budwood: Run, world: World, here: Path) -> None:
    for words, code, said in (
        (("prompt", world.chat, "--with", "classes"), 2, "classes has another base than prompt"),
        (("classes", world.labelled, "--with", "names"), 2, "another classes than classes: a, b, not 0, 1; only runs"),
        (("prompt", world.chat, "--with", "nowhere"), 4, "nowhere"),
        (("prompt", world.chat, "--with", "full"), 2, "full"),
        (("full", world.chat, "--with", "prompt"), 2, "full"),
    ):
        ran = budwood("eval", *words)
        assert ran.code == code and said in ran.err, ran.err
