"""MAM and UniPELT: AdapterHub's numbers, UniPELT's equations written out, and what a gate must not see."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import budwood
import budwood.core as core
from adapted import close, logits, perturb, weighted
from budwood.errors import BadConfig, CannotFold
from budwood.interop import load, save
from budwood.methods import MAM, AdapterP, LoRA, Parallel, PrefixTuning, PromptTuning, UniPELT
from families import FAMILIES, PAD

FIXTURE = Path(__file__).parents[2].parent / "shared" / "fixtures" / "prompts" / "adapters_mam_bert.pt"
UNIPELT = UniPELT(length=3, width=None, size=4, rank=2, gate="separate")


@pytest.mark.skipif(not FIXTURE.is_file(), reason="needs the shared fixtures")
@pytest.mark.parametrize("case", ["right", "left", "nomask"])
def test_mam_is_adapterhubs(case: str) -> None:
    data = torch.load(FIXTURE, weights_only=True)
    config = transformers.BertConfig.from_dict(json.loads(data["base_config"]))
    model = transformers.BertForSequenceClassification(config).eval()
    model.load_state_dict(data["base_state_dict"], strict=False)
    core.attach(model, MAM(length=5, width=24, reduction=4, init="random"), name="a")
    own = core.named_parameters(model, "a")
    theirs = _of_adapterhub(data["adapter_state_dict"])
    assert theirs.keys() == own.keys()
    with torch.no_grad():
        for key, parameter in own.items():
            parameter.copy_(theirs[key])
    given = data["cases"][case]
    out = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).logits
    torch.testing.assert_close(out, given["logits"], rtol=0, atol=1e-5)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    expected = _of_adapterhub(given["grads"])
    for key, parameter in own.items():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected[key], rtol=0, atol=1e-4)


def _of_adapterhub(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """AdapterHub's names of a prefix and an adapter at the feed-forward, as ours; the prefix's W_2 cut by layer."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".self_prefix." in name:
            first, letter = "bert.encoder.layer.0.attention.self", name.split(".self_prefix.")[1]
            if letter.startswith("control_trans.2"):
                for layer, part in enumerate(tensor.chunk(3)):
                    key = {"weight": "W2", "bias": "b2"}[letter.rpartition(".")[2]]
                    found[f"bert.encoder.layer.{layer}.attention.self.{key}"] = part
            else:
                key = {"wte.weight": "E", "control_trans.0.weight": "W1", "control_trans.0.bias": "b1"}[letter]
                found[f"{first}.network.{key}"] = tensor
        elif ".adapters.a." in name:
            place, letter = name.split(".adapters.a.")
            key = ("W_" if letter.endswith("weight") else "b_") + ("d" if "down" in letter else "u")
            found[f"{place}.dropout.A.{key}"] = tensor
        else:
            found[name] = tensor
    return found


