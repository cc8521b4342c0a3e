"""Bottleneck adapters against their formulas, worked out by hand with hooks on plain models, logits and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, close, logits, perturb, weighted
from budwood.core import Fuse, Method
from budwood.errors import BadConfig
from budwood.methods import AdapterH, AdapterP, Compacter, Fusion, LinearAdapter, Parallel
from by_hand import SPOTS, Hand, Spot, Weights, at_site, bottleneck, by_hand, layer_norm
from families import FAMILIES

EVERYWHERE = {"targets": ("all",)}
Normed = Callable[[Tensor], Tensor]
Change = Callable[[Weights, Tensor, Tensor, Normed], Tensor]
"""Weights, h, r, and what the model makes of a sub-layer's output -> h'."""


def moved(family: str, *methods: Method, scale: float = 0.2) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny model in float64 with adapters a, b, ... away from their start, and a batch."""
    model = FAMILIES[family].build().double()
    for i, (name, method) in enumerate(zip("abc", methods, strict=False)):
        core.attach(model, method, name=name, anatomy=anatomy_of(family))
        perturb(model, name, scale, seed=40 + i)
    return model, FAMILIES[family].batch()


def copies(model: nn.Module, *names: str) -> dict[str, dict[str, Tensor]]:
    """Each adapter's tensors, as leaves of their own."""
    return {
        n: {k: p.detach().clone().requires_grad_() for k, p in core.named_parameters(model, n).items()} for n in names
    }


def same(
    model: nn.Module, batch: dict[str, Tensor], weights: dict[str, dict[str, Tensor]], hand: Hand, *trained: str
) -> None:
    """Logits to 1e-5, gradients to 1e-4 of the largest of each tensor."""
    found, expected = logits(model, batch), logits(hand.model, batch)
    assert close(found, expected, 1e-5)
    weighted(found).backward()
    weighted(expected).backward()
    for name in trained or weights:
        for key, parameter in core.named_parameters(model, name).items():
            by_hand_ = weights[name][key].grad
            assert by_hand_ is not None, key
            assert parameter.grad is not None, key
            largest = by_hand_.abs().max().item()
            assert (parameter.grad - by_hand_).abs().max().item() <= 1e-4 * largest + 1e-10, key


def check(family: str, method: Method, change: Change, roles: tuple[str, ...], *, layers: tuple[int, ...] = ()) -> None:
    """An adapter at the sub-layers of these roles against `change`."""
    model, batch = moved(family, method)
    weights = copies(model, "a")
    spots = [s for s in SPOTS[family] if s.role in roles and not any(f".{n}." in s.h for n in layers)]
    assert {spot.h for spot in spots} == {
        site.path for site in core.adapters(model)["a"].sites if "norm" not in site.kind
    }
    with by_hand(FAMILIES[family].build().double()) as hand:
        for spot in spots:
            own = at_site(weights["a"], spot.h)
            hand.at(spot, lambda h, r, normed, own=own: change(own, h, r, normed))  # type: ignore[misc]
        same(model, batch, weights, hand)


def adapter_h(w: Weights, h: Tensor, r: Tensor, normed: Normed) -> Tensor:
    return h + bottleneck(w, h, lambda u: F.gelu(u, approximate="tanh"))


def adapter_p(w: Weights, h: Tensor, r: Tensor, normed: Normed) -> Tensor:
    return h + bottleneck(w, normed(h))


def parallel(w: Weights, h: Tensor, r: Tensor, normed: Normed) -> Tensor:
    return h + 4.0 * bottleneck(w, r)


@pytest.mark.parametrize("family", SPOTS)
@pytest.mark.parametrize(
    ("method", "change"), [(AdapterH, adapter_h), (AdapterP, adapter_p), (Parallel, parallel)], ids=lambda m: m.__name__
)
def test_placement(family: str, method: type[Method], change: Change) -> None:
    """At attention, cross-attention and feed-forward of post-LN, pre-LN and parallel-residual models."""
    check(family, method.from_dict({"size": 5, "trained": (), **EVERYWHERE}), change, ("attn", "cross", "mlp"))


@pytest.mark.parametrize(
    ("method", "roles"),
    [(AdapterH(size=5), ("attn", "mlp")), (AdapterP(size=5), ("mlp",)), (Parallel(size=5), ("mlp",))],
)
@pytest.mark.parametrize("family", ["bert", "bart", "llama"])
def test_standard_places(family: str, method: Method, roles: tuple[str, ...]) -> None:
    change = {"adapter-h": adapter_h, "adapter-p": adapter_p, "parallel": parallel}[method.name]
    check(family, method, change, roles)


