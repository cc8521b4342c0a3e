"""Adapters of every type together: Stack, Sum, Route, Skip and Fuse against what they mean, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, close, logits, perturb, weighted
from budwood.core import Fuse, Method, Plan, Route, Skip, Stack, Sum
from budwood.errors import BadConfig, NoSuchAdapter, NoSuchSite
from budwood.interop import load, save
from budwood.methods import IA3, AdapterH, AdapterP, Compacter, Fusion, LinearAdapter, LoRA, Parallel
from by_hand import SPOTS, Hand, Weights, at_site, bottleneck, by_hand
from families import FAMILIES

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2, alpha=6.0, targets=("attn.q", "mlp.down")),
    "p": AdapterP(size=5),
    "h": AdapterH(size=4, targets=("mlp",), activation="relu"),
    "par": Parallel(size=6),
    "lin": LinearAdapter(form="adapter-p", size=6),
    "ia3": IA3(),
    "kv": LoRA(targets=("attn.k", "attn.v")),
    "lang": AdapterP(size=7, invertible=True),
    "other": AdapterP(size=3, invertible=True),
    "alone": AdapterP(size=3, adds_residual=False),
    "kron": Compacter(size=4, n=2, targets=("mlp",)),
}


def model_with(family: str, *names: str, fusions: dict[str, Fusion] | None = None) -> nn.Module:
    """A tiny model in float64 with these adapters, each away from its start."""
    model = FAMILIES[family].build().double()
    for name, method in ({n: METHODS[n] for n in names} | (fusions or {})).items():
        core.attach(model, replace(method, trained=()), name=name, anatomy=anatomy_of(family))
        perturb(model, name, 0.2, seed=len(name) + ord(name[-1]))
    return model


def under(model: nn.Module, family: str, plan: Plan) -> Tensor:
    with torch.no_grad(), core.using(model, plan):
        return logits(model, FAMILIES[family].batch())


def tensors(model: nn.Module, *names: str) -> dict[str, dict[str, Tensor]]:
    return {n: {k: p.detach() for k, p in core.named_parameters(model, n).items()} for n in names}


class Site:
    """What each adapter adds to h at one feed-forward, as functions of x, h and r."""

    def __init__(self, weights: dict[str, dict[str, Tensor]], path: str, x: Tensor, r: Tensor, normed: object) -> None:
        self.w: dict[str, Weights] = {name: at_site(own, path) for name, own in weights.items()}
        self.x, self.r, self.normed = x, r, normed

    def lora(self, h: Tensor) -> Tensor:
        return 3.0 * self.x @ self.w["lora"]["A"].T @ self.w["lora"]["B"].T

    def p(self, h: Tensor) -> Tensor:
        return bottleneck(self.w["p"], self.normed(h))  # type: ignore[operator]

    def h(self, h: Tensor) -> Tensor:
        return bottleneck(self.w["h"], h)

    def par(self, h: Tensor) -> Tensor:
        return 4.0 * bottleneck(self.w["par"], self.r)

    def lin(self, h: Tensor) -> Tensor:
        return bottleneck(self.w["lin"], h, torch.tanh)


Meaning = Callable[[Site, Tensor], Tensor]


def _stack(*names: str) -> Meaning:
    def meaning(s: Site, h: Tensor) -> Tensor:
        for name in names:
            h = h + getattr(s, name)(h)
        return h

    return meaning


def _nested(s: Site, h: Tensor) -> Tensor:
    inner = _stack("p", "h")(s, h) - h
    return h + 0.5 * inner + 2.0 * s.par(h) - 1.5 * s.p(h)


def _deep(s: Site, h: Tensor) -> Tensor:
    one = h + s.par(h) + s.p(h)
    two = one + s.h(one)
    return two + 0.25 * (s.p(two) + s.par(two))


PLANS: list[tuple[Plan, Meaning]] = [
    (Stack(("p", "h")), _stack("p", "h")),
    (Stack(("h", "p")), _stack("h", "p")),
    (Stack(("p", "p")), _stack("p", "p")),
    (Stack(("p", "par")), _stack("p", "par")),
    (Stack(("par", "p")), _stack("par", "p")),
    (Stack(("par", "h", "p")), _stack("par", "h", "p")),
    (Sum(("p", "par")), lambda s, h: h + s.p(h) + s.par(h)),
    (Sum(("p", "p"), (0.5, 0.5)), lambda s, h: h + s.p(h)),
    (Sum(("p", "h", "par"), (0.3, -1.0, 2.0)), lambda s, h: h + 0.3 * s.p(h) - s.h(h) + 2.0 * s.par(h)),
    (Sum((Stack(("p", "h")), "par", Sum(("p",), (-3.0,))), (0.5, 2.0, 0.5)), _nested),
    (Stack((Sum(("par", "p")), Stack(("h", Sum(("p", "par"), (0.25, 0.25)))))), _deep),
]


@cache
def three(family: str) -> nn.Module:
    return model_with(family, "p", "h", "par")


@pytest.mark.parametrize(("plan", "meaning"), PLANS, ids=[str(plan) for plan, _ in PLANS])
@pytest.mark.parametrize("family", ["bert", "llama", "falcon", "t5"])
def test_bottlenecks_together(family: str, plan: Plan, meaning: Meaning) -> None:
    """Each reads what the part before it returned: h1 = h + A_a(z(h, r)), and z1 is made of h1 (AdapterHub's rule)."""
    model = three(family)
    weights = tensors(model, "p", "h", "par")
    with by_hand(FAMILIES[family].build().double()) as hand:
        for spot in (s for s in SPOTS[family] if s.role == "mlp"):
            hand.at(spot, lambda h, r, n, path=spot.h: meaning(Site(weights, path, r, r, n), h))  # type: ignore[misc]
        with torch.no_grad():
            assert close(under(model, family, plan), logits(hand.model, FAMILIES[family].batch()), 1e-9)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nothing_is_lost_above_a_sub_layer_without_its_residual(family: str) -> None:
    """Stack((alone, p)): y = h' + A_p, where h' = h + A_alone stands in the place of LN(h' + r)."""
    model = model_with(family, "alone", "par")
    weights = tensors(model, "alone", "par")
    with by_hand(FAMILIES[family].build().double()) as hand:
        for i, spot in enumerate(s for s in SPOTS[family] if s.role == "mlp"):
            kept: dict[str, Tensor] = {}

            def change(
                h: Tensor,
                r: Tensor,
                normed: Callable[[Tensor], Tensor],
                path: str = spot.h,
                kept: dict[str, Tensor] = kept,
            ) -> Tensor:
                own, above = (at_site(weights[name], path) for name in ("alone", "par"))
                kept["y"] = h + bottleneck(own, normed(h))
                kept["y"] = kept["y"] + 4.0 * bottleneck(above, r)
                return h

            hand.at(spot, change)
            hand.replace(spot.norm or f"model.layers.{i}", lambda y, kept=kept: kept["y"])  # type: ignore[misc]
        with torch.no_grad():
            expected = logits(hand.model, FAMILIES[family].batch())
    for plan in (Stack(("alone", "par")), Stack(("alone", Skip("par", ())))):
        assert close(under(model, family, plan), expected, 1e-9)


# With LoRA, (IA)^3 and LLM-Adapters' at the same linear

FIVE = ("lora", "p", "par", "lin", "ia3")
TYPES: list[tuple[Plan, Meaning, float]] = [
    (Sum(("lora", "p", "par", "lin")), lambda s, h: h + s.lora(h) + s.p(h) + s.par(h) + s.lin(h), 0.0),
    (
        Sum(FIVE, (0.5, 2.0, -1.0, 0.7, 0.25)),
        lambda s, h: h + 0.5 * s.lora(h) + 2.0 * s.p(h) - s.par(h) + 0.7 * s.lin(h),
        0.25,
    ),
    (Stack(FIVE), _stack("lora", "p", "par", "lin"), 1.0),
    (Stack(("ia3", Sum(("lin", "lora")), "p")), lambda s, h: _stack("p")(s, h + s.lin(h) + s.lora(h)), 1.0),
    (Skip(Sum(("p", "ia3")), (0, 1)), lambda s, h: h, 0.0),
]


@cache
def five() -> nn.Module:
    return model_with("llama", *FIVE)


def mentions(plan: Plan, name: str) -> bool:
    return name in core.plan.names(plan) and not isinstance(plan, Skip)


@pytest.mark.parametrize(("plan", "meaning", "share"), TYPES, ids=[str(plan) for plan, _, _ in TYPES])
def test_types_together(plan: Plan, meaning: Meaning, share: float) -> None:
    """share: how much of (IA)^3 is in the plan, which scales keys, values and what the last linear reads."""
    weights, batch = tensors(five(), *FIVE), FAMILIES["llama"].batch()
    with by_hand(FAMILIES["llama"].build().double()) as hand:
        scale = {k.removesuffix(".l"): 1 + share * (t - 1) for k, t in weights["ia3"].items()}
        for i, spot in enumerate(s for s in SPOTS["llama"] if s.role == "mlp"):
            attention = f"model.layers.{i}.self_attn"
            for path in (f"{attention}.k_proj", f"{attention}.v_proj"):
                hand.replace(path, lambda y, p=path: y * scale[p])  # type: ignore[misc]
            hand.feed(spot.h, lambda x, p=spot.h: x * scale[p])  # type: ignore[misc]
            hand.read((spot.h, "input"))
            query(hand, weights["lora"], f"{attention}.q_proj", part_of(plan, "lora"))

            def change(h: Tensor, r: Tensor, normed: object, path: str = spot.h) -> Tensor:
                return meaning(Site(weights, path, hand.values[path, "input"], r, normed), h)

            hand.at(spot, change)
        with torch.no_grad():
            assert close(under(five(), "llama", plan), logits(hand.model, batch), 1e-9)


def part_of(plan: Plan, name: str) -> float:
    """The weight of an adapter in one of the plans above."""
    if isinstance(plan, Skip) or name not in core.plan.names(plan):
        return 0.0
    return plan.weights[plan.parts.index(name)] if isinstance(plan, Sum) and plan.weights else 1.0


def query(hand: Hand, own: dict[str, Tensor], path: str, weight: float) -> None:
    """LoRA at the queries, where nothing else acts."""
    hand.read((path, "input"))
    w = at_site(own, path)
    hand.replace(path, lambda y: y + weight * 3.0 * hand.values[path, "input"] @ w["A"].T @ w["B"].T)


@pytest.mark.parametrize("family", ["llama", "bert", "bart", "gpt_neox", "albert"])
def test_each_row_has_a_plan_of_its_own(family: str) -> None:
    model = model_with(family, *FIVE)
    parts: tuple[Plan, ...] = ("p", Sum(("lora", "par")), None, Stack(("ia3", "p", "lin")), Skip("par", (0,)))
    batch = {k: v[:1].repeat(5, 1) for k, v in FAMILIES[family].batch().items()}
    rows = torch.tensor([3, 1, 0, 2, 4])
    with torch.no_grad():
        with core.using(model, Route(parts, rows)):
            routed = model(**batch).logits
        for row, part in enumerate(rows.tolist()):
            with core.using(model, parts[part]):
                assert close(routed[row], model(**batch).logits[row], 1e-9)


# AdapterDrop


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_skipped_layers_are_the_base(family: str) -> None:
    """As an adapter that was never built there."""
    model = model_with(family, "p", "par")
    fewer = FAMILIES[family].build().double()
    core.attach(fewer, replace(METHODS["p"], leave_out=(0,), trained=()), name="p", anatomy=anatomy_of(family))  # type: ignore[call-arg]
    own = tensors(model, "p")["p"]
    with torch.no_grad():
        for key, parameter in core.named_parameters(fewer, "p").items():
            parameter.copy_(own[key])
    base = under(model, family, None)
    assert torch.equal(under(model, family, Skip("p", (0,))), under(fewer, family, "p"))
    assert torch.equal(under(model, family, Skip(Stack(("p", "par")), (0, 1))), base)
    assert torch.equal(under(model, family, Stack((Skip("p", (0,)), Skip("par", (0, 1))))), under(fewer, family, "p"))
    assert close(under(model, family, Sum((Skip("p", (0,)), Skip("par", (0, 1))))), under(fewer, family, "p"), 1e-12)
    assert not close(under(model, family, Skip("p", (1,))), under(fewer, family, "p"), 1e-4)


def test_layers_are_skipped_in_one_stack() -> None:
    model, batch = model_with("bart", "p"), FAMILIES["bart"].batch()
    weights = tensors(model, "p")
    with by_hand(FAMILIES["bart"].build().double()) as hand, torch.no_grad():
        for spot in (s for s in SPOTS["bart"] if s.role == "mlp" and "decoder" not in s.h):
            hand.at(spot, lambda h, r, n, path=spot.h: h + Site(weights, path, r, r, n).p(h))  # type: ignore[misc]
        assert close(under(model, "bart", Skip("p", (0, 1), "decoder")), logits(hand.model, batch), 1e-9)


# Languages and tasks


NICE = {"bert": ("bert.encoder.layer.0", "cls.predictions.decoder"), "llama": ("model.layers.0", "lm_head")}


def turn(own: dict[str, Tensor], first: str, x: Tensor, *, back: bool = False) -> Tensor:
    """NICE, or its inverse."""
    w = at_site(own, first)
    F, G = ({f"A.{k.removeprefix(side)}": t for k, t in w.items() if k.startswith(side)} for side in ("F.", "G."))
    x1, x2 = x[..., :16], x[..., 16:]
    if back:
        second = x2 - bottleneck(G, x1)
        return torch.cat([x1 - bottleneck(F, second), second], -1)
    y1 = x1 + bottleneck(F, x2)
    return torch.cat([y1, x2 + bottleneck(G, y1)], -1)


@pytest.mark.parametrize("language", ["lang", "other"])
@pytest.mark.parametrize("family", NICE)
def test_a_task_on_a_language(family: str, language: str) -> None:
    """The language is swapped by its name alone."""
    model = model_with(family, "lang", "other", "p")
    weights, (first, last) = tensors(model, language, "p"), NICE[family]
    with by_hand(FAMILIES[family].build().double()) as hand:
        hand.feed(first, lambda x: turn(weights[language], first, x))
        hand.feed(last, lambda x: turn(weights[language], first, x, back=True))
        for spot in (s for s in SPOTS[family] if s.role == "mlp"):
            below, above = (at_site(weights[n], spot.h) for n in (language, "p"))

            def change(h: Tensor, r: Tensor, normed: object, below: Weights = below, above: Weights = above) -> Tensor:
                h = h + bottleneck(below, normed(h))  # type: ignore[operator]
                return h + bottleneck(above, normed(h))  # type: ignore[operator]

            hand.at(spot, change)
        with torch.no_grad():
            expected = logits(hand.model, FAMILIES[family].batch())
    assert close(under(model, family, Stack((language, "p"))), expected, 1e-9)
    assert not close(under(model, family, Stack(("p", language))), expected, 1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_skipped_invertible_adapter_still_turns_the_embeddings(layer: int) -> None:
    """Its first half belongs to no layer, and neither does its second: skipping one of them alone would be wrong."""
    model, (first, last) = model_with("bert", "lang"), NICE["bert"]
    own = tensors(model, "lang")["lang"]
    with by_hand(FAMILIES["bert"].build().double()) as hand, torch.no_grad():
        hand.feed(first, lambda x: turn(own, first, x))
        hand.feed(last, lambda x: turn(own, first, x, back=True))
        w = at_site(own, SPOTS["bert"][3 - 2 * layer].h)
        hand.at(SPOTS["bert"][3 - 2 * layer], lambda h, r, normed: h + bottleneck(w, normed(h)))
        expected = logits(hand.model, FAMILIES["bert"].batch())
    assert close(under(model, "bert", Skip("lang", (layer,))), expected, 1e-9)


def test_two_languages_by_row() -> None:
    model, rows = model_with("bert", "lang", "other", "p"), torch.tensor([1, 0])
    batch = {k: v[:1].repeat(2, 1) for k, v in FAMILIES["bert"].batch().items()}
    plans = [Stack(("lang", "p")), Stack(("other", "p"))]
    with torch.no_grad():
        with core.using(model, Route(tuple(plans), rows)):
            routed = model(**batch).logits
        for row, part in enumerate(rows.tolist()):
            with core.using(model, plans[part]):
                assert close(routed[row], model(**batch).logits[row], 1e-9)


def test_only_the_task_trains() -> None:
    model = model_with("bert", "lang", "p")
    core.activate(model, Stack(("lang", "p")), trainable="p")
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    weighted(logits(model, FAMILIES["bert"].batch())).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    moved = {k for k, p in model.named_parameters() if not torch.equal(p, before[k])}
    assert moved == {k for k, p in model.named_parameters() if any(p is own for own in core.parameters(model, "p"))}
    core.activate(model, Stack(("lang", "p")), trainable=("lang",))
    assert {p.requires_grad for p in core.parameters(model, "p")} == {False}
    assert {p.requires_grad for p in core.parameters(model, "lang")} == {True}


# AdapterFusion over adapters of any type


def test_fusion_of_four_types() -> None:
    """What asks is what the last part at a site reads; a part that is alone there adds what it adds."""
    of = ("lora", "p", "lin", "par")
    model = model_with("llama", *of, fusions={"f": Fusion(of=of)})
    weights = tensors(model, *of, "f")

    def mix(path: str, q: Tensor, u: list[Tensor]) -> Tensor:
        f = at_site(weights["f"], path)
        scores = torch.stack([((q @ f["W_Q"].T + f["b_Q"]) * (x @ f["W_K"].T + f["b_K"])).sum(-1) for x in u], -1)
        p = torch.exp(scores - scores.amax(-1, keepdim=True))
        p = p / p.sum(-1, keepdim=True)
        return sum((p[..., i, None] * (x @ f["W_V"].T) for i, x in enumerate(u)), start=torch.zeros(()))

    with by_hand(FAMILIES["llama"].build().double()) as hand:
        for i, spot in enumerate(s for s in SPOTS["llama"] if s.role == "mlp"):
            asks = f"model.layers.{i}.self_attn.q_proj"
            hand.read((asks, "input"))
            hand.read((spot.h, "input"))

            def queries(y: Tensor, path: str = asks) -> Tensor:
                w = at_site(weights["lora"], path)
                return y + 3.0 * hand.values[path, "input"] @ w["A"].T @ w["B"].T

            def change(h: Tensor, r: Tensor, normed: object, path: str = spot.h) -> Tensor:
                s = Site(weights, path, hand.values[path, "input"], r, normed)
                return h + mix(path, r, [s.lora(h), s.p(h), s.lin(h), s.par(h)])

            hand.replace(asks, queries)
            hand.at(spot, change)
        with torch.no_grad():
            expected = logits(hand.model, FAMILIES["llama"].batch())
    assert close(under(model, "llama", Fuse(of, by="f")), expected, 1e-9)


def test_stacks_in_a_fusion_and_a_fusion_in_a_stack() -> None:
    model = model_with("bert", "p", "h", "par", fusions={"f": Fusion(of=("p", "h", "par"), query=False, key=False)})
    weights = tensors(model, "p", "h", "par", "f")
    plan = Stack(("h", Fuse((Stack(("p", "h")), "par", "p"), by="f")))
    with by_hand(FAMILIES["bert"].build().double()) as hand:
        for spot in (s for s in SPOTS["bert"] if s.role == "mlp"):

            def change(h: Tensor, r: Tensor, normed: Callable[[Tensor], Tensor], path: str = spot.h) -> Tensor:
                s = Site(weights, path, r, r, normed)
                h = h + s.h(h)
                u = [_stack("p", "h")(s, h) - h, s.par(h), s.p(h)]
                scores = torch.stack([(normed(h) * x).sum(-1) for x in u], -1).softmax(-1)
                W_V = weights["f"][f"{path}.W_V"]
                return h + sum((scores[..., i, None] * (x @ W_V.T) for i, x in enumerate(u)), start=torch.zeros(()))

            hand.at(spot, change)
        with torch.no_grad():
            expected = logits(hand.model, FAMILIES["bert"].batch())
    assert close(under(model, "bert", plan), expected, 1e-9)


def test_a_part_that_is_skipped_in_a_layer_takes_no_share_there() -> None:
    model = model_with("llama", "p", "par", fusions={"f": Fusion(of=("p", "par"))})
    everywhere, nowhere = (under(model, "llama", Fuse((Skip("p", layers), "par"), by="f")) for layers in ((), (0, 1)))
    assert torch.equal(everywhere, under(model, "llama", Fuse(("p", "par"), by="f")))
    assert torch.equal(nowhere, under(model, "llama", Fuse(("par",), by="f")))
    only = under(model, "llama", Fuse(("par", Skip("p", (0, 1))), by="f"))  # and asks for nothing
    assert torch.equal(only, nowhere)


def test_only_the_fusion_trains_unless_asked() -> None:
    model = model_with("bert", "p", "par", fusions={"f": Fusion(of=("p", "par"))})
    weighted(logits(model, FAMILIES["bert"].batch())).backward()
    assert all(p.grad is not None and p.grad.any() for p in core.parameters(model, "f"))
    assert all(p.grad is None for name in ("p", "par") for p in core.parameters(model, name))
    core.activate(model, Fuse(("p", "par"), by="f"))
    weighted(logits(model, FAMILIES["bert"].batch())).backward()
    assert all(p.grad is not None for name in ("p", "par") for p in core.parameters(model, name))


def test_penalty_of_a_fusion() -> None:
    """0.01 ||I - W_V||^2 at every site, and its gradient."""
    model = model_with("bert", "p", "par", fusions={"f": Fusion(of=("p", "par"), regularization=0.02)})
    for site in core.adapters(model)["f"].sites:
        penalty = core.delta_at(model, site, "f").penalty()
        W_V = core.named_parameters(model, "f")[f"{site.path}.W_V"]
        assert penalty is not None
        (gradient,) = torch.autograd.grad(penalty, [W_V])
        off = torch.eye(32, dtype=torch.float64) - W_V.detach()
        assert penalty.item() == pytest.approx(0.02 * (off**2).sum().item())
        assert close(gradient, -0.04 * off, 1e-12)
    for without in (Fusion(of=("p", "par"), value=False), Fusion(of=("p", "par"), regularization=0.0)):
        core.attach(model, without, name="g")
        assert {core.delta_at(model, s, "g").penalty() for s in core.adapters(model)["g"].sites} == {None}
        core.detach(model, "g")


def test_a_fusion_is_saved_with_its_adapters(tmp_path: Path) -> None:
    model = model_with("bert", "p", "par", "kron", fusions={"f": Fusion(of=("p", "par", "kron"))}).float()
    expected = under(model, "bert", Fuse(("p", "par", "kron"), by="f"))
    for name in ("p", "par", "kron", "f"):
        save(model, tmp_path / name, name=name)
    fresh = FAMILIES["bert"].build()
    with pytest.raises(NoSuchAdapter, match="'p'"):
        load(fresh, tmp_path / "f", name="f", anatomy=anatomy_of("bert"))
    assert core.adapters(fresh) == {}
    for name in ("p", "par", "kron", "f"):
        load(fresh, tmp_path / name, name=name, anatomy=anatomy_of("bert"))
    with torch.no_grad():
        assert torch.equal(logits(fresh, FAMILIES["bert"].batch()), expected)  # in force as soon as it is loaded


# What is left when a part goes


def test_a_part_that_is_detached() -> None:
    model = model_with("llama", "p", "par", "lora")
    core.activate(model, Stack((Sum(("p", "par"), (0.5, 2.0)), "lora")))
    core.detach(model, "p")
    found = under_force(model)
    assert torch.equal(found, under(model, "llama", Stack((Sum(("par",), (2.0,)), "lora"))))
    core.activate(model, Skip("par", (0,)))
    core.detach(model, "par")
    assert torch.equal(under_force(model), under(model, "llama", None))


def test_a_fusion_without_one_of_its_adapters_is_off() -> None:
    model = model_with("llama", "p", "par", fusions={"f": Fusion(of=("p", "par"))})
    core.detach(model, "p")
    assert torch.equal(under_force(model), under(model, "llama", None))
    with pytest.raises(NoSuchAdapter, match="'p'"):
        core.activate(model, Fuse(("p", "par"), by="f"))
    core.detach(model, "f")
    core.detach(model, "par")
    base = FAMILIES["llama"].build().double()
    assert [type(m) for m in model.modules()] == [type(m) for m in base.modules()]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def under_force(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return logits(model, FAMILIES["llama"].batch())


# Refusals


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (
            Stack(("lang", "other")),
            "'lang' and 'other' stand in one Stack, and each replaces.*choose by row with Route",
        ),
        (Stack(("lang", "p", "lang")), "'lang' and 'lang' stand in one Stack"),
        (Stack(("lang", Skip("alone", (0,)))), "'lang' and 'alone' stand in one Stack"),
        (
            Stack(("p", Route(("lang", Stack(("other", "alone"))), torch.zeros(2, dtype=torch.int64)))),
            "'other' and 'alone'",
        ),
        (Sum(("lang", "p")), "'lang' cannot be a part of Sum: it replaces what it reads.*put it in a Stack"),
        (Sum((Stack(("p", "alone")), "par")), "'alone' cannot be a part of Sum"),
        (Fuse(("p", "lang"), by="f"), "'lang' cannot be a part of Fuse"),
        (Fuse(("p", "par"), by="h"), "Fuse is given by='h', an adapter of adapter-h; attach one of the method fusion"),
        (
            Fuse(("lora", "p", "lora"), by="f"),
            "'f' was not made for 'lora': it has nothing at model.layers.0.self_attn.q_proj",
        ),
        (Sum((Skip("p", (0, 2)), "par")), "Skip names layer 2; there are layers 0 to 1"),
        (
            Stack((Route((Skip("p", (-1,)), "par"), torch.zeros(2, dtype=torch.int64)),)),
            "Skip names layer -1; there are",
        ),
        (Skip(Fuse((Skip("p", (5,)), "par"), by="f"), (0,)), "Skip names layer 5"),
        (Skip("p", (0,), "encoder"), "Skip names the stack 'encoder'; this model has: decoder"),
        ("f", r"'f' is a fusion, which mixes other adapters: write Fuse\(\(...\), by='f'\)"),
        (Stack(("p", "f")), "'f' is a fusion"),
    ],
    ids=str,
)
def test_compositions_that_mean_nothing(plan: Plan, match: str) -> None:
    model = refusing()
    with pytest.raises(BadConfig, match=match):
        core.activate(model, plan)
    with pytest.raises(BadConfig, match=match), core.using(model, plan):
        pass


@cache
def refusing() -> nn.Module:
    names = ("p", "par", "h", "lora", "lang", "other", "alone")
    return model_with("llama", *names, fusions={"f": Fusion(of=("p", "par"))})


def test_plans_that_are_malformed() -> None:
    with pytest.raises(BadConfig, match="Fuse in Fuse"):
        Fuse((Fuse(("a", "b"), by="f"), "c"), by="g")
    with pytest.raises(BadConfig, match="Fuse needs by="):
        Fuse(("a", "b"), by=None)  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match=r"Skip needs layers as a tuple of numbers, as Skip\('a', \(0, 1\)\)"):
        Skip("a", [0])  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="Fuse needs a tuple of plans"):
        Fuse((), by="f")


