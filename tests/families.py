"""Tiny random models, one per family: what every test that speaks of "any model" runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

VOCABULARY, LENGTH, PAD = 96, 7, 1
Shape = Literal["decoder", "encoder", "encoder-decoder"]
AUTO = {
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "classify": AutoModelForSequenceClassification,
}


@dataclass(frozen=True)
class Family:
    """One architecture: how to build a tiny random model of it (seeded, eval, fp32) and a batch it takes.

    `batch()` has input_ids and attention_mask [2, 7] int64 (decoder_input_ids [2, 5] for an encoder-decoder);
    the second row is right-padded unless `is_stateful`.
    """

    name: str
    build: Callable[[], PreTrainedModel]
    batch: Callable[[], dict[str, Tensor]]
    kind: Shape
    is_stateful: bool = False


def _build(model_type: str, task: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A seeded model with biases and norm weights moved away from 0 and 1. The caller's RNG is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **settings)
        model = AUTO[task].from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.15 if parameter.dim() == 1 else 0.05
                parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def _batch(shape: Shape, is_stateful: bool) -> dict[str, Tensor]:
    """Fixed token ids in [4, VOCABULARY); two pad tokens end the second row."""
    generator = torch.Generator().manual_seed(21)
    ids = torch.randint(4, VOCABULARY, (2, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if not is_stateful:
        ids[1, -2:] = PAD
        mask[1, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if shape == "encoder-decoder":
        batch["decoder_input_ids"] = torch.randint(4, VOCABULARY, (2, 5), generator=generator)
    return batch


def _family(
    name: str, model_type: str, shape: Shape, task: str, *, is_stateful: bool = False, **settings: Any
) -> Family:
    settings = {"pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 3, **settings}
    return Family(
        name,
        partial(_build, model_type, task, settings),
        partial(_batch, shape, is_stateful),
        shape,
        is_stateful,
    )


# Sizes in the four vocabularies that transformers' configurations speak.
LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GQA = {**LLAMA, "num_key_value_heads": 2}
GPT2: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MLA: dict[str, Any] = {
    "q_lora_rank": 12,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 6,
}
T5: dict[str, Any] = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}

_decoder = partial(_family, shape="decoder", task="causal")
_encoder = partial(_family, shape="encoder", task="masked")
_seq2seq = partial(_family, shape="encoder-decoder", task="seq2seq", decoder_start_token_id=0)
_classify = partial(_family, task="classify", num_labels=3)

_ALL = (
    _decoder("llama", "llama", **GQA),
    _decoder("mistral", "mistral", **GQA, sliding_window=4),
    _decoder("qwen2", "qwen2", **GQA),
    _decoder("qwen3", "qwen3", **GQA, head_dim=8),
    _decoder("gemma", "gemma", **GQA, head_dim=8),
    _decoder("gemma2", "gemma2", **GQA, head_dim=8, sliding_window=4),
    _decoder("gemma3", "gemma3_text", **GQA, head_dim=8, sliding_window=4),
    _decoder("phi", "phi", **GQA),
    _decoder("phi3", "phi3", **GQA),
    _decoder("mixtral", "mixtral", **GQA, num_local_experts=4, num_experts_per_tok=2),
    _decoder("olmo2", "olmo2", **GQA),
    _decoder(
        "granite", "granite", **GQA, residual_multiplier=0.5, embedding_multiplier=2.0, logits_scaling=3.0,
        attention_multiplier=0.3,
    ),
    _decoder("stablelm", "stablelm", **GQA, use_qkv_bias=True),
    _decoder("cohere", "cohere", **GQA, logit_scale=0.5),
    _decoder("gpt2", "gpt2", **GPT2),
    _decoder("gpt_neox", "gpt_neox", **LLAMA),
    _decoder("gptj", "gptj", **GPT2, rotary_dim=4),
    _decoder(
        "gpt_neo", "gpt_neo", hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
        max_position_embeddings=64, window_size=4, attention_types=[[["global", "local"], 1]],
    ),
    _decoder("gpt_bigcode", "gpt_bigcode", **GPT2, multi_query=True),
    _decoder(
        "opt", "opt", hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32,
    ),
    _decoder("bloom", "bloom", hidden_size=32, n_layer=2, n_head=4),
    _decoder(
        "falcon", "falcon", **LLAMA, num_kv_heads=2, new_decoder_architecture=True, bias=True, alibi=False,
        ffn_hidden_size=48,
    ),
    _decoder("mpt", "mpt", d_model=32, n_layers=2, n_heads=4, expansion_ratio=2, max_seq_len=64),
    _decoder("codegen", "codegen", **GPT2, rotary_dim=4),
    _encoder("bert", "bert", **LLAMA),
    _encoder("roberta", "roberta", **LLAMA),
    _encoder("electra", "electra", **LLAMA, embedding_size=24),
    _encoder(
        "distilbert", "distilbert", dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=64
    ),
    _encoder(
        "deberta-v2", "deberta-v2", **LLAMA, relative_attention=True, position_buckets=8, share_att_key=False,
        pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm",
    ),
    _encoder(
        "modernbert", "modernbert", **LLAMA, local_attention=4, global_attn_every_n_layers=2,
        attention_bias=True, mlp_bias=True, norm_bias=True, cls_token_id=2, sep_token_id=3,
    ),
    _encoder("albert", "albert", **LLAMA, embedding_size=24),
    _seq2seq("t5", "t5", **T5),
    _seq2seq("flan-t5", "t5", **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    _family("bart", "bart", "encoder-decoder", "seq2seq", **BART),
    _decoder("mamba", "mamba", hidden_size=32, state_size=4, num_hidden_layers=2, is_stateful=True),
    _decoder("rwkv", "rwkv", hidden_size=32, num_hidden_layers=2, context_length=64, is_stateful=True),
    _decoder("qwen3_moe", "qwen3_moe", **GQA, **MOE, head_dim=8, mlp_only_layers=[0]),
    _decoder(
        "deepseek_v2", "deepseek_v2", **LLAMA, **MLA, num_key_value_heads=4, n_routed_experts=4,
        num_experts_per_tok=2, moe_intermediate_size=24, n_shared_experts=1, first_k_dense_replace=1,
        n_group=1, topk_group=1,
    ),
    _decoder(
        "jamba", "jamba", **GQA, num_experts=2, expert_layer_period=2, expert_layer_offset=1,
        attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=4,
        mamba_dt_rank=4, is_stateful=True,
    ),
    _family("mbart", "mbart", "encoder-decoder", "seq2seq", **BART),
    _classify("bert-classify", "bert", "encoder", **LLAMA),
    _classify("roberta-classify", "roberta", "encoder", **LLAMA),
    _classify(
        "distilbert-classify", "distilbert", "encoder", dim=32, hidden_dim=48, n_layers=2, n_heads=4,
        max_position_embeddings=64,
    ),
    _classify("llama-classify", "llama", "decoder", **GQA),
    _classify("gpt2-classify", "gpt2", "decoder", **GPT2),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}
"""Every family by name: 36 of the design, MoE, MLA, hybrid, pre-LN encoder-decoder, classifiers."""

SMALL: tuple[str, ...] = (
    "llama", "gpt2", "bert", "t5", "gpt_neox", "qwen3_moe", "mbart", "roberta-classify",
)  # fmt: skip
"""Eight that between them hold weights and place norms in every way: for long lists of properties."""
