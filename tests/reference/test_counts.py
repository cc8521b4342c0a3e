"""Numbers of trainable parameters on published models (weightless, on the meta device) against known integers.

Sources: LoRA tables 2, 3 and 15; the released roberta_base_lora_mnli.bin; DoRA table 1; BitFit; Houlsby section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import budwood.core as core
from budwood.anatomy import Anatomy, discover
from budwood.core import Method
from budwood.methods import IA3, LoRA, Selective

BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
}  # fmt: skip
ROBERTA: dict[str, Any] = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 11008,
    "vocab_size": 32000,
}  # fmt: skip
LLAMA3 = {**LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}


def meta(auto: Any, model_type: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.device("meta"):
            return auto.from_config(AutoConfig.for_model(model_type, **settings))

    return build


MODELS: dict[str, Callable[[], nn.Module]] = {
    "roberta-base": meta(AutoModel, "roberta", **BASE, **ROBERTA),
    "roberta-base-mnli": meta(AutoModelForSequenceClassification, "roberta", **BASE, **ROBERTA, num_labels=3),
    "roberta-large": meta(AutoModel, "roberta", **LARGE, **ROBERTA),
    "bert-base": meta(AutoModel, "bert", **BASE),
    "deberta-xxl": meta(
        AutoModel, "deberta-v2", hidden_size=1536, num_hidden_layers=48, num_attention_heads=24, intermediate_size=6144,
        vocab_size=128100, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    ),
    "gpt2-medium": meta(AutoModelForCausalLM, "gpt2", n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": meta(AutoModelForCausalLM, "gpt2", n_embd=1280, n_layer=36, n_head=20),
    "gpt3": meta(AutoModelForCausalLM, "gpt2", n_embd=12288, n_layer=96, n_head=96, n_positions=2048),
    "llama-7b": meta(AutoModelForCausalLM, "llama", **LLAMA),
    "llama3-8b": meta(AutoModelForCausalLM, "llama", **LLAMA3),
}  # fmt: skip
QV = ("attn.q", "attn.v")
QKVUD = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")

COUNTS: list[tuple[str, Method, int]] = [
    ("roberta-base", LoRA(rank=8, targets=QV), 294_912),
    ("roberta-base-mnli", LoRA(rank=8, targets=QV), 887_811),
    ("roberta-base-mnli", LoRA(rank=8, targets=QV, trained=()), 294_912),
    ("roberta-large", LoRA(rank=8, targets=QV), 786_432),
    ("deberta-xxl", LoRA(rank=16, targets=QV), 4_718_592),
    ("deberta-xxl", LoRA(rank=8, targets=QV), 2_359_296),
    ("gpt2-medium", LoRA(rank=4, targets=QV), 393_216),
    ("gpt2-medium", LoRA(rank=4, targets=("attn.qkv",)), 393_216),
    ("gpt2-large", LoRA(rank=4, targets=QV), 737_280),
    ("gpt3", LoRA(rank=1, targets=QV), 4_718_592),
    ("gpt3", LoRA(rank=64, targets=QV), 301_989_888),
    ("gpt3", LoRA(rank=2, targets=("attn.v",)), 4_718_592),
    ("gpt3", LoRA(rank=1, targets=("attn.q", "attn.k", "attn.v", "attn.o")), 9_437_184),
    ("llama-7b", LoRA(rank=8, targets=QV), 4_194_304),
    ("llama-7b", LoRA(rank=32, targets=QKVUD), 56_098_816),
    ("llama-7b", LoRA(rank=32, targets=QKVUD, dora=True), 56_975_360),
    ("llama3-8b", LoRA(rank=32, targets=QKVUD), 56_623_104),
    ("llama3-8b", LoRA(rank=32, targets=QKVUD, dora=True), 57_409_536),
    ("bert-base", LoRA(targets=QV), 294_912),
    ("bert-base", Selective(part="norms"), 38_400),
    ("roberta-base", Selective(part="bitfit"), 102_912),  # the published 102,144 leave the pooler's 768 out
    ("gpt2-medium", Selective(part="last-layers"), 25_194_496),
    ("llama-7b", IA3(), 32 * (4096 + 4096 + 11008)),
]


CASES = [
    pytest.param(*case, marks=[pytest.mark.slow] if case[0] == "gpt3" else [], id=f"{case[0]}-{case[1].name}-{case[2]}")
    for case in COUNTS
]


@pytest.mark.parametrize(("name", "method", "count"), CASES)
def test_count(name: str, method: Method, count: int) -> None:
    model, anatomy = read(name)
    core.attach(model, method, name="a", anatomy=anatomy)
    found = sum(p.numel() for p in core.parameters(model, "a"))
    core.detach(model, "a")
    assert found == count


@cache
def read(name: str) -> tuple[nn.Module, Anatomy]:
    """The model and its anatomy, made once."""
    model = MODELS[name]()
    return model, discover(model)
