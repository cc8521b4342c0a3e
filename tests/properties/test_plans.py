"""Stack, Sum and Route mean what they say, nest, follow beams, and refuse what they cannot do."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import VARIANTS, adapted, close, perturb
from budwood.core import Route, Stack, Sum
from budwood.errors import BadConfig, NoSuchAdapter, WrongOrder


def three(family: str = "llama") -> tuple[nn.Module, dict[str, Tensor]]:
    """Adapters a (LoRA), b (LoRA on all linears) and c ((IA)^3) on one model."""
    model, batch = adapted(family, "lora", "a", perturbed=True)
    for name, variant in (("b", "lora-all"), ("c", "ia3")):
        core.attach(model, VARIANTS[variant], name=name)
        perturb(model, name, seed=ord(name))
    return model.eval(), batch


def under(model: nn.Module, batch: dict[str, Tensor], plan: core.Plan) -> Tensor:
    with torch.no_grad(), core.using(model, plan):
        return model(**batch).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox"])
def test_route_runs_one_plan_a_row(family: str) -> None:
    model, batch = three(family)
    parts = ("a", None, "c", Stack(("a", "c")))
    batch = {k: v[:1].repeat(4, 1) for k, v in batch.items()}
    routed = under(model, batch, Route(parts, torch.tensor([3, 1, 0, 2])))
    for row, part in enumerate((parts[3], parts[1], parts[0], parts[2])):
        assert close(routed[row], under(model, batch, part)[row], 1e-6)


def test_sum_adds_weighted_deltas_with_no_hidden_factor() -> None:
    model, batch = adapted("llama", "lora", "a", perturbed=True)
    core.attach(model, VARIANTS["lora"], name="b")
    perturb(model, "b", seed=3)
    site = core.adapters(model)["a"].sites[0]
    module = model.get_submodule(site.path)
    x = torch.randn(2, 5, site.in_features)
    with torch.no_grad():
        y = {plan: site_output(model, module, x, plan) for plan in ("a", "b", None)}
        summed = site_output(model, module, x, Sum(("a", "b"), (0.3, 0.7)))
    expected = y[None] + 0.3 * (y["a"] - y[None]) + 0.7 * (y["b"] - y[None])
    assert close(summed, expected, 1e-6)
    with torch.no_grad():
        assert close(site_output(model, module, x, Sum(("a", "b"))), y["a"] + y["b"] - y[None], 1e-6)
        assert close(site_output(model, module, x, Stack(("a", "b"))), y["a"] + y["b"] - y[None], 1e-6)  # LoRA reads x


def site_output(model: nn.Module, module: nn.Module, x: Tensor, plan: core.Plan) -> Tensor:
    with core.using(model, plan):
        return module(x)


def test_stack_reads_what_came_before() -> None:
    model, batch = adapted("bert", "lora", "a", perturbed=True)
    core.attach(model, VARIANTS["ia3"], name="c")
    perturb(model, "c")
    site = next(s for s in core.adapters(model)["c"].sites if s.role == "attn.v")
    module = model.get_submodule(site.path)
    x = torch.randn(2, 5, site.in_features)
    with torch.no_grad():
        scale = dict(core.named_parameters(model, "c"))[f"{site.path}.l"]
        first = site_output(model, module, x, "a")
        assert close(site_output(model, module, x, Stack(("a", "c"))), first * scale, 1e-6)
        base, scaled = site_output(model, module, x, None), site_output(model, module, x, "c")
        assert close(site_output(model, module, x, Stack(("c", "a"))), scaled + (first - base), 1e-6)


def test_plans_of_one_equal_the_name() -> None:
    model, batch = three()
    expected = under(model, batch, "b")
    assert torch.equal(under(model, batch, Stack(("b",))), expected)
    assert close(under(model, batch, Sum(("b",))), expected, 1e-6)
    assert torch.equal(under(model, batch, Route(("b",), torch.zeros(2, dtype=torch.int64))), expected)


def test_using_restores_after_an_error() -> None:
    model, batch = three()
    core.activate(model, "a")
    expected = model(**batch).logits
    with pytest.raises(RuntimeError), core.using(model, "b"):
        raise RuntimeError
    assert torch.equal(model(**batch).logits, expected)


def test_two_threads_read_their_own_residuals() -> None:
    """Both forwards are past the residual of the first block when either comes to add to it."""
    model, batch = adapted("bert", "adapter-p", "a", perturbed=True)
    halves = [{key: value[i : i + 1] for key, value in batch.items()} for i in (0, 1)]
    expected = [under(model, half, "a") for half in halves]
    both = Barrier(2, timeout=20)
    model.get_submodule("bert.encoder.layer.0.output.dense").register_forward_hook(lambda *_: [both.wait(), None][1])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda half: model(**half).logits, halves))
    assert all(close(one, other, 1e-6) for one, other in zip(found, expected, strict=True))


def test_refusals() -> None:
    model, batch = three()
    with pytest.raises(NoSuchAdapter, match="did you mean|there are"):
        core.activate(model, Stack(("a", "z")))
    with pytest.raises(BadConfig, match="weights"):
        Sum(("a", "b"), (1.0,))
    with pytest.raises(BadConfig, match="must be finite numbers"):
        Sum(("a", "b"), (1.0, float("nan")))
    with pytest.raises(BadConfig, match="int64"):
        Route(("a",), torch.zeros(2))
    with pytest.raises(BadConfig, match="every row must be in"):
        Route(("a",), torch.ones(2, dtype=torch.int64))
    with pytest.raises(BadConfig, match="3 rows"):
        under(model, batch, Route(("a",), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(BadConfig, match="is no plan"):
        core.activate(model, 3)  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="tuple"):
        Stack("ab")  # type: ignore[arg-type]


def test_in_place_training_admits_nothing_beside_it() -> None:
    model, _ = adapted("llama", "full", "a")
    with pytest.raises(WrongOrder, match="no other adapter"):
        core.attach(model, VARIANTS["lora"], name="b")
    with pytest.raises(WrongOrder, match="gives the base back"), core.using(model, None):
        pass
    model, _ = adapted("llama", "lora", "a")
    with pytest.raises(WrongOrder, match="no other adapter"):
        core.attach(model, VARIANTS["full"], name="b")
    with pytest.raises(BadConfig, match="attached already"):
        core.attach(model, VARIANTS["lora"], name="a")
