"""`budwood.combine` on models: the same function as a Sum plan, real PEFT, every kind of LoRA, and what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import budwood as bw
from adapted import VARIANTS, anatomy_of, close, logits, perturb
from budwood.combine import HOWS, Combined
from budwood.combine.adapters import combine
from budwood.combine.arithmetic import ties
from budwood.core import delta_at, named_parameters
from budwood.errors import BadConfig, NoSuchAdapter
from families import FAMILIES

BASES = ("llama", "gpt2", "bert", "t5")
PARTS = bw.LoRA(targets=("attn.q", "attn.v", "cross.v?"), rank=3, alpha=5.0, rslora=True)
WIDE = bw.LoRA(targets=("all",), rank=4, ranks={"attn.*": 2}, alphas={"mlp.*": 7.0})
DENSE = ("ties", "dare-linear", "dare-ties", "prune")


def with_adapters(
    family: str, dtype: torch.dtype = torch.float32, **methods: bw.Method
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny model with perturbed adapters of these names, and a batch."""
    model = FAMILIES[family].build().to(dtype)
    for number, (name, method) in enumerate(methods.items()):
        bw.attach(model, method, name=name, anatomy=anatomy_of(family))
        perturb(model, name, seed=number)
    return model.eval(), FAMILIES[family].batch()


def under(model: nn.Module, batch: dict[str, Tensor], plan: bw.Plan) -> Tensor:
    with torch.no_grad(), bw.using(model, plan):
        return logits(model, batch)


def update_at(model: nn.Module, path: str, name: str) -> Tensor:
    """The update of a linear's weight, [out, in], from what folding it would give; zero where the adapter is absent."""
    module = model.get_submodule(path)
    weight = module.get_parameter("weight").detach()
    site = next((site for site in bw.adapters(model)[name].sites if site.path == path), None)
    if site is None:
        return torch.zeros_like(weight)
    folded = delta_at(model, site, name).fold(module)
    assert folded is not None
    return folded["weight"].detach() - weight


@pytest.mark.parametrize("how", ["linear", "cat"])
@pytest.mark.parametrize("family", [*BASES, "gpt_neox", "mbart"])
def test_sums_are_the_sum_plan(family: str, how: str) -> None:
    weights = (0.4, -0.8)
    model, batch = with_adapters(family, torch.float64, a=PARTS, b=WIDE)
    expected = under(model, batch, bw.Sum(("a", "b"), weights))
    result = bw.combine(model, ("a", "b"), name="both", how=how, weights=weights)
    assert close(under(model, batch, "both"), expected, 1e-11)
    assert not close(expected, under(model, batch, None), 1e-2)
    assert {site.path for site in result.adapter.sites} == {s.path for n in "ab" for s in bw.adapters(model)[n].sites}
    assert result.worst[1] == 0 == result.mean
    assert all(p.requires_grad for p in bw.parameters(model, "both"))


def test_weights_are_one_each_and_order_does_not_matter() -> None:
    model, batch = with_adapters("llama", a=PARTS, b=WIDE)
    for how in HOWS:
        combine(model, ("a", "b"), name=f"one-{how}", how=how, seed=3)
        combine(model, ["b", "a"], name=f"two-{how}", how=how, seed=3, weights=[1, 1])
        assert close(under(model, batch, f"one-{how}"), under(model, batch, f"two-{how}"), 2e-5), how


@pytest.mark.parametrize("how", ["cat", "linear", "svd"])
def test_an_adapter_of_weight_zero_leaves_the_other_one(how: str) -> None:
    model, batch = with_adapters("llama", a=WIDE, b=WIDE)
    result = combine(model, ("a", "b"), name="c", how=how, weights=(1, 0))
    assert close(under(model, batch, "c"), under(model, batch, "a"), 1e-5)
    assert result.mean < 1e-6