@pytest.mark.parametrize(
    ("name", "act"),
    [
        ("relu", lambda u: u.clamp(min=0)),
        ("gelu", lambda u: u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))),
        ("gelu_tanh", lambda u: u * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))),
        ("silu", lambda u: u / (1 + torch.exp(-u))),
        ("tanh", lambda u: 1 - 2 / (torch.exp(2 * u) + 1)),
        ("sigmoid", lambda u: 1 / (1 + torch.exp(-u))),
        ("leaky_relu", lambda u: torch.where(u > 0, u, 0.01 * u)),
        ("quick_gelu", lambda u: u / (1 + torch.exp(-1.702 * u))),
        ("relu6", lambda u: u.clamp(0, 6)),
        ("relu2", lambda u: u.clamp(min=0) ** 2),
        ("mish", lambda u: u * torch.tanh(torch.log1p(torch.exp(u)))),
        ("linear", lambda u: u),
    ],
)
def test_activations(name: str, act: Callable[[Tensor], Tensor]) -> None:
    method = AdapterP.from_dict({"size": 5, "activation": name})
    check("bert", method, lambda w, h, r, normed: h + bottleneck(w, normed(h), act), ("mlp",))


def with_options(w: Weights, h: Tensor, z: Tensor, total: Tensor, method: Any) -> Tensor:
    """h' of every option, step by step."""
    u = bottleneck(w, layer_norm(w, "ln_before", z) if method.ln_before else z)
    u = u * w.get("s", 1.0 if method.scale is None else method.scale)
    if method.gate:
        u = u * torch.sigmoid((z * w["W_g"][0]).sum(-1, keepdim=True) + w["b_g"]).mean(1, keepdim=True)
    if method.ln_after and not method.ln_after_residual:
        u = layer_norm(w, "ln_after", u)
    out = u + {"h": h, "input": z, "total": total}[method.residual]
    return layer_norm(w, "ln_after", out) if method.ln_after_residual else out


