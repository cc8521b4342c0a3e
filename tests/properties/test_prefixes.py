"""Prefixes against equations that the tests write out, in every mask, kernel and shape; and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import budwood.core as core
from adapted import adapted, anatomy_of, close, logits, weighted
from budwood.core import Method, Route, Skip, Stack, Sum
from budwood.errors import BadConfig, BudwoodError, NoSuchSite, WrongOrder
from budwood.methods import AdapterP, LoRA, PrefixTuning, PromptTuning, PTuningV2
from families import FAMILIES, PAD
from properties.test_prompts import several, under

ROWS: dict[str, Any] = {"width": None, "init": "random", "length": 3}
ROTARY = ("llama", "qwen3", "gemma", "gpt_neox", "qwen3_moe", "phi3")
SHARED = {"albert": 1}
"""Families whose layers share their weights, with how many modules of attention they have."""


@pytest.mark.parametrize("positions", ["kept", "shifted"])
@pytest.mark.parametrize("family", [*ROTARY, "gpt2", "gpt_bigcode"])
def test_a_decoder_is_the_base_with_the_rows_in_its_cache(family: str, positions: Any) -> None:
    model, batch = several(family, faq=PrefixTuning(**ROWS, positions=positions))
    rows = core.named_parameters(model, "faq")
    sites = [site for site in core.adapters(model)["faq"].sites if site.call is not None]
    ids = batch["input_ids"][:1]
    cache = DynamicCache()
    for layer, site in enumerate(sites):
        cache.update(rows[f"{site.path}.PK"].detach()[None], rows[f"{site.path}.PV"].detach()[None], layer)
    begin = 3 if positions == "shifted" else 0
    places = torch.arange(begin, begin + ids.shape[1])[None]
    with torch.no_grad():
        expected = FAMILIES[family].build()(input_ids=ids, past_key_values=cache, position_ids=places).logits
        assert close(model(input_ids=ids).logits, expected, 1e-5)


def test_an_encoder_is_the_gated_sum_of_two_attentions() -> None:
    """(1 - g) softmax(q k^T) v + g softmax(q P_K^T) P_V, g the rows' part of the sum (He et al. 2022, equation 7)."""
    model, batch = several("bert", faq=PTuningV2(length=4, init="random", std=1.0))
    path = "bert.encoder.layer.0.attention.self"
    module = model.get_submodule(path)
    seen: dict[str, Tensor] = {}
    for name in ("query", "key", "value"):
        part = module.get_submodule(name)
        part.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out.unflatten(-1, (4, -1))}))
    module.register_forward_hook(lambda _, args, out: seen.update(out=out[0]))
    with torch.no_grad():
        model(**batch)
        q, k, v = (seen[name].transpose(1, 2) for name in ("query", "key", "value"))
        PK, PV = (core.named_parameters(model, "faq")[f"{path}.{key}"] for key in ("PK", "PV"))
        hidden = (batch["attention_mask"] == 0)[:, None, None, :]
        text = (q @ k.transpose(2, 3) / 8**0.5).masked_fill(hidden, float("-inf"))
        rows = q @ PK.transpose(1, 2) / 8**0.5
        gate = torch.sigmoid(rows.logsumexp(-1) - text.logsumexp(-1)).unsqueeze(-1)
        expected = (1 - gate) * (text.softmax(-1) @ v) + gate * (rows.softmax(-1) @ PV)
    assert close(seen["out"], expected.transpose(1, 2).flatten(2), 1e-6)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3", "gpt_neo", "modernbert"])
def test_rows_are_seen_from_behind_the_window(family: str) -> None:
    """Windows of 4 tokens, texts of 12."""
    for width in (None, 8):
        model, _ = several(family, faq=PrefixTuning(length=3, width=width))
        out = model(input_ids=torch.arange(5, 17)[None]).logits
        out[0, -1].square().sum().backward()
        for site in core.adapters(model)["faq"].sites:
            for key, parameter in core.delta_at(model, site, "faq").named_parameters():
                assert parameter.grad is not None
                if key in ("PK", "PV"):
                    assert (parameter.grad.abs().sum(dim=(0, 2)) > 0).all()