def unipelt(family: str, method: UniPELT = UNIPELT) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny model with UniPELT, moved away from where it starts, and its parameters by name."""
    torch.manual_seed(0)
    model = FAMILIES[family].build().eval()
    core.attach(model, method, name="a")
    perturb(model, "a", scale=0.5)
    return model, dict(core.named_parameters(model, "a"))


def _gate(h: Tensor, own: dict[str, Tensor], path: str, mask: Tensor) -> Tensor:
    """[B, 1, n]: the mean of sigmoid(h W_g^T + b_g) over the tokens of the mask."""
    each = torch.sigmoid(h @ own[f"{path}.W_g"].T + own[f"{path}.b_g"])
    return (each * mask[:, :, None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]


def _heads(x: Tensor, count: int) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def by_hand(model: Any, own: dict[str, Tensor], batch: dict[str, Tensor], over: str) -> Tensor:
    """UniPELT on BERT: the model's forward written out."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    counted = mask.float() if over == "text" else torch.ones_like(mask, dtype=torch.float32)
    hidden = (1 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
    h = model.bert.embeddings(input_ids=ids)
    for number, layer in enumerate(model.bert.encoder.layer):
        path = f"bert.encoder.layer.{number}"
        site, heads = f"{path}.attention.self", model.config.num_attention_heads
        inside = layer.attention.self

        def projected(linear: nn.Linear, key: str, x: Tensor) -> Tensor:
            update = x @ own[f"{key}.A"].T @ own[f"{key}.B"].T * (UNIPELT.alpha / UNIPELT.rank)
            return F.linear(x, linear.weight, linear.bias) + _gate(x, own, key, counted) * update

        q = _heads(projected(inside.query, f"{site}.query", h), heads)
        k = _heads(F.linear(h, inside.key.weight, inside.key.bias), heads)
        v = _heads(projected(inside.value, f"{site}.value", h), heads)
        gates = _gate(h, own, site, counted)[..., None]  # [B, 1, 2, 1]
        k = torch.cat([gates[:, :, :1] * own[f"{site}.PK"], k], dim=2)
        v = torch.cat([gates[:, :, 1:] * own[f"{site}.PV"], v], dim=2)
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + F.pad(hidden, (UNIPELT.length, 0))
        context = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        after, out = layer.attention.output, layer.output
        r = after.LayerNorm(h + after.dense(context))
        f = F.linear(F.gelu(layer.intermediate.dense(r)), out.dense.weight, out.dense.bias)
        norm = (out.LayerNorm.weight.shape, out.LayerNorm.weight, out.LayerNorm.bias, out.LayerNorm.eps)
        z, key = F.layer_norm(f + r, *norm), f"{path}.output.dropout"
        narrow = F.relu(z @ own[f"{key}.A.W_d"].T + own[f"{key}.A.b_d"])
        f = f + _gate(z, own, key, counted) * (narrow @ own[f"{key}.A.W_u"].T + own[f"{key}.A.b_u"])
        h = F.layer_norm(f + r, *norm)
    pooled: Tensor = model.bert.pooler(h)
    return F.linear(pooled, own["classifier.weight"], own["classifier.bias"])


@pytest.mark.parametrize("over", ["text", "all"])
def test_unipelt_is_its_equations(over: Any) -> None:
    model, own = unipelt("bert-classify", UniPELT(**{**vars(UNIPELT), "gate_over": over}))
    batch = FAMILIES["bert-classify"].batch()
    assert not batch["attention_mask"].all()
    leaves = list(own.values())
    out = model(**batch).logits
    found = torch.autograd.grad(weighted(out), leaves)
    with core.using(model, None):
        expected = by_hand(model, own, batch, over)
        gradients = torch.autograd.grad(weighted(expected), leaves)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    for one, other in zip(found, gradients, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("gate", ["shared", "separate"])
def test_a_decoders_tokens_have_gates_of_their_own(gate: Any, kernel: str) -> None:
    """GPT-2, written out: every query scales the prefix's logits and values by its own gates."""
    model: Any = FAMILIES["gpt2"].build().eval()
    model.set_attn_implementation(kernel)
    core.attach(model, PrefixTuning(length=3, width=None, gate=gate), name="a")
    perturb(model, "a", scale=0.5)
    own = core.named_parameters(model, "a")
    ids = FAMILIES["gpt2"].batch()["input_ids"]
    h = model.transformer.wte(ids) + model.transformer.wpe(torch.arange(ids.shape[1]))
    future = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
    for number, block in enumerate(model.transformer.h):
        path, x = f"transformer.h.{number}.attn", block.ln_1(h)
        q, k, v = (_heads(part, model.config.n_head) for part in block.attn.c_attn(x).chunk(3, dim=-1))
        gates = torch.sigmoid(x @ own[f"{path}.W_g"].T + own[f"{path}.b_g"])[:, None]  # [B, 1, Q, n]
        rows = gates[..., :1] * (q @ own[f"{path}.PK"].transpose(1, 2))
        text = q @ k.transpose(2, 3)
        scores = torch.cat([rows, text], dim=-1) / q.shape[-1] ** 0.5 + F.pad(future, (3, 0))
        share = scores.softmax(-1)
        context = gates[..., -1:] * (share[..., :3] @ own[f"{path}.PV"]) + share[..., 3:] @ v
        h = h + block.attn.c_proj(context.transpose(1, 2).flatten(2))
        h = h + block.mlp(block.ln_2(h))
    expected = model.lm_head(model.transformer.ln_f(h))
    torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "modernbert", "albert", "t5", "bart", "llama"])