OPTIONS: dict[str, dict[str, Any]] = {
    "ln_before": {"ln_before": True},
    "ln_after": {"ln_after": True},
    "ln_after_residual": {"ln_after": True, "ln_after_residual": True},
    "input": {"residual": "input"},
    "total": {"residual": "total"},
    "total-ln": {"residual": "total", "ln_before": True, "ln_after": True, "ln_after_residual": True},
    "scale": {"scale": 2.5},
    "scalar": {"learn_scale": "scalar"},
    "channel": {"learn_scale": "channel", "scale": 4.0},
    "gate": {"gate": True, "gate_over": "all", "ln_before": True},
    "bias": {"bias": False},
    "sizes": {"sizes": {"attn": 3, "mlp": 7}},
    "leave_out": {"leave_out": (1,)},
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("bert", AdapterH),
        ("llama", AdapterH),
        ("bert", AdapterP),
        ("llama", AdapterP),
        ("gpt2", AdapterP),
        ("granite", AdapterP),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_options(family: str, method: type[Method], option: str) -> None:
    fields = {"size": 5, "activation": "relu", "targets": ("attn", "mlp"), **OPTIONS[option]}
    chosen: Any = method.from_dict(fields)
    scale = SPOTS[family][0].scale

    def change(w: Weights, h: Tensor, r: Tensor, normed: Normed) -> Tensor:
        return with_options(w, h, h if method is AdapterH else normed(h), r + scale * h, chosen)

    check(family, chosen, change, ("attn", "mlp"), layers=chosen.leave_out)
    if option == "sizes":
        model, _ = moved(family, chosen)
        widths = {t.shape[0] for k, t in core.named_parameters(model, "a").items() if k.endswith("W_d")}
        assert widths == {3, 7}


@pytest.mark.parametrize("option", ["ln_before", "ln_after", "scale", "scalar", "channel", "gate"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_options_of_parallel(family: str, option: str) -> None:
    chosen = Parallel.from_dict({"size": 5, **OPTIONS[option]})

    def change(w: Weights, h: Tensor, r: Tensor, normed: Normed) -> Tensor:
        u = bottleneck(w, layer_norm(w, "ln_before", r) if chosen.ln_before else r)
        u = u * w.get("s", 4.0 if chosen.scale is None else chosen.scale)
        if chosen.gate:
            u = u * torch.sigmoid(F.linear(r, w["W_g"], w["b_g"])).mean(1, keepdim=True)
        return h + (layer_norm(w, "ln_after", u) if chosen.ln_after else u)

    check(family, chosen, change, ("mlp",))


@pytest.mark.parametrize("residual", ["h", "input"])
@pytest.mark.parametrize("targets", [("mlp",), ("attn",), ("attn", "mlp")])
def test_without_the_models_residual_in_post_ln(targets: tuple[str, ...], residual: str) -> None:
    """y = h', with neither the residual nor the LayerNorm after it."""
    fields = {"size": 5, "targets": targets, "adds_residual": False, "residual": residual}
    model, batch = moved("bert", AdapterP.from_dict(fields))
    weights = copies(model, "a")
    with by_hand(FAMILIES["bert"].build().double()) as hand:
        for spot in (s for s in SPOTS["bert"] if s.role in targets):
            own, kept = at_site(weights["a"], spot.h), {}

            def change(
                h: Tensor, r: Tensor, normed: Normed, own: Weights = own, kept: dict[str, Tensor] = kept
            ) -> Tensor:
                z = normed(h)
                kept["out"] = bottleneck(own, z) + (h if residual == "h" else z)
                return h

            hand.at(spot, change)
            assert spot.norm is not None
            hand.replace(spot.norm, lambda y, kept=kept: kept["out"])  # type: ignore[misc]
        same(model, batch, weights, hand)


@pytest.mark.parametrize("family", ["llama", "gpt2", "granite"])
def test_without_the_models_residual_in_pre_ln(family: str) -> None:
    """The block returns h'."""
    model, batch = moved(family, AdapterH(size=5, targets=("mlp",), adds_residual=False, activation="relu"))
    weights = copies(model, "a")
    with by_hand(FAMILIES[family].build().double()) as hand:
        for i, spot in enumerate(s for s in SPOTS[family] if s.role == "mlp"):
            own, kept = at_site(weights["a"], spot.h), {}

            def change(
                h: Tensor, r: Tensor, normed: Normed, own: Weights = own, kept: dict[str, Tensor] = kept
            ) -> Tensor:
                kept["out"] = h + bottleneck(own, h)
                return h

            hand.at(spot, change)
            block = f"transformer.h.{i}" if family == "gpt2" else f"model.layers.{i}"
            hand.replace(block, lambda y, kept=kept: kept["out"])  # type: ignore[misc]
        same(model, batch, weights, hand)


# Drawn at random while training


def one_site(method: Method) -> tuple[nn.Module, nn.Module, Weights]:
    """The adapter's delta of the first feed-forward of bert, in training; its module; its weights."""
    model, _ = moved("bert", method)
    path = SPOTS["bert"][1].h
    weights = at_site({k: p.detach() for k, p in core.named_parameters(model, "a").items()}, path)
    (site,) = (s for s in core.adapters(model)["a"].sites if s.path == path)
    return core.delta_at(model, site, "a").train(), model.get_submodule(path), weights


def test_dropout_comes_after_the_scale_and_keeps_the_mean() -> None:
    delta, base, w = one_site(AdapterH(size=5, dropout=0.25, scale=3.0, activation="relu"))
    h = torch.randn(2, 400, 32, dtype=torch.float64)
    exact = 3.0 * bottleneck(w, h)
    torch.manual_seed(5)
    found = delta.change(base, h, h).detach()  # type: ignore[operator]
    torch.manual_seed(5)
    assert close(found, F.dropout(exact, 0.25), 1e-9)
    assert (found == 0).double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert close(found[found != 0], exact[found != 0] / 0.75, 1e-9)


def test_inner_dropout_acts_on_the_bottleneck() -> None:
    delta, base, w = one_site(Parallel(size=5, inner_dropout=0.5))
    h, r = torch.randn(2, 4, 32, dtype=torch.float64), torch.randn(2, 4, 32, dtype=torch.float64)
    delta.residual.value = r  # type: ignore[union-attr]
    torch.manual_seed(5)
    found = delta.change(base, h, h).detach()  # type: ignore[operator]
    torch.manual_seed(5)
    u = F.dropout(torch.relu(r @ w["A.W_d"].T + w["A.b_d"]), 0.5)
    assert close(found, 4.0 * (u @ w["A.W_u"].T + w["A.b_u"]), 1e-9)


def test_stochastic_depth_leaves_out_whole_rows_and_keeps_the_mean() -> None:
    delta, base, w = one_site(AdapterH(size=5, stochastic_depth=0.3, activation="relu"))
    h = torch.randn(3000, 2, 32, dtype=torch.float64)
    torch.manual_seed(5)
    found, exact = delta.change(base, h, h).detach(), bottleneck(w, h)  # type: ignore[operator]
    gone = (found == 0).flatten(1).all(dim=1)
    assert gone.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert close(found[~gone], exact[~gone] / 0.7, 1e-9)
    delta.eval()
    assert close(delta.change(base, h, h).detach(), exact, 1e-9)  # type: ignore[operator]


def test_dropout_of_a_model_in_training_acts_before_the_adapter() -> None:
    """bert's own dropout comes first: what the adapter reads is what the dropout module returns."""
    method = AdapterH(size=5, targets=("mlp",), activation="relu", trained=())
    model, batch = moved("bert", method)
    weights = copies(model, "a")
    with by_hand(FAMILIES["bert"].build().double()) as hand:
        for spot in (s for s in SPOTS["bert"] if s.role == "mlp"):
            own = at_site(weights["a"], spot.h)
            hand.at(spot, lambda h, r, normed, own=own: h + bottleneck(own, h))  # type: ignore[misc]
        found = []
        for each in (model, hand.model):
            torch.manual_seed(6)
            found.append(logits(each.train(), batch))
        assert close(found[0], found[1], 1e-9)


# Starting values


def test_starting_values() -> None:
    for init, W_d, W_u in (("zero", 1 / math.sqrt(3 * 32), 0.0), ("bert", 0.02, 0.02), ("houlsby", 0.0088, 0.0088)):
        model = FAMILIES["bert"].build()
        core.attach(model, AdapterH.from_dict({"size": 32, "init": init}), name="a", anatomy=anatomy_of("bert"))
        for key, parameter in core.named_parameters(model, "a").items():
            wanted = {"W_d": W_d, "W_u": W_u}.get(key.rpartition(".")[2], 0.0)
            assert parameter.std().item() == pytest.approx(wanted, rel=0.1), (init, key)
            assert init != "houlsby" or parameter.abs().max() <= 0.02


@pytest.mark.parametrize(
    ("method", "width"),
    [(AdapterH(), 64), (AdapterP(), 48), (Parallel(), 384), (Compacter(), 24), (AdapterP(reduction=1e4), 1)],
    ids=lambda v: getattr(v, "name", v),
)
def test_standard_widths(method: Any, width: int) -> None:
    """64; d/16; d/2; d/32; never less than 1, on a model 768 wide."""
    from budwood.anatomy import Site

    assert method.size_at(Site("x", "mlp", "decoder", 0, 768, 768, "sublayer")) == width


def test_a_learned_scale_starts_at_one() -> None:
    for mode, size in (("scalar", 1), ("channel", 32)):
        model = FAMILIES["bert"].build()
        core.attach(model, Parallel.from_dict({"size": 4, "learn_scale": mode}), name="a", anatomy=anatomy_of("bert"))
        scales = [p for k, p in core.named_parameters(model, "a").items() if k.endswith(".s")]
        assert [s.tolist() for s in scales] == [[1.0] * size] * 2


# Attention, in front of its output projection


def heads_check(family: str, method: Parallel, update: Callable[[Weights, Tensor, nn.Module], Tensor]) -> None:
    """Adapters of self-attention (and cross-attention): `update` of what the queries are made from is added."""
    model, batch = moved(family, method)
    weights = copies(model, "a")
    spots = [s for s in SPOTS[family] if s.role in ("attn", "cross")]
    assert {s.o for s in spots} == {site.path for site in core.adapters(model)["a"].sites}
    with by_hand(FAMILIES[family].build().double()) as hand:
        for spot in spots:
            hand.read((spot.query, "input"))
            own, projection = at_site(weights["a"], spot.o), hand.model.get_submodule(spot.query)

            def add(x: Tensor, own: Weights = own, spot: Spot = spot, projection: nn.Module = projection) -> Tensor:
                return x + update(own, hand.values[spot.query, "input"], projection)

            hand.feed(spot.o, add)
        same(model, batch, weights, hand)


def project(projection: nn.Module, x: Tensor) -> Tensor:
    """The queries of a projection, also of one that makes keys and values too."""
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    if type(projection).__name__ == "Conv1D":
        weight = weight.T
    d = x.shape[-1]
    rows = torch.arange(d)
    if (
        weight.shape[0] == 3 * d and type(projection).__name__ == "Linear"
    ):  # gpt_neox: query, key and value of each head
        rows = torch.cat([torch.arange(24 * head, 24 * head + 8) for head in range(4)])
    return F.linear(x, weight[rows], None if bias is None else bias[rows])  # type: ignore[index]


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "bart", "mbart"])
def test_parallel_before_the_output_projection(family: str) -> None:
    method = Parallel(size=5, targets=("attn", "cross?"), attention="before")
    heads_check(family, method, lambda w, x, _: bottleneck(w, layer_norm(w, "ln", x)))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "gpt_neox", "bart", "mbart"])