CASES = (
    "llama",
    "gpt_bigcode",
    "deepseek_v2",
    "gemma",
    "qwen3",
    "albert",
    "t5",
    "bart",
    "bert",
    "gemma2",
    "mbart",
    "falcon",
)


@pytest.mark.parametrize("family", CASES)
def test_every_row_learns_at_every_site(family: str) -> None:
    model, batch = several(family, faq=PrefixTuning(**ROWS))
    sites = core.adapters(model)["faq"].sites
    assert len(sites) == SHARED.get(family, 6 if FAMILIES[family].kind == "encoder-decoder" else 2)
    weighted(logits(model, batch)).backward()
    rows = core.named_parameters(model, "faq")
    for site in sites:
        for key in ("PK", "PV"):
            gradient = rows[f"{site.path}.{key}"].grad
            assert gradient is not None
            assert (gradient.abs().sum(dim=2) > 0).all()


def test_shapes_are_those_of_the_keys_that_reach_the_softmax() -> None:
    for family, heads, key, value in (
        ("llama", 2, 8, 8), ("gpt_bigcode", 1, 8, 8), ("deepseek_v2", 4, 12, 6), ("qwen3", 2, 8, 8), ("t5", 4, 8, 8),
    ):  # fmt: skip
        model, _ = several(family, faq=PrefixTuning(**ROWS))
        for name, parameter in core.named_parameters(model, "faq").items():
            assert parameter.shape == (heads, 3, key if name.endswith("PK") else value)


@pytest.mark.parametrize("family", ["t5", "bart", "mbart"])
def test_one_side_or_one_kind_of_an_encoder_decoder(family: str) -> None:
    for method, kinds in (
        (PrefixTuning(**ROWS, stacks=("decoder",)), {("decoder", "attn"), ("decoder", "cross")}),
        (PrefixTuning(**ROWS, stacks=("encoder",)), {("encoder", "attn")}),
        (PrefixTuning(**ROWS, targets=("cross",)), {("decoder", "cross")}),
        (PrefixTuning(**ROWS, targets=("attn",), layers=(1,)), {("encoder", "attn"), ("decoder", "attn")}),
    ):
        model, batch = several(family, faq=method)
        sites = core.adapters(model)["faq"].sites
        assert {(site.stack, site.role) for site in sites} == kinds
        assert method.layers is None or {site.layer for site in sites} == {1}
        weighted(logits(model, batch)).backward()
        assert all(p.grad is not None and p.grad.any() for p in core.parameters(model, "faq"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "mistral"])
def test_masks_of_every_kind(family: str) -> None:
    model, batch = several(family, faq=PrefixTuning(**ROWS))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    visible = mask[:, None, None, :].bool().expand(-1, 1, 7, -1)
    if FAMILIES[family].kind == "decoder":
        visible = visible & torch.ones(7, 7, dtype=torch.bool).tril()
    if family == "mistral":
        visible = visible & torch.ones(7, 7, dtype=torch.bool).triu(-3)
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = logits(model, batch)
        for whole in (visible, added):
            assert close(model(input_ids=ids, attention_mask=whole).logits[mask.bool()], expected, 1e-5)
        full = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert close(model(input_ids=ids).logits, full, 1e-6)


@pytest.mark.parametrize("variant", ["prefix-tuning", "prefix-rows"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3", "t5"])
def test_generation_in_other_ways(family: str, variant: str) -> None:
    model, _ = adapted(family, variant, perturbed=True)
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]]).repeat(2, 1)
    ids[1, :3] = PAD
    generate: Any = model.generate
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    settings["attention_mask"] = (ids != PAD).long()
    for beams in (1, 3):
        expected = generate(ids, num_beams=beams, **settings)
        assert torch.equal(generate(ids, num_beams=beams, cache_implementation="static", **settings), expected)
    one = settings | {"attention_mask": torch.ones(1, 10, dtype=torch.int64)}
    assert torch.equal(generate(ids[:1], prompt_lookup_num_tokens=3, **one), generate(ids[:1], **one))
    cached = [generate(ids, use_cache=use, return_dict_in_generate=True, **settings) for use in (True, False)]
    assert torch.equal(cached[0].sequences, cached[1].sequences)
    if family != "t5":
        assert cached[0].past_key_values.get_seq_length() == 15  # the text alone