def test_padding_changes_nothing(family: str) -> None:
    """A row of a padded batch is that row alone; with gate_over=all it is not."""
    for over in ("text", "all"):
        model, _ = unipelt(family, UniPELT(**{**vars(_fitting(family)), "gate_over": over}))
        batch = FAMILIES[family].batch()
        batch = {key: batch[key] for key in batch if key != "labels"}
        mask = batch["attention_mask"].clone()
        mask[1, -2:] = 0
        ids = batch["input_ids"].masked_fill(mask == 0, PAD)
        kept = mask[1].bool()
        padded = model(**{**batch, "input_ids": ids, "attention_mask": mask}).logits[1]
        alone = model(**{key: value[1:2] for key, value in batch.items()}
                      | {"input_ids": ids[1:2, kept], "attention_mask": mask[1:2, kept]}).logits[0]  # fmt: skip
        if padded.shape != alone.shape:
            padded = padded[kept]
        assert close(padded, alone) == (over == "text")


def _fitting(family: str) -> UniPELT:
    fused = {"modernbert", "gpt2", "gpt_neox"}
    return UNIPELT if family not in fused else UniPELT(**{**vars(UNIPELT), "targets": ("attn.qkv",)})


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "t5", "bart"])
@pytest.mark.parametrize("method", ["unipelt", "mam"])
def test_generation_with_and_without_a_cache(family: str, method: str) -> None:
    model: Any
    if method == "unipelt":
        model, _ = unipelt(family)
    else:
        model = FAMILIES[family].build().eval()
        core.attach(model, MAM(length=3, width=5, size=4), name="a")
        perturb(model, "a")
    ids = FAMILIES[family].batch()["input_ids"][:1]
    for beams in (1, 2):
        found = [
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, num_beams=beams,
                           pad_token_id=PAD, eos_token_id=None, use_cache=use)
            for use in (True, False)
        ]  # fmt: skip
        assert torch.equal(*found)