def test_parallel_head_by_head(family: str, normed: bool) -> None:
    """ReLU(q P_k^T) P_v: q of the model over the root of the head's width, or of LN(x) and unscaled."""

    def update(w: Weights, x: Tensor, projection: nn.Module) -> Tensor:
        q = project(projection, layer_norm(w, "ln", x) if normed else x)
        heads, each = [], 8
        for i in range(4):
            part = slice(i * each, (i + 1) * each)
            scores = q[..., part] @ w["P_k"][:, part].T / (1.0 if normed else math.sqrt(each))
            heads.append(torch.relu(scores) @ w["P_v"][:, part])
        return torch.cat(heads, dim=-1)

    heads_check(family, Parallel(size=3, targets=("attn", "cross?"), attention="multihead", ln_before=normed), update)


# Compacter


def kronecker(w: Weights, first: Weights, side: str, rule: str) -> Tensor:
    n = first[f"A.{rule}.R"].shape[0]
    M = [w[f"A.{side}.L"][i] @ w[f"A.{side}.T"][i] for i in range(n)]
    return sum((torch.kron(first[f"A.{rule}.R"][i], M[i]) for i in range(n)), start=torch.zeros(()))


@pytest.mark.parametrize("shares_rule", [True, False])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_compacter(family: str, shares_rule: bool) -> None:
    model, batch = moved(family, Compacter(size=8, n=4, rank=2, shares_rule=shares_rule))
    weights = copies(model, "a")
    spots = SPOTS[family]
    first = at_site(weights["a"], spots[0].h)
    with by_hand(FAMILIES[family].build().double()) as hand:
        for spot in spots:
            own = at_site(weights["a"], spot.h)

            def change(h: Tensor, r: Tensor, normed: Normed, own: Weights = own) -> Tensor:
                rules = first if shares_rule else own
                W_d = kronecker(own, rules, "W_d", "R_d")
                W_u = kronecker(own, rules, "W_u", "R_d" if shares_rule else "R_u")
                return h + F.gelu(h @ W_d + own["A.b_d"]) @ W_u + own["A.b_u"]

            hand.at(spot, change)
        same(model, batch, weights, hand)


