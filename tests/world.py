"""A small world on disk: a tiny chat model, a tiny classifier, data for both, and an adapter for each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

import budwood as bw
from budwood.interop import save
from budwood.records import Manifest, RunFolder, machine
from tiny_tokenizers import CHATML, make_tokenizer

PLACES = ("Alimentum", "Blue Spice", "The Mill", "Zizzi", "Cotto", "Aromi", "Fitzbillies", "Strada")


@dataclass(frozen=True)
class World:
    """Where things are."""

    folder: Path
    model: Path
    encoder: Path
    chat: Path
    labelled: Path
    run: Path
    """A finished run of `model` on `chat`, whose adapter has an effect."""
    adapter: Path
    """A bare adapter folder for `encoder`."""


def make_world(folder: Path) -> World:
    """Everything, in a few hundred milliseconds."""
    torch.manual_seed(0)
    world = World(
        folder, folder / "lm", folder / "encoder", folder / "chat.jsonl", folder / "labelled.tsv",
        folder / "runs" / "20260101-000000-lora-lm", folder / "adapter",
    )  # fmt: skip
    tokenizer = make_tokenizer(CHATML)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_key_value_heads=1, pad_token_id=2, eos_token_id=1))
    encoder = AutoModelForSequenceClassification.from_config(BertConfig(**sizes, pad_token_id=2, num_labels=2))
    for model, place in ((lm, world.model), (encoder.bert, world.encoder)):
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
    rows = [{"prompt": f"name : {p} {n}", "completion": f"There is {p} ."} for n in range(4) for p in PLACES]
    world.chat.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{n % 2}\t{'good' if n % 2 else 'bad'} {PLACES[n % 8]} {n}\n" for n in range(24)]
    world.labelled.write_text("label\ttext\n" + "".join(lines))
    _make_run(world)
    _make_adapter(world)
    return world


def _perturbed(model: Any, method: bw.Method) -> None:
    bw.attach(model, method, name="x")
    with torch.no_grad():
        for parameter in bw.parameters(model, "x"):
            parameter.add_(0.2 * torch.randn_like(parameter))


def _make_run(world: World) -> None:
    model = AutoModelForCausalLM.from_pretrained(world.model)
    method = bw.LoRA(rank=2)
    _perturbed(model, method)
    manifest = Manifest(
        command=("budwood", "train"), model=str(world.model), method={"lora": method.to_dict()},
        data=str(world.chat), seed=0,
    )  # fmt: skip
    run = RunFolder.create(world.folder / "runs", manifest, config={}, data={}, environment=machine(), out=world.run)
    save(model, run.adapter, name="x")
    run.finish()


def _make_adapter(world: World) -> None:
    labels = {0: "0", 1: "1"}
    model = AutoModelForSequenceClassification.from_pretrained(
        world.encoder, num_labels=2, id2label=labels, label2id={name: number for number, name in labels.items()}
    )
    _perturbed(model, bw.LoRA(rank=2))
    save(model, world.adapter, name="x")