@pytest.mark.parametrize("variant", ["prefix-tuning", "prefix-rows", "p-tuning-v2", "prompt-tuning", "p-tuning-mlp"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart", "gemma2", "mistral"])
def test_kernels_agree(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    eager = copy.deepcopy(model)
    core.detach(eager, "faq")
    eager.set_attn_implementation("eager")  # type: ignore[operator]
    core.attach(eager, core.adapters(model)["faq"].method, name="faq", anatomy=anatomy_of(family))
    own = core.named_parameters(eager, "faq")
    with torch.no_grad():
        for key, parameter in core.named_parameters(model, "faq").items():
            own[key].copy_(parameter)
        found = eager(**batch, output_attentions=True, output_hidden_states=True)
        assert close(logits(model, batch), logits(eager, batch), 1e-5)
    if FAMILIES[family].kind != "encoder-decoder":
        length = core.adapters(model)["faq"].method.to_dict()["length"]
        queries = 7 if "prefix" in variant or "v2" in variant else 7 + length
        assert {tuple(a.shape[-2:]) for a in found.attentions} == {(queries, 7 + length)}
        assert {states.shape[1] for states in found.hidden_states} == {7}


def test_another_kernel_is_noticed() -> None:
    for family, variant in (("llama", "prefix-tuning"), ("bert", "p-tuning-v2"), ("t5", "prefix-tuning")):
        model, batch = adapted(family, variant)
        model.set_attn_implementation("eager")  # type: ignore[operator]
        with pytest.raises(WrongOrder, match="ran without its prefix.*detach, change it with set_attn_implementation"):
            model(**batch)
        with core.using(model, None), torch.no_grad():
            assert close(logits(model, batch), logits(FAMILIES[family].build(), batch), 1e-5)
        core.detach(model, "faq")
        assert model.config._attn_implementation == "eager"


def test_another_kernel_is_noticed_after_an_error() -> None:
    model, batch = several("llama", faq=PrefixTuning(**ROWS, layers=(0,)))
    inside = model.get_submodule("model.layers.0.self_attn.o_proj")

    def fail(*_: Any) -> None:
        raise RuntimeError("on purpose")

    handle = inside.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        model(**batch)
    handle.remove()
    model.set_attn_implementation("eager")  # type: ignore[operator]
    with pytest.raises(WrongOrder, match="ran without its prefix"):
        model(**batch)


@pytest.mark.parametrize("name", ["flash_attention_2", "flex_attention"])
def test_kernels_that_take_no_rows_are_refused(name: str) -> None:
    model = FAMILIES["llama"].build()
    model.config._attn_implementation_internal = name
    with pytest.raises(WrongOrder, match=f"attention implementation is '{name}'.*set_attn_implementation\\('sdpa'\\)"):
        core.attach(model, PrefixTuning(**ROWS), name="faq", anatomy=anatomy_of("llama"))
    assert core.adapters(model) == {}


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "gpt_neo"])
@pytest.mark.parametrize("method", [PrefixTuning(**ROWS), PrefixTuning(length=2, width=4), PromptTuning(length=2)])
def test_the_base_is_saved_as_it_was(family: str, method: Method, tmp_path: Path) -> None:
    model = FAMILIES[family].build()
    config, state = model.config.to_dict(), {key: value.clone() for key, value in model.state_dict().items()}
    core.attach(model, method, name="faq", anatomy=anatomy_of(family))
    assert model.config.to_dict() == config
    assert core.base_state_dict(model).keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in core.base_state_dict(model).items())
    model.save_pretrained(tmp_path, state_dict=core.base_state_dict(model))
    again = type(model).from_pretrained(tmp_path).eval()
    assert {key: value for key, value in again.config.to_dict().items() if key != "_name_or_path"} == {
        key: value for key, value in model.config.to_dict().items() if key != "_name_or_path"
    }
    with torch.no_grad(), core.using(model, None):
        batch = FAMILIES[family].batch()
        assert close(again(**batch).logits, model(**batch).logits, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "mistral", "falcon", "gpt_neo", "bart"])