def test_compacter_is_numpys_kronecker_product() -> None:
    model, _ = moved("bert", Compacter(size=8, n=2, rank=1, targets=("mlp",)))
    n = {k: p.detach().numpy() for k, p in core.named_parameters(model, "a").items()}
    one, two = (s.h for s in SPOTS["bert"] if s.role == "mlp")
    R = n[f"{one}.A.R_d.R"]
    assert R.shape == (2, 2, 2)
    assert f"{two}.A.R_d.R" not in n
    W_d = sum(np.kron(R[i], n[f"{two}.A.W_d.L"][i] @ n[f"{two}.A.W_d.T"][i]) for i in range(2))
    W_u = sum(np.kron(R[i], n[f"{two}.A.W_u.L"][i] @ n[f"{two}.A.W_u.T"][i]) for i in range(2))
    assert (W_d.shape, W_u.shape) == ((32, 8), (8, 32))
    (site,) = (s for s in core.adapters(model)["a"].sites if s.path == two)
    delta, h = core.delta_at(model, site, "a"), np.random.default_rng(0).normal(size=(3, 32))
    u = torch.from_numpy(h @ W_d + n[f"{two}.A.b_d"])
    expected = F.gelu(u).numpy() @ W_u + n[f"{two}.A.b_u"]
    given = torch.from_numpy(h)
    np.testing.assert_allclose(delta.change(nn.Identity(), given, given).detach(), expected, rtol=1e-9, atol=1e-12)


