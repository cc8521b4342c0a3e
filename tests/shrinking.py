"""Tiny models in folders, rows for them, and a shrinking of a few steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

from budwood.records import Timing
from budwood.shrink import look
from budwood.shrink.run import Shrunk, shrink
from tiny_tokenizers import CHATML, make_tokenizer
from world import PLACES

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
GQA = {**LLAMA, "num_key_value_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "llama": GQA,
    "qwen2": GQA,
    "gemma2": {**GQA, "head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "bert": LLAMA,
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0},
}
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classify": AutoModelForSequenceClassification,
}
QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "learning_rate": 3e-3, "proof_steps": 0,
    "test_rows": 16,
}  # fmt: skip


def model_at(folder: Path, kind: str = "llama", task: str = "causal", **settings: Any) -> Path:
    """A tiny random model with its tokenizer."""
    torch.manual_seed(3)
    tokenizer = make_tokenizer(CHATML)
    special = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    special |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    dtype = settings.pop("dtype", torch.float32)
    config = AutoConfig.for_model(kind, **{**SIZES[kind], **special, **settings})
    AUTO[task].from_config(config, dtype=dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_at(folder: Path, count: int = 48) -> Path:
    """Prompts and answers."""
    places = [PLACES[n % 8] for n in range(count)]
    rows = [{"prompt": f"name : {p} {n}", "completion": f"There is {p} ."} for n, p in enumerate(places)]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "chat.jsonl"


def films_at(folder: Path, count: int = 48) -> Path:
    """Texts with one of two labels, which their first word tells."""
    lines = [f"{n % 2}\t{'good' if n % 2 else 'bad'} {PLACES[n % 8]} {n}\n" for n in range(count)]
    (folder / "films.tsv").write_text("label\ttext\n" + "".join(lines))
    return folder / "films.tsv"


def small(model: object, data: object, out: Path, *, settings: dict[str, Any] | None = None, **said: Any) -> Shrunk:
    """A shrinking with few rows and steps."""
    config = {**QUICK, **(settings or {})}
    beside = {name: said.pop(name) for name in ("method", "observer", "task") if name in said}
    plan = {"tune": "6steps", "recover": "4steps", "rows": 16, "step": 0.25, **said}
    return shrink(model, data, shrinking=plan, config=config, out=out, **beside)  # type: ignore[arg-type]


def made_up_times(monkeypatch: Any) -> None:
    """Times by size instead of by the clock: measured ones take longer than all the rest of a tiny shrinking."""

    def timed(model: Any) -> Timing:
        return Timing(batch=1, prompt_tokens=64, prefill_s=1e-3, per_token_s=1e-3, how="made up")

    def beside(model: Any, other: Any) -> tuple[Timing, float]:
        return timed(model), other.num_parameters() / model.num_parameters()

    monkeypatch.setattr(look, "timed", timed)
    monkeypatch.setattr(look, "timed_beside", beside)