def test_a_decoder_does_not_see_what_comes_later() -> None:
    model, _ = unipelt("llama")
    ids = FAMILIES["llama"].batch()["input_ids"][:1]
    whole, part = (model(input_ids=x, attention_mask=torch.ones_like(x)).logits for x in (ids, ids[:, :-2]))
    assert close(whole[:, :-2], part)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_has_the_mask_of_its_forward(reentrant: bool) -> None:
    """Two forwards with other masks, then one backward through both."""
    gradients: list[dict[str, Tensor]] = []
    for checkpoints in (False, True):
        model: Any = unipelt("bert", UniPELT(length=3, width=5, size=4))[0].train()
        if checkpoints:
            model.get_input_embeddings().register_forward_hook(lambda module, args, y: y.requires_grad_())
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        batch = FAMILIES["bert"].batch()
        other = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
        (weighted(logits(model, batch)) + 2 * weighted(logits(model, other))).backward()
        gradients.append(
            {n: p.grad.clone() for n, p in core.named_parameters(model, "a").items() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["prompt first", "unipelt first"])
@pytest.mark.parametrize("place", ["front", "after-first"])
def test_beside_a_prompt(order: str, place: Any) -> None:
    """The prompt's tokens are text to a gate, wherever the mask comes from, and padding stays out."""
    model: Any = FAMILIES["bert"].build().eval()
    methods = {"p": PromptTuning(length=2, place=place, init="random"), "u": UNIPELT}
    for name in "pu" if order == "prompt first" else "up":
        core.attach(model, methods[name], name=name)
    perturb(model, "u", scale=0.5)
    core.activate(model, core.Stack(("p", "u")))
    batch = FAMILIES["bert"].batch()
    padded = {"input_ids": F.pad(batch["input_ids"], (0, 3), value=PAD),
              "attention_mask": F.pad(batch["attention_mask"], (0, 3))}  # fmt: skip
    assert close(logits(model, batch), logits(model, padded))


def test_by_row() -> None:
    """Route: each row is what its plan alone makes of it."""
    model, _ = unipelt("bert")
    core.attach(model, MAM(length=2, width=None, size=4), name="b")
    perturb(model, "b")
    batch = FAMILIES["bert"].batch()
    plans: tuple[core.Plan, ...] = ("a", "b", None)
    rows = torch.arange(len(batch["input_ids"])) % 3
    with core.using(model, core.Route(plans, rows)):
        routed = model(**batch).logits
    for row, plan in enumerate(rows):
        with core.using(model, plans[plan]):
            assert close(routed[row], model(**batch).logits[row])


@pytest.mark.parametrize("method", [UniPELT(length=3, width=5, size=4), MAM(length=3, width=5, size=4)])
@pytest.mark.parametrize("family", ["bert-classify", "gpt2"])
def test_saved_collapsed(family: str, method: Any, tmp_path: Path) -> None:
    model = FAMILIES[family].build().eval()
    core.attach(model, method, name="a")
    perturb(model, "a")
    batch = FAMILIES[family].batch()
    before = logits(model, batch)
    save(model, tmp_path, name="a")
    again = FAMILIES[family].build().eval()
    load(again, tmp_path, name="b")
    found = core.adapters(again)["b"].method
    assert isinstance(found, type(method))
    assert found.width is None
    assert close(logits(again, batch), before)
    assert close(logits(copy.deepcopy(model), batch), before)


def test_nothing_is_left_behind() -> None:
    model, _ = unipelt("bert-classify")
    second, _ = UNIPELT, core.attach(model, UNIPELT, name="b")
    assert second
    core.detach(model, "a")
    batch = FAMILIES["bert-classify"].batch()
    model(**batch)
    core.detach(model, "b")
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not [key for m in model.modules() for key in vars(m) if key.startswith("budwood")]


def test_a_union_is_no_part_of_a_sum() -> None:
    assert not MAM().is_additive
    assert MAM().is_stackable
    assert MAM().rate == Parallel(size=512, scale=4.0).rate < PrefixTuning().rate
    model, _ = unipelt("bert")
    with pytest.raises(BadConfig, match="cannot be a part of Sum"):
        core.activate(model, core.Sum(("a",)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MAM(width=0), "prefix-tuning.width is 0"),
        (lambda: MAM(scale=0.0), "parallel: scale is 0"),
        (lambda: MAM(size=4, reduction=2), "size and reduction both"),
        (lambda: UniPELT(rank=0), "lora: rank is 0"),
        (lambda: UniPELT(length=0), "length is 0"),
        (lambda: LoRA(gate=True, dora=True), "leave dora and init=pissa out"),
        (
            lambda: core.attach(FAMILIES["llama"].build(), LoRA(gate=True, targets=("embed",)), name="a"),
            "no dora, bias, gate or pissa variant",
        ),
        (
            lambda: core.attach(FAMILIES["llama"].build(), UniPELT(targets=("attn.q", "mlp.down")), name="a"),
            r"lora and adapter-p both act at model.layers.0.mlp.down_proj.*choose other targets",
        ),
    ],
)  # fmt: skip
def test_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        make()


def test_a_mask_for_every_pair_of_tokens_is_refused() -> None:
    model, _ = unipelt("bert")
    batch = FAMILIES["bert"].batch()
    tokens = batch["input_ids"].shape[1]
    pairs = torch.ones(len(batch["input_ids"]), 1, tokens, tokens)
    with pytest.raises(BadConfig, match="averages over the text, and the attention_mask is"):
        model(input_ids=batch["input_ids"], attention_mask=pairs)


def test_a_block_by_itself_is_refused() -> None:
    model: Any = FAMILIES["bert"].build().eval()
    core.attach(model, AdapterP(size=4, gate=True, gate_over="text"), name="a")
    with pytest.raises(budwood.WrongOrder, match="a block ran without its encoder; call the model"):
        model.bert.encoder.layer[0](torch.randn(1, 4, model.config.hidden_size))


@pytest.mark.parametrize(("family", "targets"), [("bert", ("attn.q",)), ("gpt2", ("attn.q", "attn.v"))])
def test_a_gated_update_is_no_weight(family: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    model = FAMILIES[family].build()
    for name in "ab":
        core.attach(model, LoRA(gate=True, targets=targets), name=name)
    with pytest.raises(CannotFold):
        core.merge(model, "a")
    with pytest.raises(BadConfig, match="has a gate, so it is no sum of weights"):
        budwood.combine(model, ("a", "b"), name="c")
    save(model, tmp_path, name="a")
    assert load(FAMILIES[family].build(), tmp_path, name="x").method == LoRA(gate=True, targets=targets)