def test_plans_of_several(family: str) -> None:
    model, batch = several(
        family,
        a=PrefixTuning(**ROWS),
        b=PTuningV2(length=5),
        c=LoRA(rank=2, targets=("attn.o?", "attn.qkv?", "attn.v?")),
        d=AdapterP(size=4),
    )
    parts = (
        "a",
        None,
        "b",
        Stack(("a", "b")),
        Stack(("a", "c", "d")),
        Stack(("d", Route(("a", "b"), torch.tensor([0, 1] * 3)))),
    )
    batch = {key: value[:1].repeat(6, 1) for key, value in batch.items()}
    routed = under(model, batch, Route(parts, torch.arange(6)))
    for number, plan in enumerate((*parts[:5], Stack(("d", "b")))):
        assert close(routed[number], under(model, batch, plan)[number], 1e-5)
    assert close(under(model, batch, Stack(("a", "b"))), under(model, batch, Stack(("b", "a"))), 1e-5)
    skipped = under(model, batch, Skip("a", (0,)))
    assert not close(skipped, under(model, batch, "a"), 1e-4)
    assert close(under(model, batch, Skip("a", (0, 1))), under(model, batch, None), 1e-7)
    with pytest.raises(BadConfig, match="'a' cannot be a part of Sum: it stands beside the text"):
        core.activate(model, Sum(("a", "c")))
    core.detach(model, "a")
    assert close(under(model, batch, "b"), routed[2:3].expand(6, *routed.shape[1:]), 1e-5)


def test_skipped_layers_are_those_without_a_prefix() -> None:
    model, batch = several("t5", a=PrefixTuning(**ROWS))
    only, _ = several("t5", a=PrefixTuning(**ROWS, layers=(1,)))
    own, rows = core.named_parameters(only, "a"), core.named_parameters(model, "a")
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(rows[key])
    assert close(under(model, batch, Skip("a", (0,))), under(only, batch, "a"), 1e-6)


REFUSED: list[tuple[str, Method, type[BudwoodError], str]] = [
    (
        "gpt2",
        PrefixTuning(**ROWS | {"length": 64}, positions="shifted"),
        BadConfig,
        "a prompt of 64 leaves no room for text",
    ),
    ("llama", PrefixTuning(length=2, ids=(5, 96)), BadConfig, "ids hold 96, and the vocabulary is 96 tokens"),
    (
        "t5",
        PrefixTuning(stacks=("decoders",)),
        NoSuchSite,
        "stacks name 'decoders'; stacks with attention here: encoder, dec",
    ),
    ("llama", PrefixTuning(targets=("cross",)), NoSuchSite, "cross"),
    ("mamba", PrefixTuning(), NoSuchSite, "has no attention for a prefix"),
    ("gpt2", PrefixTuning(bias="looked-up"), BadConfig, "looks no position bias up; use bias=zero"),
]


@pytest.mark.parametrize(("family", "method", "error", "match"), REFUSED, ids=[match[:40] for *_, match in REFUSED])
def test_mistakes(family: str, method: Method, error: type[BudwoodError], match: str) -> None:
    model = FAMILIES[family].build()
    with pytest.raises(error, match=match):
        core.attach(model, method, name="p", anatomy=anatomy_of(family))
    assert core.adapters(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert model.config._attn_implementation == FAMILIES[family].build().config._attn_implementation


def test_a_text_that_starts_behind_the_last_position() -> None:
    for positions, works in (("kept", True), ("shifted", False)):
        model, _ = several("gpt2", faq=PrefixTuning(**ROWS, positions=positions))  # type: ignore[arg-type]
        ids = torch.full((1, 62), 5)
        if works:
            assert model(input_ids=ids).logits.shape == (1, 62, 96)
        else:
            with pytest.raises(
                BadConfig,
                match="starts at position 3 ends at 64, and the model has 64 positions; cut the text by 1 tok",
            ):
                model(input_ids=ids)
            assert model(input_ids=ids[:, :61]).logits.shape == (1, 61, 96)