def test_compacter_with_factored_rules_whole_matrices_and_weights_for_all() -> None:
    method = Compacter(
        size=8,
        n=2,
        targets=("mlp",),
        placement="adapter-p",
        factorized_rule=True,
        factorized=False,
        shares_weights=True,
    )
    model, batch = moved("bert", method)
    weights = copies(model, "a")
    spots = [s for s in SPOTS["bert"] if s.role == "mlp"]
    first = at_site(weights["a"], spots[0].h)
    with by_hand(FAMILIES["bert"].build().double()) as hand:
        for spot in spots:
            own = at_site(weights["a"], spot.h)

            def change(h: Tensor, r: Tensor, normed: Normed, own: Weights = own) -> Tensor:
                W = [
                    sum(
                        torch.kron(torch.outer(first["A.R_d.left"][i, :, 0], first["A.R_d.right"][i, 0]), first[key][i])
                        for i in range(2)
                    )
                    for key in ("A.W_d.M", "A.W_u.M")
                ]
                return h + F.gelu(normed(h) @ W[0] + own["A.b_d"]) @ W[1] + own["A.b_u"]

            hand.at(spot, change)
        same(model, batch, weights, hand)


# LLM-Adapters


@pytest.mark.parametrize("form", ["adapter-h", "adapter-p", "parallel"])
def test_llm_adapters(form: str) -> None:
    model, batch = moved("llama", LinearAdapter.from_dict({"form": form, "size": 6, "scale": 1.5, "dropout": 0.1}))
    weights = copies(model, "a")
    where = {
        "adapter-h": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        "adapter-p": ("mlp.down_proj",),
        "parallel": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    }[form]
    with by_hand(FAMILIES["llama"].build().double()) as hand:
        for path in (f"model.layers.{i}.{leaf}" for i in range(2) for leaf in where):
            own = at_site(weights["a"], path)

            def update(z: Tensor, own: Weights = own) -> Tensor:
                return 1.5 * torch.tanh(z @ own["A.W_d"].T) @ own["A.W_u"].T

            if form == "parallel":
                hand.read((path, "input"))
                hand.replace(path, lambda y, p=path, f=update: y + f(hand.values[p, "input"]))  # type: ignore[misc]
            elif path.endswith("down_proj"):
                hand.replace(path, lambda y, f=update: y + f(y))  # type: ignore[misc]
            else:
                hand.feed(path, lambda x, f=update: x + f(x))  # type: ignore[misc]
        same(model, batch, weights, hand)
    assert not [k for k in weights["a"] if "b_" in k]


# MAD-X


NICE = {
    "bert": ("bert.encoder.layer.0", "cls.predictions.decoder"),
    "roberta": ("roberta.encoder.layer.0", "lm_head.decoder"),
    "llama": ("model.layers.0", "lm_head"),
    "gpt2": ("transformer.h.0", "lm_head"),
    "t5": ("encoder.block.0", "lm_head"),
    "bart": ("model.encoder.layers.0", "lm_head"),
    "bert-classify": ("bert.encoder.layer.0", ""),
}
"""What reads the forward, and what the inverse."""