@pytest.mark.parametrize(
    ("fusion", "match"),
    [
        (Fusion(of=("p", "p")), "at least two attached adapters"),
        (Fusion(of=("p", "lang")), "'lang' replaces what it acts on"),
        (Fusion(of=("p", "alone")), "'alone' replaces what it acts on"),
    ],
    ids=str,
)
def test_fusions_that_cannot_be(fusion: Fusion, match: str) -> None:
    model = model_with("llama", "p", "lang", "alone")
    with pytest.raises(BadConfig, match=match):
        core.attach(model, fusion, name="f")
    assert set(core.adapters(model)) == {"p", "lang", "alone"}


def test_fusions_of_what_does_not_add_to_an_output() -> None:
    model = model_with("llama", "p", "par", "ia3", "kv")
    with pytest.raises(NoSuchSite, match="no two of p, kv act at one site"):
        core.attach(model, Fusion(of=("p", "kv")), name="f")
    with pytest.raises(NoSuchSite, match=r"'ia3' does not add to the output of model.layers.0.mlp.down_proj"):
        core.attach(model, Fusion(of=("p", "ia3")), name="f")
    core.attach(model, Fusion(of=("p", "par")), name="f")
    with pytest.raises(NoSuchSite, match="'f' does not add"):
        core.attach(model, Fusion(of=("p", "f")), name="g")
    with pytest.raises(NoSuchAdapter, match="did you mean|there are"):
        core.attach(model, Fusion(of=("p", "pat")), name="g")
    for fields, match in (
        ({"targets": ("mlp",)}, "leave targets"),
        ({"dropout": 1.0}, "dropout"),
        ({"temperature": 0.0}, "above 0"),
    ):
        with pytest.raises(BadConfig, match=match):
            Fusion.from_dict({"of": ("p", "par"), **fields})
