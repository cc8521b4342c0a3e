"""Prefixes in families that compute attention by themselves: a stand-in for their cache puts the rows in front."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import budwood.core as core
from budwood.core import Method, Route, Skip, Stack
from budwood.errors import BadConfig, NoSuchSite, WrongOrder
from budwood.methods import LoRA, PrefixTuning, PTuningV2
from budwood.methods.prefix import Rows
from families import BART, FAMILIES, LLAMA, PAD, _decoder, _encoder, _family

P = 3
OLD_FALCON: dict[str, Any] = {**LLAMA, "new_decoder_architecture": False, "bias": True, "ffn_hidden_size": 48}
CASES = {name: FAMILIES[name] for name in ("gptj", "gpt_neo", "codegen", "falcon", "mpt", "bloom")} | {
    case.name: case
    for case in (
        _decoder("gpt_neo-wide", "gpt_neo", hidden_size=32, num_layers=2, num_heads=4, intermediate_size=48,
                 max_position_embeddings=64, window_size=32, attention_types=[[["global", "local"], 1]]),
        _decoder("falcon-one-head", "falcon", **OLD_FALCON, multi_query=True, alibi=False),
        _decoder("falcon-alibi", "falcon", **OLD_FALCON, multi_query=False, parallel_attn=False, alibi=True),
    )
}  # fmt: skip
"""The families of the fallback; Falcon as in 7B (one head of keys) and RW (ALiBi inside of the mask), too."""
ALIBI = ("mpt", "bloom", "falcon-alibi")
CACHED = {
    case.name: case
    for case in (
        _decoder("gpt_neox_japanese", "gpt_neox_japanese", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                 intermediate_multiple_size=2, max_position_embeddings=64),
        _decoder("xglm", "xglm", d_model=32, ffn_dim=48, num_layers=2, attention_heads=4, max_position_embeddings=64),
        _encoder("megatron-bert", "megatron-bert", **LLAMA),
        _encoder("roformer", "roformer", **LLAMA, embedding_size=32),
        _encoder("rembert", "rembert", **LLAMA, input_embedding_size=24, output_embedding_size=24),
        _family("mvp", "mvp", "encoder-decoder", "seq2seq", **BART),
    )
}  # fmt: skip
"""Others that show themselves to take a stand-in for their cache."""
PLAIN = PTuningV2(length=P, init="random", std=1.0)


def prefixed(case: str, method: Method = PLAIN, name: str = "a") -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """A tiny model with a prefix, and a batch."""
    family = (CASES | CACHED)[case]
    model = family.build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        core.attach(model, method, name=name)
    return model, family.batch()


def rows_of(model: nn.Module, name: str = "a") -> dict[str, Rows]:
    _, adapter = core.adapter_of(model, name)
    found = {s.path: core.delta_at(model, s, name) for s in adapter.sites if s.call is not None}
    return {path: delta for path, delta in found.items() if isinstance(delta, Rows)}


def logits(model: nn.Module, **batch: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize("case", [case for case in CASES if case != "gpt_neo"])
def test_logits_are_those_of_peft(case: str) -> None:
    """GPT-Neo's narrow window is left out: there PEFT's prefix leaves the window, and ours does not."""
    from peft import PrefixTuningConfig, get_peft_model

    positions = "kept" if case in ("mpt", "bloom") else "shifted"
    method = replace(PLAIN, positions=positions, bias="looked-up" if case in ALIBI else "zero")
    model, batch = prefixed(case, method)
    mine = list(rows_of(model).values())
    heads, width = mine[0].PK.shape[0], mine[0].PK.shape[2]
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=P, num_layers=2, num_attention_heads=heads, token_dim=heads * width
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = get_peft_model(CASES[case].build(), config).eval()
    table = torch.stack([rows for delta in mine for rows in (delta.PK, delta.PV)])  # [2 L, H, P, D]
    with torch.no_grad():
        peer.prompt_encoder["default"].embedding.weight.copy_(table.permute(2, 0, 1, 3).reshape(P, -1))
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(logits(model, **batch)[real], logits(peer, **batch)[real], atol=1e-6, rtol=0)


def by_hand(case: str, module: Any, x: Tensor, delta: Rows, alibi: Tensor) -> Tensor:
    """(1 - l) Attn(q, k, v) + l softmax(q P_K) P_V for one text without padding: [1, S, H D]."""
    if case == "gpt_neo":
        q, k, v = (module._split_heads(p(x), 4, 8) for p in (module.q_proj, module.k_proj, module.v_proj))
    elif case == "bloom":
        q, k, v = module._reshape(module.query_key_value(x))
    else:
        q, k, v = (part.reshape(1, -1, 4, 8).transpose(1, 2) for part in module.Wqkv(x).chunk(3, dim=2))
    scale = 1.0 if case == "gpt_neo" else 1 / math.sqrt(8)
    places = torch.arange(x.shape[1])
    apart = places[:, None] - places[None, :]
    far = apart >= 4 if case == "gpt_neo" and module.attention_type == "local" else torch.zeros_like(apart).bool()
    text = q @ k.transpose(-1, -2) * scale - alibi[:, None, None] * apart
    text = text.masked_fill((apart < 0) | far, -torch.inf)
    front = q @ delta.PK.transpose(-1, -2) * scale
    gate = torch.sigmoid(front.logsumexp(-1) - text.logsumexp(-1)).unsqueeze(-1)
    out = (1 - gate) * (text.softmax(-1) @ v) + gate * (front.softmax(-1) @ delta.PV)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("case", ["gpt_neo", "mpt", "bloom"])
def test_each_module_is_the_gated_sum(case: str) -> None:
    """Rows are as near to every token as the token itself, in a local window and under ALiBi, too."""
    model, batch = prefixed(case)
    slopes = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625]) * float(case != "gpt_neo")
    seen: list[tuple[str, Tensor, Tensor, Tensor | None]] = []
    for path in rows_of(model):
        module = model.get_submodule(path)
        module.register_forward_hook(
            lambda m, a, k, y, path=path: seen.append(
                (path, a[0] if a else k["hidden_states"], y[0], k.get("residual"))
            ),
            with_kwargs=True,
        )
    logits(model, input_ids=batch["input_ids"][:1])
    assert len(seen) == 2
    for path, x, y, residual in seen:
        module: Any = model.get_submodule(path)
        with torch.no_grad():
            inner = by_hand(case, module, x, rows_of(model)[path], slopes)
            expected = module.dense(inner) + residual if residual is not None else module.out_proj(inner)
        torch.testing.assert_close(y, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES | CACHED)
def test_every_row_learns(case: str) -> None:
    model, batch = prefixed(case)
    model(**batch).logits.square().sum().backward()
    for delta in rows_of(model).values():
        for rows in (delta.PK, delta.PV):
            assert rows.grad is not None
            assert bool((rows.grad.abs().amax(dim=-1) > 0).all())


@pytest.mark.parametrize("case", CASES | CACHED)
def test_detaching_leaves_nothing_behind(case: str) -> None:
    family = (CASES | CACHED)[case]
    bare = family.build()
    batch, before = family.batch(), dict(bare.named_buffers())
    model, _ = prefixed(case)
    assert not torch.equal(logits(model, **batch), logits(bare, **batch))
    with core.using(model, None):
        assert torch.equal(logits(model, **batch), logits(bare, **batch))
    core.detach(model, "a")
    assert hooks(model) == hooks(bare)
    assert torch.equal(logits(model, **batch), logits(bare, **batch))
    after = dict(model.named_buffers())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.state_dict().keys() == bare.state_dict().keys()
    assert all(set(vars(a)) == set(vars(b)) for a, b in zip(model.modules(), bare.modules(), strict=True))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("case", [*CASES, "gpt_neox_japanese", "xglm", "mvp"])
def test_generation_with_a_cache_is_that_without(case: str, beams: int) -> None:
    model, batch = prefixed(case)
    ids, mask = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)  # pads at the left
    kept, anew = (_generated(model, ids, mask, num_beams=beams, use_cache=use) for use in (True, False))
    assert torch.equal(kept.sequences, anew.sequences)
    for one, other in zip(kept.scores, anew.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    core.detach(model, "a")
    plain = _generated(model, ids, mask, num_beams=beams)
    assert not torch.allclose(plain.scores[-1], kept.scores[-1], atol=1e-3)


@pytest.mark.parametrize("case", ["gptj", "gpt_neo-wide", "codegen", "falcon", "falcon-one-head", "bloom"])
def test_generation_with_a_static_cache(case: str) -> None:
    """Others hold no static cache, or, as GPT-Neo's narrow window, mean other tokens with one."""
    model, batch = prefixed(case)
    ids, mask = batch["input_ids"].flip(1), batch["attention_mask"].flip(1)
    kept, static = (_generated(model, ids, mask, cache_implementation=kind) for kind in (None, "static"))
    for one, other in zip(kept.scores, static.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def _generated(model: PreTrainedModel, ids: Tensor, mask: Tensor, **settings: Any) -> Any:
    generate: Any = model.generate
    return generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=PAD,
        return_dict_in_generate=True, output_scores=True, disable_compile=True, **settings,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_cache_holds_the_text_alone(case: str) -> None:
    model, batch = prefixed(case)
    ids = batch["input_ids"][:1]
    whole = logits(model, input_ids=ids)
    with torch.no_grad():
        first = model(input_ids=ids[:, :4], use_cache=True)
        assert first.past_key_values.get_seq_length() == 4
        second = model(input_ids=ids[:, 4:], past_key_values=first.past_key_values)
    assert second.past_key_values.get_seq_length() == 7
    assert all(layer.keys.shape[2] == 7 for layer in second.past_key_values.layers)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_left_padding_changes_nothing(case: str) -> None:
    model, batch = prefixed(case)
    ids = batch["input_ids"][1:, :5]
    padded = torch.cat([torch.full((1, 2), PAD), ids], dim=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    given = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if case not in ("mpt", "bloom") else {}
    left = logits(model, input_ids=padded, attention_mask=mask, **given)
    torch.testing.assert_close(left[:, 2:], logits(model, input_ids=ids), atol=2e-6, rtol=0)


@pytest.mark.parametrize("bias", ["zero", "looked-up"])
@pytest.mark.parametrize("case", CASES | CACHED)
def test_rows_of_a_batch_have_their_own_prefix(case: str, bias: str) -> None:
    if bias == "looked-up" and case not in ALIBI:
        pytest.skip("no position bias")
    model, batch = prefixed(case, replace(PLAIN, bias=bias))
    core.attach(model, replace(PLAIN, length=5), name="b")
    each = {}
    for plan in ("a", "b", None):
        with core.using(model, plan):
            each[plan] = logits(model, **batch)
    for rows, plans in (([0, 1], ("a", "b")), ([1, 0], ("a", "b")), ([0, 1], ("a", None)), ([0, 1], (None, "b"))):
        with core.using(model, Route(plans, torch.tensor(rows))):
            routed = logits(model, **batch)
        for row, which in enumerate(rows):
            torch.testing.assert_close(routed[row], each[plans[which]][row], atol=2e-6, rtol=0)


@pytest.mark.parametrize("bias", ["looked-up", "adapterhub"])
def test_rows_count_no_other_prefix_in_a_batch(bias: str) -> None:
    """T5 looks the distance to rows up: to those of the prefix at hand, whatever stands beside them in other rows."""
    model, batch = FAMILIES["t5"].build(), FAMILIES["t5"].batch()
    for name, length in (("a", P), ("b", 5)):
        core.attach(model, replace(PLAIN, length=length, bias=bias, stacks=("encoder",)), name=name)
    with core.using(model, Route(("a", "b"), torch.tensor([0, 1]))):
        routed = logits(model, **batch)
    for row, name in enumerate("ab"):
        with core.using(model, name):
            torch.testing.assert_close(routed[row], logits(model, **batch)[row], atol=2e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_two_prefixes_are_one_of_both(case: str) -> None:
    """And one that is skipped in a layer is not there."""
    model, batch = prefixed(case)
    core.attach(model, PLAIN, name="b")
    with core.using(model, Stack(("a", "b"))):
        stacked = logits(model, **batch)
    with core.using(model, Skip("a", (0, 1))):
        skipped = logits(model, **batch)
    with core.using(model, None):
        assert torch.equal(skipped, logits(model, **batch))
    core.attach(model, replace(PLAIN, length=2 * P), name="both")
    with torch.no_grad():
        for path, delta in rows_of(model, "both").items():
            first, second = rows_of(model, "a")[path], rows_of(model, "b")[path]
            delta.PK.copy_(torch.cat([first.PK, second.PK], dim=1))
            delta.PV.copy_(torch.cat([first.PV, second.PV], dim=1))
    torch.testing.assert_close(logits(model, **batch), stacked, atol=2e-6, rtol=0)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_checkpointing_changes_no_gradient(case: str, reentrant: bool) -> None:
    gradients = []
    for checkpoints in (False, True):
        model, batch = prefixed(case, replace(PLAIN, dropout=0.4))
        model.train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(3)
        model(**batch).logits.square().sum().backward()
        gradients.append([p.grad for p in core.parameters(model, "a")])
    for once, again in zip(*gradients, strict=True):
        torch.testing.assert_close(once, again, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_lora_beside_it(case: str) -> None:
    """A prefix does what it does in a model into which LoRA was folded."""
    model, batch = prefixed(case)
    lora = LoRA(rank=2, init="gaussian", targets=("attn.q?", "attn.qkv?"))
    core.attach(model, lora, name="lora")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in core.parameters(model, "lora"):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    with core.using(model, Stack(("lora", "a"))):
        both = logits(model, **batch)
    core.merge(model, "lora")
    with core.using(model, "a"):
        torch.testing.assert_close(logits(model, **batch), both, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [case for case in CASES if case != "gpt_neo"])
def test_a_prefix_starts_as_words_in_front(case: str) -> None:
    """At positions -P to -1, so that the model behaves as if it had read them; GPT-Neo's positions start at P."""
    words = (11, 12, 13)
    positions = "shifted" if case == "gpt_neo-wide" else "kept"
    bias = "looked-up" if case in ALIBI else "zero"
    family = CASES[case]
    bare, ids = family.build(), family.batch()["input_ids"][:1]
    read = logits(bare, input_ids=torch.cat([torch.tensor([words]), ids], dim=1))[:, P:]
    method = PTuningV2(length=P, init="text", text="", ids=words, positions=positions, bias=bias)
    model, _ = prefixed(case, method)
    torch.testing.assert_close(logits(model, input_ids=ids), read, atol=2e-5, rtol=0)
    network, _ = prefixed(case, PrefixTuning(length=P, init="text", text="", ids=words, width=8, positions=positions,
                                             bias=bias))  # fmt: skip
    torch.testing.assert_close(logits(network, input_ids=ids), read, atol=1e-4, rtol=0)


def test_copies_have_a_prefix_of_their_own() -> None:
    model, batch = prefixed("gpt_neo")
    before = logits(model, **batch)
    copied, unpickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    core.detach(model, "a")
    for other in (copied, unpickled):
        assert torch.equal(logits(other, **batch), before)
        core.detach(other, "a")
        assert torch.equal(logits(other, **batch), logits(model, **batch))


@pytest.mark.parametrize("case", ["falcon", "mpt", "gptj"])
def test_a_module_without_a_mask_is_causal(case: str) -> None:
    """As its model would have made the mask, had it made one."""
    model, batch = prefixed(case)
    calls: list[tuple[Any, dict[str, Any]]] = []
    path, *_ = rows_of(model)
    module: nn.Module = model.get_submodule(path)
    listen = module.register_forward_pre_hook(lambda m, a, k: calls.append((a, k)), with_kwargs=True, prepend=True)
    logits(model, input_ids=batch["input_ids"][:1])
    listen.remove()
    ((args, kwargs),) = calls
    cache = {name: None for name in ("layer_past", "past_key_values") if name in kwargs}
    with torch.no_grad():
        full = [module(*args, **{**kwargs, **cache, "attention_mask": mask})[0] for mask in (None, _causal(case, 7))]
    torch.testing.assert_close(*full, atol=1e-6, rtol=0)


def _causal(case: str, length: int) -> Tensor:
    seen = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    if case == "gptj":
        return torch.zeros(1, 1, length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    return ~seen if case == "mpt" else seen


MISTAKES: list[tuple[str, Method, type[Exception], str]] = [
    (
        "deberta-v2",
        PLAIN,
        NoSuchSite,
        "DisentangledSelfAttention; 2 modules.*nor with a cache's keys.*use prompt",
    ),
    ("gptj", replace(PLAIN, bias="looked-up"), BadConfig, "h.0.attn looks no position bias up; use bias=zero"),
    ("bloom", replace(PLAIN, bias="adapterhub"), BadConfig, "self_attention looks no position bias up; use bias=zero"),
]


@pytest.mark.parametrize(("case", "method", "error", "words"), MISTAKES)
def test_refusals(case: str, method: Method, error: type[Exception], words: str) -> None:
    model = FAMILIES[case].build()
    with pytest.raises(error, match=words):
        core.attach(model, method, name="a")
    assert hooks(model) == hooks(FAMILIES[case].build())


def test_attention_that_cannot_grow_is_refused() -> None:
    """ProphetNet's mask is for its own keys and those of n-grams; eager Falcon adds ALiBi twice."""
    settings = {"hidden_size": 32, "max_position_embeddings": 64, "decoder_start_token_id": 0}
    for side in ("encoder", "decoder"):
        settings |= {f"{side}_ffn_dim": 48, f"num_{side}_layers": 1, f"num_{side}_attention_heads": 4}
    prophet = _family("prophetnet", "prophetnet", "encoder-decoder", "seq2seq", **settings).build()
    with pytest.raises(NoSuchSite, match="ProphetNetNgramSelfAttention. takes no more keys than its own.*use prompt"):
        core.attach(prophet, replace(PLAIN, stacks=("decoder",)), name="a")
    falcon = CASES["falcon-alibi"].build()
    falcon.config._attn_implementation_internal = "eager"
    with pytest.raises(NoSuchSite, match="does not attend to keys in front of its own as to others"):
        core.attach(falcon, PLAIN, name="a")


def test_other_attention_implementations_are_refused() -> None:
    model = CASES["gptj"].build()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(WrongOrder, match="attention implementation is 'flash_attention_2'.*set_attn_implementation"):
        core.attach(model, PLAIN, name="a")


def test_without_weights_nothing_is_measured() -> None:
    with torch.device("meta"):
        model = CASES["bloom"].build()
    adapter = core.attach(model, PLAIN, name="a")
    assert sum(p.numel() for p in core.parameters(model, "a")) == 2 * 2 * P * 32
    assert len(adapter.sites) == 2
    with pytest.raises(WrongOrder, match="before the model had weights; load the model, then attach"):
        model(torch.ones(1, 4, dtype=torch.int64, device="meta"))