@pytest.mark.parametrize("family", NICE)
def test_invertible(family: str) -> None:
    first, last = NICE[family]
    model, batch = moved(family, AdapterP(size=5, invertible=True, trained=()))
    weights = copies(model, "a")
    own = at_site(weights["a"], first)
    w = {side: {f"A.{k.removeprefix(side + '.')}": t for k, t in own.items() if k.startswith(side)} for side in "FG"}
    assert own["F.W_d"].shape == (8, 16)
    assert not any(name.startswith(f"{last}.") for name in weights["a"]) or not last

    def forward(x: Tensor) -> Tensor:
        x1, x2 = x[..., :16], x[..., 16:]
        y1 = x1 + bottleneck(w["F"], x2)
        return torch.cat([y1, x2 + bottleneck(w["G"], y1)], -1)

    def inverse(y: Tensor) -> Tensor:
        y1, y2 = y[..., :16], y[..., 16:]
        x2 = y2 - bottleneck(w["G"], y1)
        return torch.cat([y1 - bottleneck(w["F"], x2), x2], -1)

    x = torch.randn(3, 32, dtype=torch.float64)
    assert close(inverse(forward(x)), x, 1e-9)
    with by_hand(FAMILIES[family].build().double()) as hand:
        hand.feed(first, forward)
        if last:
            hand.feed(last, inverse)
        for spot in (s for s in SPOTS[family] if s.role == "mlp"):
            at = at_site(weights["a"], spot.h)
            hand.at(spot, lambda h, r, normed, at=at: h + bottleneck(at, normed(h)))  # type: ignore[misc]
        same(model, batch, weights, hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_undoes_the_forward(dtype: torch.dtype) -> None:
    model = FAMILIES["bert"].build().to(dtype)
    core.attach(model, AdapterP(size=5, invertible=True), name="a", anatomy=anatomy_of("bert"))
    perturb(model, "a")
    site = next(s for s in core.adapters(model)["a"].sites if s.role == "block")
    delta: Any = core.delta_at(model, site, "a")
    x = torch.randn(4, 7, 32, dtype=dtype)
    assert (delta.inverse(delta.enter(x)) - x).abs().max() < 1e-6
    assert (delta.enter(x) - x).abs().max() > 0.1


# AdapterFusion


@pytest.mark.parametrize("off", ["", "query", "key", "value"])
@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_fusion(family: str, off: str) -> None:
    fields = {"of": ("a", "b"), "temperature": 2.0, **({off: False} if off else {})}
    model, batch = moved(family, AdapterP(size=5), AdapterP(size=3, scale=2.0), Fusion.from_dict(fields))
    weights = copies(model, "a", "b", "c")
    assert {p.requires_grad for p in core.parameters(model, "a")} == {False}
    with by_hand(FAMILIES[family].build().double()) as hand:
        for spot in (s for s in SPOTS[family] if s.role == "mlp"):
            a, b, c = (at_site(weights[n], spot.h) for n in "abc")

            def change(h: Tensor, r: Tensor, normed: Normed, a=a, b=b, c=c) -> Tensor:  # type: ignore[no-untyped-def]
                z = normed(h)
                u = [bottleneck(a, z), 2.0 * bottleneck(b, z)]
                q = z if off == "query" else z @ c["W_Q"].T + c["b_Q"]
                k = [x if off == "key" else x @ c["W_K"].T + c["b_K"] for x in u]
                v = [x if off == "value" else x @ c["W_V"].T for x in u]
                e = [torch.exp((q * x).sum(-1, keepdim=True) / 2.0) for x in k]
                return h + (e[0] * v[0] + e[1] * v[1]) / (e[0] + e[1])

            hand.at(spot, change)
        same(model, batch, weights, hand, "c")


def test_fusion_starts_as_an_even_mean_of_what_it_mixes() -> None:
    """W_V is nearly the identity, and scores are small."""
    model, batch = moved("bert", AdapterP(size=5), AdapterP(size=5))
    core.attach(model, Fusion(of=("a", "b")), name="f")
    own = core.named_parameters(model, "f")
    value = next(p for k, p in own.items() if k.endswith("W_V"))
    assert torch.equal(value.diagonal(), torch.ones(32, dtype=torch.float64))
    assert value[0, 1].item() == pytest.approx(1e-6)
    with torch.no_grad(), core.using(model, Fuse(("a", "b"), by="f")):
        for k, p in own.items():
            if k.endswith("W_Q"):
                p.zero_()
        fused = logits(model, batch)
    with torch.no_grad(), core.using(model, core.Sum(("a", "b"), (0.5, 0.5))):
        assert close(fused, logits(model, batch), 1e-4)


def test_fusion_alone_is_refused() -> None:
    model, _ = moved("bert", AdapterP(size=5), AdapterP(size=5))
    core.attach(model, Fusion(of=("a", "b")), name="f")
    with pytest.raises(BadConfig, match="write Fuse"):
        core.activate(model, "f")


@pytest.mark.parametrize("family", ["bert", "bart", "distilbert"])
def test_a_trained_norm_is_the_one_norm_that_is_used_twice(family: str) -> None:
    """AdapterP with copies of the norms is AdapterP on a base that has these norms."""
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    core.attach(model, AdapterP(size=4, trained=("norm.*",)), name="a")
    perturb(model, "a")
    own = core.named_parameters(model, "a")
    other = FAMILIES[family].build()
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            if key in own:
                parameter.copy_(own[key])
    core.attach(other, AdapterP(size=4, trained=()), name="a")
    with torch.no_grad():
        for key, parameter in core.named_parameters(other, "a").items():
            parameter.copy_(own[key])
        assert close(logits(model, batch), logits(other, batch), 1e-6)
