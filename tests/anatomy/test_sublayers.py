"""Sub-layers by intervention: change `h` where the anatomy says it leaves, and predict what the block makes of it."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, SubLayer, discover
from budwood.anatomy.probe import first_tensor
from families import BART, FAMILIES, GPT2, GQA, LLAMA, _batch, _build

ORDER = ("attn", "cross", "mlp")
WITHOUT = {"mamba": 0, "rwkv": 0, "jamba": 3, "albert": 2, "bart": 10, "mbart": 10, "t5": 10, "flan-t5": 10}
"""Sub-layers per tiny model where it is not two in each of two blocks."""


class Watch:
    """Every sub-layer's `h` (with a random change), `r`, and every block's result, call by call."""

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self.seen: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
        self.handles = []
        for sub in anatomy.sublayers:
            self.handles.append(model.get_submodule(sub.h).register_forward_hook(self.change(sub)))
            self.read(model, *sub.r)
        for block in anatomy.select("block"):
            self.read(model, block.path, "output")

    def change(self, sub: SubLayer) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            h = first_tensor(output)
            assert h is not None
            changed = h + torch.randn(h.shape, generator=torch.Generator().manual_seed(7)).to(h)
            self.seen[sub.h, "h"].append(changed.clone())
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        return hook

    def read(self, model: nn.Module, path: str, end: str) -> None:
        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.seen[path, "input"].append((args[0] if args else kwargs["hidden_states"]).clone())

        def after(module: nn.Module, args: Any, output: Any) -> None:
            y = first_tensor(output)
            assert y is not None
            self.seen[path, "output"].append(y.clone())

        module = model.get_submodule(path)
        if end == "input":
            self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self.handles.append(module.register_forward_hook(after))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


def check(model: PreTrainedModel, batch: dict[str, Tensor]) -> Anatomy:
    """Every sub-layer's formula against what the block hands on."""
    anatomy = discover(model)
    watch = Watch(model, anatomy)
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        watch.close()
    blocks = {(s.stack, s.layer): s.path for s in anatomy.select("block")}
    grouped: dict[tuple[str, int], list[SubLayer]] = defaultdict(list)
    for sub in anatomy.sublayers:
        grouped[sub.stack, sub.layer].append(sub)
    for key, subs in grouped.items():
        subs.sort(key=lambda sub: ORDER.index(sub.role))
        for i, sub in enumerate(subs):
            others = [other for other in subs if other is not sub] if sub.is_parallel else []
            after = (blocks[key], "output") if others or i == len(subs) - 1 else subs[i + 1].r
            calls = len(watch.seen[sub.h, "h"])
            assert calls == len(watch.seen[after]) > 0
            for call in range(calls):
                expected = result(model, watch, sub, others, call)
                torch.testing.assert_close(expected.flatten(), watch.seen[after][call].flatten(), rtol=1e-5, atol=1e-5)
    return anatomy


def result(model: nn.Module, watch: Watch, sub: SubLayer, others: list[SubLayer], call: int) -> Tensor:
    """norm(r + scale * output_norm(h) + what other sub-layers add), from the captured tensors."""
    total = watch.seen[sub.r][call]
    for each in (sub, *others):
        h = watch.seen[each.h, "h"][call]
        with torch.no_grad():
            total = total + each.scale * (model.get_submodule(each.output_norm)(h) if each.output_norm else h)
    with torch.no_grad():
        return model.get_submodule(sub.norm)(total) if sub.norm else total


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_changed_h_has_the_predicted_effect(name: str) -> None:
    family = FAMILIES[name]
    anatomy = check(family.build(), family.batch())
    assert len(anatomy.sublayers) == WITHOUT.get(name, 4)
    assert bool(anatomy.unknown_sublayers) == (name == "rwkv")


VARIANTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-NeoX, sequential": ("gpt_neox", "causal", {**LLAMA, "use_parallel_residual": False}),
    "OPT 350M (post-LN, projections)": (
        "opt",
        "causal",
        {
            "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 64, "word_embed_proj_dim": 24, "do_layer_norm_before": False,
        },
    ),
    "BLOOM, residual after the norm": (
        "bloom",
        "causal",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "apply_residual_connection_post_layernorm": True},
    ),
    "phi, one dropout for both": ("phi", "causal", {**GQA, "resid_pdrop": 0.3}),
    "StableLM, parallel": ("stablelm", "causal", {**GQA, "use_parallel_residual": True}),
    "Falcon 7B": ("falcon", "causal", {**LLAMA, "new_decoder_architecture": False, "multi_query": True}),
    "Falcon RW": (
        "falcon",
        "causal",
        {**LLAMA, "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "alibi": True},
    ),
    "GPT-BigCode": ("gpt_bigcode", "causal", {**GPT2, "multi_query": False}),
    "Pegasus": ("pegasus", "seq2seq", BART),
    "GLM-4 (sandwich)": ("glm4", "causal", {**GQA, "head_dim": 8}),
    "XLNet": ("xlnet", "causal", {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "MPNet": ("mpnet", "masked", LLAMA),
}  # fmt: skip


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_variants_of_families_nobody_listed(variant: str) -> None:
    model_type, task, settings = VARIANTS[variant]
    model = _build(model_type, task, {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, **settings})
    anatomy = check(model, _batch("encoder-decoder" if task == "seq2seq" else "decoder", is_stateful=True))
    assert anatomy.unknown_sublayers == ()
    assert anatomy.unresolved == ()


def one(name: str, role: str, stack: str) -> tuple[str, tuple[str, str], str | None]:
    subs = discover(FAMILIES[name].build()).sublayers
    (sub,) = [s for s in subs if (s.role, s.stack, s.layer) == (role, stack, 0)]
    return sub.h, sub.r, sub.norm


@pytest.mark.parametrize(
    ("name", "role", "stack", "h", "r", "norm"),
    [
        ("bert", "attn", "encoder", "attention.output.dropout", "attention.self.query", "attention.output.LayerNorm"),
        ("roberta", "mlp", "encoder", "output.dropout", "intermediate.dense", "output.LayerNorm"),
        ("gpt2", "attn", "decoder", "attn.resid_dropout", "ln_1", None),
        ("gpt2", "mlp", "decoder", "mlp.dropout", "ln_2", None),
        ("llama", "attn", "decoder", "self_attn.o_proj", "input_layernorm", None),
        ("llama", "mlp", "decoder", "mlp.down_proj", "post_attention_layernorm", None),
        ("bart", "cross", "decoder", "encoder_attn.out_proj", "encoder_attn.q_proj", "encoder_attn_layer_norm"),
        ("bart", "mlp", "encoder", "fc2", "fc1", "final_layer_norm"),
        ("mbart", "cross", "decoder", "encoder_attn.out_proj", "encoder_attn_layer_norm", None),
        ("t5", "cross", "decoder", "layer.1.dropout", "layer.1.layer_norm", None),
        ("t5", "mlp", "encoder", "layer.1.dropout", "layer.1.layer_norm", None),
        ("mixtral", "mlp", "decoder", "mlp", "post_attention_layernorm", None),
        ("gptj", "mlp", "decoder", "mlp.dropout", "ln_1", None),
    ],
)  # fmt: skip
def test_the_placement_table_of_the_literature(
    name: str, role: str, stack: str, h: str, r: str, norm: str | None
) -> None:
    found_h, (found_r, end), found_norm = one(name, role, stack)
    (block,) = [s.path for s in discover(FAMILIES[name].build()).select("block", layers=(0,), stack=stack)]
    assert found_h == f"{block}.{h}"
    assert (found_r, end) == (f"{block}.{r}", "input")
    assert found_norm == (f"{block}.{norm}" if norm else None)


@pytest.mark.parametrize("name", ["gptj", "phi", "cohere", "codegen", "falcon", "gpt_neox"])
def test_parallel_blocks_are_known(name: str) -> None:
    assert all(sub.is_parallel for sub in discover(FAMILIES[name].build()).sublayers)


def test_multipliers_and_output_norms_are_known() -> None:
    assert {sub.scale for sub in discover(FAMILIES["granite"].build()).sublayers} == {0.5}
    for name in ("gemma2", "gemma3", "olmo2"):
        assert all(sub.output_norm for sub in discover(FAMILIES[name].build()).sublayers)


def test_what_cannot_be_established_is_reported_with_the_reason() -> None:
    """RWKV multiplies the output of its last linear by a gate: there is no `h` that is simply added."""
    anatomy = discover(FAMILIES["rwkv"].build())
    assert anatomy.sublayers == ()
    assert "rwkv.blocks.0 mlp" in anatomy.unknown_sublayers[0]
    assert "aten.mul" in anatomy.unknown_sublayers[0]


def test_a_bias_that_the_block_adds_itself_is_no_part_of_a_plain_sum() -> None:
    """GPT-NeoX-Japanese adds the bias of its last output projection with the residual: h + r is not what it returns."""
    model = _build("gpt_neox_japanese", "causal", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4})
    anatomy = discover(model)
    (why,) = anatomy.unknown_sublayers
    assert "gpt_neox_japanese.layers.1 attn" in why
    assert "adds a constant or parameter of its own" in why
    assert [(sub.layer, sub.role) for sub in anatomy.sublayers] == [(0, "attn"), (0, "mlp"), (1, "mlp")]
