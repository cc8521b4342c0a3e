"""What discovery must not do, and what it says about models that nobody listed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from budwood.anatomy import discover
from budwood.errors import BadConfig, NoSuchSite
from families import BART, FAMILIES, GPT2, LLAMA, _build


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a forward could change."""
    return {
        "tensors": {n: t.clone() for n, t in (*model.named_parameters(), *model.named_buffers())},
        "flags": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "attributes": [sorted(m.__dict__) for m in model.modules()],
        "wanted": [p.requires_grad for p in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "random": torch.random.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = FAMILIES[name].build()
    model.train()
    next(model.children()).eval()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if i % 3 == 0 else None
    before = state(model)
    discover(model)
    assert same(before, state(model))


def test_weights_that_a_forward_rescales_are_put_back() -> None:
    """RWKV divides its weights on the first forward in eval mode and remembers having done so."""
    settings = {"hidden_size": 32, "num_hidden_layers": 3, "context_length": 64, "rescale_every": 1}
    model = _build("rwkv", "causal", settings).train()
    before, rescaled = state(model), model.rwkv.layers_are_rescaled
    discover(model)
    assert same(before, state(model))
    assert model.rwkv.layers_are_rescaled == rescaled


def test_a_failing_forward_leaves_no_trace_either() -> None:
    model = FAMILIES["llama"].build()
    before = state(model)
    with pytest.raises(AttributeError):
        discover(model, batch={"input_ids": torch.tensor([[5]]), "attention_mask": "wrong"})
    assert same(before, state(model))


def test_a_model_of_135M_parameters_takes_about_a_second() -> None:
    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        discover(model)
        times.append(time.perf_counter() - start)
    assert min(times) < 2.0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.attn, self.ln2 = nn.LayerNorm(16), Attention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 16), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Plain(nn.Module):
    """A GPT as people write them."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_emb, self.up = nn.Embedding(50, 8), nn.Linear(8, 16)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 50)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(self.tok_emb(ids))
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def test_a_plain_module_with_a_batch_is_read_like_any_other() -> None:
    anatomy = discover(Plain(), batch={"ids": torch.tensor([[1, 2, 3]])})
    roles = {s.path: s.role for s in anatomy.sites}
    assert roles["up"] == "embed.project"
    assert roles["out"] == "head.lm"
    assert roles["norm"] == "norm.final"
    assert roles["blocks.0.mlp.0"] == "mlp.up"
    assert [p.rows for p in anatomy.select("attn.qkv")[0].parts] == [((0, 16),), ((16, 32),), ((32, 48),)]
    assert [s.h for s in anatomy.sublayers[:2]] == ["blocks.0.attn.proj", "blocks.0.mlp.3"]
    assert anatomy.unresolved == anatomy.uncalled == anatomy.unknown_sublayers == ()


def test_a_plain_module_without_a_batch_is_read_as_far_as_shapes_go() -> None:
    anatomy = discover(Plain())
    assert not anatomy.is_probed
    assert anatomy.sublayers == ()
    assert {"attn.qkv", "attn.o", "mlp.up", "mlp.down", "head.lm"} <= set(anatomy.roles)
    assert "up" in anatomy.unresolved
    with pytest.raises(NoSuchSite, match=r"attn\.qkv"):
        anatomy.select("attn.q")


class Decoy(Block):
    """Names of an attention, sizes of something else."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"q_proj": nn.Linear(16, 16), "k_proj": nn.Linear(5, 7), "o_proj": nn.Linear(7, 3)})


def test_names_alone_give_no_role() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList(Decoy() for _ in range(2))
    anatomy = discover(model)
    for leaf in ("q_proj", "k_proj", "o_proj"):
        assert f"layers.0.attn.{leaf}" in anatomy.unresolved
    assert "mlp.down" in anatomy.roles


class Experts(nn.Module):
    """A mixture of experts as a list of small gated MLPs; the router picks the first."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(16, 3, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(16, 8), "w2": nn.Linear(8, 16), "w3": nn.Linear(16, 8)}) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        e = self.experts[0]
        return e["w2"](torch.sigmoid(e["w1"](x)) * e["w3"](x)) * self.gate(x)[..., :1]


def test_lists_of_expert_linears() -> None:
    model = Plain()
    for block in model.blocks:
        block.mlp = Experts()
    anatomy = discover(model, batch={"ids": torch.tensor([[1, 2, 3]])})
    roles = {s.path: s.role for s in anatomy.sites}
    assert roles["blocks.1.mlp.gate"] == "mlp.router"
    assert [roles[f"blocks.1.mlp.experts.2.w{i}"] for i in (1, 2, 3)] == ["mlp.gate", "mlp.down", "mlp.up"]
    assert [s.h for s in anatomy.sublayers if s.role == "mlp"] == ["blocks.0.mlp", "blocks.1.mlp"]
    assert anatomy.uncalled == ()
    assert "blocks.0.mlp.gate" not in [s.path for s in anatomy.select("all")]


def test_two_encoder_decoder_stacks_have_layers_of_their_own() -> None:
    config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=96)
    anatomy = discover(T5ForConditionalGeneration(config))
    assert (anatomy.num_layers("encoder"), anatomy.num_layers("decoder")) == (2, 3)
    assert len(anatomy.select("cross.*")) == 12
    assert len(anatomy.select("attn.q", stack="decoder")) == 3


def test_cross_attention_of_bert_and_gpt2() -> None:
    config = BertConfig(**LLAMA, vocab_size=96, is_decoder=True, add_cross_attention=True)
    batch = {"input_ids": torch.tensor([[5, 6, 7]]), "encoder_hidden_states": torch.randn(1, 4, 32)}
    bert = discover(BertLMHeadModel(config), batch=batch)
    assert {s.role for s in bert.sublayers} == {"attn", "cross", "mlp"}
    assert bert.select("cross.q")[0].path == "bert.encoder.layer.0.crossattention.self.query"
    gpt2 = discover(_build("gpt2", "causal", {**GPT2, "add_cross_attention": True}), batch=batch)
    assert gpt2.select("cross.kv")[0].path == "transformer.h.0.crossattention.c_attn"
    assert [part.rows for part in gpt2.select("attn.qkv")[0].parts] == [((0, 32),), ((32, 64),), ((64, 96),)]
    assert gpt2.unresolved == gpt2.unknown_sublayers == ()


def test_what_never_runs_is_reported_and_left_out_of_all() -> None:
    anatomy = discover(FAMILIES["mamba"].build())
    assert anatomy.uncalled == ("backbone.layers.0.mixer.dt_proj", "backbone.layers.1.mixer.dt_proj")
    assert {s.role for s in anatomy.select("all")} == {"mixer.in", "mixer.x", "mixer.out"}
    alone = discover(_build("bart", "causal", BART))  # a decoder whose cross-attention has nothing to read
    assert len(alone.uncalled) == 2 * 4
    assert not any(s.role.startswith("cross") for s in alone.select("all"))


def test_adapters_on_the_model_are_no_part_of_it() -> None:
    model = FAMILIES["llama"].build()
    before = discover(model)
    model.get_submodule("model.layers.0.mlp.down_proj").add_module("deltas", nn.Linear(3, 3))
    assert discover(model) == before


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"Linear has no stack of blocks .* pass a transformer"):
        discover(nn.Linear(3, 3))


def test_a_model_that_cannot_run_on_token_ids_asks_for_a_batch() -> None:
    model = FAMILIES["llama"].build()
    model.model.layers[0].mlp = nn.ModuleList([nn.Linear(32, 48), nn.Linear(48, 32)])
    with pytest.raises(BadConfig, match=r"LlamaForCausalLM did not run on made-up token ids .* batch="):
        discover(model)


def test_a_selection_that_matches_nothing_names_what_there_is() -> None:
    anatomy = discover(FAMILIES["llama"].build())
    with pytest.raises(NoSuchSite, match=r"'attn\.qq'.*attn\.q, attn\.k.*did you mean 'attn\.q'"):
        anatomy.select("attn.qq")
    with pytest.raises(NoSuchSite, match="decoder 0 to 1"):
        anatomy.select("attn.q", layers=(5,))