@pytest.mark.parametrize("variant", ["lora-pissa", "lora-gaussian", "lora-embed", "lora-fused", "lora-all"])
@pytest.mark.parametrize("family", BASES)
def test_every_kind_of_lora_merges_and_travels(family: str, variant: str, tmp_path: Path) -> None:
    if family != "gpt2" and variant == "lora-fused":
        pytest.skip("nothing is fused here")
    model, batch = with_adapters(family, a=VARIANTS[variant], b=PARTS)
    expected = under(model, batch, bw.Sum(("a", "b")))
    combine(model, ("a", "b"), name="both")
    assert close(under(model, batch, "both"), expected, 1e-4 if "pissa" in variant else 2e-5)
    bw.save(model, tmp_path, name="both")
    fresh = FAMILIES[family].build()
    bw.load(fresh, tmp_path, name="again", anatomy=anatomy_of(family))
    assert close(under(fresh, batch, "again"), under(model, batch, "both"), 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(FAMILIES[family].build(), tmp_path).eval()
    with torch.no_grad():
        assert close(logits(theirs, batch), under(model, batch, "both"), 1e-4)


@pytest.mark.parametrize("how", ["svd", *DENSE])
def test_the_errors_that_are_reported_are_those_there_are(how: str) -> None:
    model, _ = with_adapters("gpt2", a=PARTS, b=WIDE)
    full = combine(model, ("a", "b"), name="full", how=how, seed=2, rank=8 if how == "svd" else 32)
    cut = combine(model, ("a", "b"), name="cut", how=how, seed=2, rank=3)
    assert full.mean < 1e-5 < cut.mean < cut.worst[1] < 1
    for path, error in cut.errors.items():
        asked, made = update_at(model, path, "full"), update_at(model, path, "cut")
        assert float((asked - made).norm() / asked.norm()) == pytest.approx(error, abs=1e-4), path
        assert cut.ranks[path] == min(3, full.ranks[path])


def test_ties_acts_on_the_updates_themselves() -> None:
    model, _ = with_adapters("llama", a=WIDE, b=PARTS)
    result = combine(model, ("a", "b"), name="c", how="ties", density=0.3, rank=32, weights=(0.5, 0.5))
    for path in result.errors:
        expected = ties([update_at(model, path, n) for n in "ab"], (0.5, 0.5), 0.3)
        assert close(update_at(model, path, "c"), expected, 1e-4), path


def test_dare_hangs_on_the_seed_alone() -> None:
    model, batch = with_adapters("llama", a=WIDE, b=PARTS)
    for name, seed in (("c", 1), ("d", 1), ("e", 2)):
        torch.manual_seed(ord(name))
        combine(model, ("a", "b"), name=name, how="dare-linear", seed=seed)
    assert torch.equal(under(model, batch, "c"), under(model, batch, "d"))
    assert not close(under(model, batch, "c"), under(model, batch, "e"), 1e-3)


def test_ranks_default_to_what_the_docstring_says_and_never_exceed_the_matrix() -> None:
    model, _ = with_adapters("llama", a=bw.LoRA(rank=12), b=bw.LoRA(rank=8))
    q, v = (f"model.layers.0.self_attn.{name}_proj" for name in "qv")  # 32 x 32 and 16 x 32
    expected = {"cat": (20, 20), "linear": (20, 16), "svd": (12, 12), "ties": (20, 16), "dare-ties": (20, 16)}
    for how, (at_q, at_v) in expected.items():
        ranks = combine(model, ("a", "b"), name=how, how=how).ranks
        assert (ranks[q], ranks[v]) == (at_q, at_v), how
    method = bw.adapters(model)["linear"].method
    assert isinstance(method, bw.LoRA)
    assert method.ranks == {"attn.k": 16, "attn.v": 16} and method.alpha == method.rank == 20


def test_layers_are_told_as_layers_and_odd_selections_by_path(tmp_path: Path) -> None:
    model, batch = with_adapters("llama", a=bw.LoRA(layers=(1,)), b=bw.LoRA(layers=(1,), targets=("attn.q",)))
    assert combine(model, ("a", "b"), name="c").adapter.method.layers == (1,)
    bw.attach(model, bw.LoRA(layers=(0,), targets=("attn.q",)), name="d")
    perturb(model, "d")
    expected = under(model, batch, bw.Sum(("a", "d")))
    assert "model.layers.0.self_attn.q_proj" in combine(model, ("a", "d"), name="e").adapter.method.targets
    assert close(under(model, batch, "e"), expected, 1e-5)
    bw.save(model, tmp_path, name="e")
    fresh = FAMILIES["llama"].build()
    bw.load(fresh, tmp_path, name="e")
    assert close(under(fresh, batch, "e"), expected, 1e-5)


# ------------------------------------------------------------------------------------------------------- PEFT's own
def peft_with(model: nn.Module, family: str, folder: Path) -> peft.PeftModel:
    """PEFT's model with adapters a and b of ours."""
    for name in "ab":
        bw.save(model, folder / name, name=name)
    theirs = peft.PeftModel.from_pretrained(FAMILIES[family].build(), folder / "a", adapter_name="a")
    theirs.load_adapter(folder / "b", "b")
    return theirs.eval()


@pytest.mark.parametrize(
    ("ours", "theirs", "settings"),
    [
        ("cat", "cat", {}),
        ("svd", "svd", {"rank": 3}),
        ("ties", "ties_svd", {"density": 0.25, "rank": 8}),
        ("prune", "magnitude_prune_svd", {"density": 0.25, "rank": 8}),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_peft_agrees(family: str, ours: str, theirs: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Where definitions agree: TIES with equal weights. PEFT's dare_* draw from the global generator, and its `linear`
    and `ties` are products of merged factors, which nothing here computes."""
    method = bw.LoRA(targets=("attn.qkv",) if family == "gpt2" else ("attn.q", "attn.o"), rank=4)
    model, batch = with_adapters(family, a=method, b=method)
    weights = [0.5, 0.5] if ours == "ties" else [0.6, -0.3] if ours == "svd" else [0.6, 0.3]
    combine(model, ("a", "b"), name="c", how=ours, weights=weights, **settings)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        other = peft_with(model, family, tmp_path)
        renamed = {"svd_rank" if key == "rank" else key: value for key, value in settings.items()}
        other.base_model.add_weighted_adapter(["a", "b"], weights, "c", combination_type=theirs, **renamed)
        other.set_adapter("c")
        assert close(logits(other, batch), under(model, batch, "c"), 1e-5)


# ---------------------------------------------------------------------------------------------------- trained heads
def with_heads(*, equal: bool) -> tuple[nn.Module, dict[str, Tensor]]:
    model, batch = with_adapters("roberta-classify", a=bw.LoRA(rank=2), b=bw.LoRA(rank=3, targets=("attn.q",)))
    if equal:
        with torch.no_grad():
            ours, theirs = named_parameters(model, "a"), named_parameters(model, "b")
            for key in (key for key in theirs if key.startswith("classifier")):
                theirs[key].copy_(ours[key])
    return model, batch


def test_equal_heads_come_along(tmp_path: Path) -> None:
    model, batch = with_heads(equal=True)
    expected = under(model, batch, bw.Stack(("a", "b")))  # the same head, set twice
    combine(model, ("a", "b"), name="c")
    assert close(under(model, batch, "c"), expected, 1e-5)
    bw.save(model, tmp_path, name="c")
    fresh = FAMILIES["roberta-classify"].build()
    bw.load(fresh, tmp_path, name="c")
    assert close(under(fresh, batch, "c"), expected, 1e-5)


def test_heads_that_differ_need_a_choice() -> None:
    model, _ = with_heads(equal=False)
    with pytest.raises(BadConfig, match=r"'a' and 'b' have trained classifier.* head='a'"):
        combine(model, ("a", "b"), name="c")
    assert "c" not in bw.adapters(model)
    combine(model, ("a", "b"), name="c", head="b")
    own, chosen = named_parameters(model, "c"), named_parameters(model, "b")
    heads = [key for key in chosen if key.startswith("classifier")]
    assert heads and all(torch.equal(own[key], chosen[key]) for key in heads)


def test_an_adapter_that_trains_no_head_takes_that_of_the_others() -> None:
    model, _ = with_adapters("roberta-classify", a=bw.LoRA(), b=bw.LoRA(trained=()))
    combine(model, ("b", "a"), name="c")
    own, chosen = named_parameters(model, "c"), named_parameters(model, "a")
    assert all(torch.equal(own[key], chosen[key]) for key in chosen if key.startswith("classifier"))
    with pytest.raises(BadConfig, match=r"head is 'b'.* these have: a"):
        combine(model, ("a", "b"), name="d", head="b")
    bw.attach(model, bw.LoRA(trained=("classifier.out_proj",)), name="e")
    with pytest.raises(BadConfig, match=r"'a' trains classifier\.dense in full and 'e' does not"):
        combine(model, ("a", "e"), name="d", head="a")


# ------------------------------------------------------------------------------------------------------- bad inputs
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"names": ("a",)}, "give two adapters or more"),
    ({"names": "ab"}, "give two adapters or more"),
    ({"names": ("a", "b", "a")}, "'a' is named twice"),
    ({"name": "a"}, "called 'a' is attached already"),
    ({"name": "no dots."}, "use letters, digits"),
    ({"how": "dare"}, "did you mean 'dare-"),
    ({"how": "slerp"}, "there are: cat, dare-linear"),
    ({"how": "ties", "density": 0.0}, r"density is 0.0; .* in \(0, 1\]"),
    ({"how": "ties", "density": 1.5}, "density is 1.5"),
    ({"how": "dare-ties", "density": float("nan")}, "density is nan"),
    ({"how": "svd", "density": 0.5}, "svd keeps every value"),
    ({"how": "prune", "sign": "total"}, "prune elects no signs"),
    ({"how": "ties", "sign": "totl"}, "did you mean 'total'"),
    ({"weights": (1.0,)}, "2 adapters and 1 weights"),
    ({"weights": (1.0, float("inf"))}, "must be finite"),
    ({"weights": (0, 0)}, "not all of them zero"),
    ({"how": "cat", "rank": 4}, "use svd to choose the rank"),
    ({"how": "svd", "rank": 0}, "rank is 0"),
    ({"how": "svd", "rank": 11}, "rank of at most 10; give 1 to 10"),
    ({"how": "ties", "rank": 33}, "rank of at most 32"),
    ({"head": "a"}, "these have: none"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_settings_that_mean_nothing(settings: dict[str, Any], message: str) -> None:
    model, _ = with_adapters("llama", a=bw.LoRA(rank=4), b=bw.LoRA(rank=6))
    with pytest.raises(BadConfig, match=message):
        combine(model, **{"names": ("a", "b"), "name": "c", **settings})
    assert list(bw.adapters(model)) == ["a", "b"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (bw.IA3(), r"'b' is ia3, and only LoRA .* budwood\.Sum\(\('a', 'b'\)\)"),
        (bw.LoRA(dora=True), r"'b' rescales the rows .* budwood\.Sum"),
        (bw.LoRA(bias=True), r"'b' trains a bias of B .* budwood\.Sum"),
    ],
)
def test_what_is_no_plain_lora_is_refused_with_what_to_do_instead(method: bw.Method, message: str) -> None:
    model, _ = with_adapters("llama", a=bw.LoRA(), b=method)
    with pytest.raises(BadConfig, match=message):
        combine(model, ("a", "b"), name="c")


def test_names_that_are_not_attached() -> None:
    model, _ = with_adapters("llama", a=bw.LoRA())
    with pytest.raises(NoSuchAdapter, match="no adapter is called 'b'"):
        combine(model, ("a", "b"), name="c")
    with pytest.raises(NoSuchAdapter, match="no adapter is attached"):
        combine(FAMILIES["llama"].build(), ("a", "b"), name="c")


def test_an_update_that_is_not_finite_is_refused_by_name() -> None:
    model, _ = with_adapters("llama", a=bw.LoRA(), b=bw.LoRA())
    with torch.no_grad():
        bw.parameters(model, "b")[0].fill_(float("nan"))
    with pytest.raises(BadConfig, match=r"'b' holds NaN or infinity at model\.layers\.0"):
        combine(model, ("a", "b"), name="c")


def test_a_module_that_one_adapts_and_another_trains_in_full() -> None:
    model, _ = with_adapters("roberta-classify", a=bw.LoRA(), b=bw.LoRA(trained=(), targets=("head",)))
    with pytest.raises(BadConfig, match=r"'b' adapts classifier\.dense by LoRA, and another one trains all of it"):
        combine(model, ("a", "b"), name="c")


def test_a_model_that_was_halved_with_its_adapters() -> None:
    """`model.half()` takes the adapters along; their updates are merged in float32 all the same."""
    model, _ = with_adapters("llama", a=bw.LoRA(), b=bw.LoRA(rank=3))
    model.half()
    for how in HOWS:
        settings = {"density": 0.5} if how in DENSE else {}
        combined = combine(model, ("a", "b"), name=how, how=how, **settings)
        assert combined.worst[1] < (1e-5 if how in ("linear", "cat") else 1)


def test_a_float64_base_keeps_its_digits() -> None:
    model, batch = with_adapters("llama", torch.float64, a=bw.LoRA(rank=2), b=bw.LoRA(rank=2))
    expected = under(model, batch, bw.Sum(("a", "b")))
    result = combine(model, ("a", "b"), name="c", how="svd", rank=4)
    assert isinstance(result, Combined)
    assert close(under(model, batch, "c"), expected, 1e-12)
