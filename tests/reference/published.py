"""Published models without weights, on the meta device, and the sizes of what a method attaches to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

import budwood.core as core
from budwood.anatomy import Anatomy, discover
from budwood.core import Method

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
LLAMA_13B = {
    **LLAMA, "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824,
}  # fmt: skip
LLAMA3 = {**LLAMA, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}

T5: dict[str, Any] = {"vocab_size": 32128, "d_kv": 64, "feed_forward_proj": "gated-gelu"}


def meta(auto: Any, model_type: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.device("meta"):
            return auto.from_config(AutoConfig.for_model(model_type, **settings))

    return build


MODELS: dict[str, Callable[[], nn.Module]] = {
    "roberta-base": meta(AutoModel, "roberta", **BASE, **ROBERTA),
    "roberta-base-mnli": meta(AutoModelForSequenceClassification, "roberta", **BASE, **ROBERTA, num_labels=3),
    "roberta-large": meta(AutoModel, "roberta", **LARGE, **ROBERTA),
    "xlm-roberta-base": meta(AutoModel, "roberta", **BASE, **{**ROBERTA, "vocab_size": 250002}),
    "bert-base": meta(AutoModel, "bert", **BASE),
    "bert-large": meta(AutoModel, "bert", **LARGE),
    "bart-large": meta(
        AutoModelForSeq2SeqLM, "bart", d_model=1024, encoder_layers=12, decoder_layers=12, encoder_attention_heads=16,
        decoder_attention_heads=16, encoder_ffn_dim=4096, decoder_ffn_dim=4096,
    ),
    "deberta-xxl": meta(
        AutoModel, "deberta-v2", hidden_size=1536, num_hidden_layers=48, num_attention_heads=24, intermediate_size=6144,
        vocab_size=128100, relative_attention=True, position_buckets=256, norm_rel_ebd="layer_norm", share_att_key=True,
        pos_att_type=["p2c", "c2p"],
    ),
    "gpt2-medium": meta(AutoModelForCausalLM, "gpt2", n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": meta(AutoModelForCausalLM, "gpt2", n_embd=1280, n_layer=36, n_head=20),
    "gpt3": meta(AutoModelForCausalLM, "gpt2", n_embd=12288, n_layer=96, n_head=96, n_positions=2048),
    "llama-7b": meta(AutoModelForCausalLM, "llama", **LLAMA),
    "llama-13b": meta(AutoModelForCausalLM, "llama", **LLAMA_13B),
    "llama3-8b": meta(AutoModelForCausalLM, "llama", **LLAMA3),
    "bert-large-cased": meta(AutoModel, "bert", **LARGE, vocab_size=28996),
    "bert-base-9-labels": meta(AutoModelForSequenceClassification, "bert", **BASE, num_labels=9),
    "bert-large-squad": meta(AutoModelForQuestionAnswering, "bert", **LARGE),
    "gpt2": meta(AutoModelForCausalLM, "gpt2"),
    "gpt2-xl": meta(AutoModelForCausalLM, "gpt2", n_embd=1600, n_layer=48, n_head=25),
    "as-wide-as-gpt3": meta(
        AutoModelForCausalLM, "llama", hidden_size=12288, num_hidden_layers=1, num_attention_heads=96,
    ),
    "as-wide-as-megatron-11b": meta(
        AutoModelForCausalLM, "llama", hidden_size=3072, num_hidden_layers=1, num_attention_heads=32,
    ),
    "smollm2-135m": meta(
        AutoModelForCausalLM, "llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True,
    ),
    "deepseek-two-layers": meta(
        AutoModelForCausalLM, "deepseek_v3", num_hidden_layers=2, first_k_dense_replace=2, vocab_size=128,
    ),
    "t5-small": meta(AutoModelForSeq2SeqLM, "t5", **T5, d_model=512, num_layers=8, num_heads=6, d_ff=1024),
    "t5-base": meta(AutoModelForSeq2SeqLM, "t5", **T5, d_model=768, num_layers=12, num_heads=12, d_ff=2048),
    "t5-large": meta(AutoModelForSeq2SeqLM, "t5", **T5, d_model=1024, num_layers=24, num_heads=16, d_ff=2816),
    "t5-xl": meta(AutoModelForSeq2SeqLM, "t5", **T5, d_model=2048, num_layers=24, num_heads=32, d_ff=5120),
    "t5-xxl": meta(AutoModelForSeq2SeqLM, "t5", **T5, d_model=4096, num_layers=24, num_heads=64, d_ff=10240),
}  # fmt: skip
SLOW = ("gpt3", "llama-13b")
"""Take many seconds to make."""


def attached(name: str, method: Method) -> dict[str, int]:
    """Sizes of the method's parameters by name."""
    model, anatomy = read(name)
    core.attach(model, method, name="a", anatomy=anatomy)
    found = {key: p.numel() for key, p in core.named_parameters(model, "a").items()}
    core.detach(model, "a")
    return found


@cache
def read(name: str) -> tuple[nn.Module, Anatomy]:
    """The model and its anatomy, made once."""
    model = MODELS[name]()
    return model, discover(model)
