"""LoRA's variants against the papers' formulas, written out in NumPy for one linear."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from budwood.anatomy import Anatomy, Site
from budwood.methods import LoRA
from budwood.methods.lora import added
from families import FAMILIES

IN, OUT, RANK, ALPHA = 12, 10, 3, 5.0


def attached(method: LoRA, linear: nn.Linear) -> nn.Module:
    """A model that is one linear, in the role of attn.q, with the method attached as `a`."""
    model, method = nn.Sequential(linear), dataclasses.replace(method, targets=("attn.q",))
    site = Site("0", "attn.q", "decoder", 0, linear.in_features, linear.out_features)
    core.attach(model, method, name="a", anatomy=Anatomy(sites=(site,), hidden_size=linear.in_features))
    return model


def one(method: LoRA, *, bias: bool = True) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """A model that is one linear, adapted and moved, and its numbers in float64."""
    model = attached(method, nn.Linear(IN, OUT, bias=bias).double())
    with torch.no_grad():
        for parameter in core.parameters(model, "a"):
            parameter.add_(torch.randn_like(parameter) * 0.5)
    numbers = {k.removeprefix("0."): p.detach().numpy() for k, p in core.named_parameters(model, "a").items()}
    numbers["W"] = model[0].weight.detach().numpy()  # type: ignore[union-attr]
    numbers["bias"] = model[0].bias.detach().numpy() if bias else np.zeros(OUT)  # type: ignore[union-attr]
    return model, numbers


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_lora(rslora: bool, bias: bool) -> None:
    model, n = one(LoRA(rank=RANK, alpha=ALPHA, rslora=rslora, bias=bias))
    s = ALPHA / math.sqrt(RANK) if rslora else ALPHA / RANK
    x = np.random.default_rng(0).normal(size=(4, IN))
    expected = x @ n["W"].T + n["bias"] + s * (x @ n["A"].T @ n["B"].T + (n["b"] if bias else 0))
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach(), expected, rtol=1e-12)


def test_gradients_in_closed_form() -> None:
    model, n = one(LoRA(rank=RANK, alpha=ALPHA))
    rng, s = np.random.default_rng(1), ALPHA / RANK
    x, g = rng.normal(size=(4, IN)), rng.normal(size=(4, OUT))
    inputs = torch.from_numpy(x).requires_grad_()
    (model(inputs) * torch.from_numpy(g)).sum().backward()
    grads = {k.removeprefix("0."): p.grad for k, p in core.named_parameters(model, "a").items()}
    np.testing.assert_allclose(grads["B"], s * g.T @ (x @ n["A"].T), rtol=1e-12)
    np.testing.assert_allclose(grads["A"], s * (g @ n["B"]).T @ x, rtol=1e-12)
    assert inputs.grad is not None
    np.testing.assert_allclose(inputs.grad, g @ n["W"] + s * g @ n["B"] @ n["A"], rtol=1e-12)


def test_dora() -> None:
    model, n = one(LoRA(rank=RANK, alpha=ALPHA, dora=True))
    s = ALPHA / RANK
    direction = n["W"] + s * n["B"] @ n["A"]
    ratio = n["m"] / np.linalg.norm(direction, axis=1)
    x = np.random.default_rng(2).normal(size=(4, IN))
    np.testing.assert_allclose(model(torch.from_numpy(x)).detach(), ratio * (x @ direction.T) + n["bias"], rtol=1e-10)


def test_dora_starts_at_the_row_norms() -> None:
    model = attached(LoRA(dora=True), nn.Linear(IN, OUT).double())
    m = core.named_parameters(model, "a")["0.m"].detach()
    torch.testing.assert_close(m, model[0].weight.norm(dim=1), rtol=1e-6, atol=0)  # type: ignore[union-attr, operator]


def test_pissa_starts_at_the_leading_singular_directions() -> None:
    model = attached(LoRA(rank=RANK, alpha=ALPHA, init="pissa"), nn.Linear(IN, OUT).double())
    n = {k: p.detach().numpy() for k, p in core.named_parameters(model, "a").items()}
    U, S, V = np.linalg.svd(model[0].weight.detach().numpy())  # type: ignore[union-attr]
    leading = U[:, :RANK] * S[:RANK] @ V[:RANK]
    np.testing.assert_allclose(ALPHA / RANK * n["0.B"] @ n["0.A"], leading, atol=1e-6)


def test_starting_values() -> None:
    torch.manual_seed(0)
    for init, std in (("kaiming", 1 / math.sqrt(3 * 4000)), ("gaussian", 1 / 8)):
        model = attached(LoRA.from_dict({"init": init}), nn.Linear(4000, 4))
        values = core.named_parameters(model, "a")
        assert values["0.A"].std().item() == pytest.approx(std, rel=0.05)
        assert not values["0.B"].any()


def test_dropout_acts_on_what_the_update_reads() -> None:
    model, n = one(LoRA(rank=RANK, alpha=ALPHA, dropout=0.5))
    x = torch.ones(2000, IN, dtype=torch.float64)
    model.eval()
    base = x.numpy() @ n["W"].T + n["bias"]
    exact = model(x).detach().numpy() - base
    model.train()
    dropped = model(x).detach().numpy() - base
    assert not np.allclose(dropped, exact)
    np.testing.assert_allclose(dropped.mean(0), exact.mean(0), atol=0.35 * np.abs(exact).max())
    assert model[0].deltas.training  # type: ignore[union-attr]


def test_parts_of_a_fused_projection_get_pairs_of_their_own() -> None:
    """loralib's MergedLinear: rows of q and v get s B_j A_j x, rows of k nothing."""
    model, batch = FAMILIES["gpt2"].build(), FAMILIES["gpt2"].batch()
    core.attach(model, LoRA(rank=2, alpha=4.0, targets=("attn.q", "attn.v")), name="a")
    base = FAMILIES["gpt2"].build()
    d = 32
    for layer in range(2):
        path = f"transformer.h.{layer}.attn.c_attn"
        own = core.named_parameters(model, "a")
        A, B = own[f"{path}.A"], own[f"{path}.B"]
        assert A.shape == (4, d)
        assert B.shape == (2 * d, 2)
        with torch.no_grad():
            B.normal_()
            weight = base.get_submodule(path).weight  # [in, out]
            weight[:, :d] += 2.0 * (B[:d] @ A[:2]).T
            weight[:, 2 * d :] += 2.0 * (B[d:] @ A[2:]).T
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)


def formula(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return y + (x.to(A.dtype) @ A.T @ B.T * scale).to(y.dtype)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (2, 0)], ids=str)
@pytest.mark.parametrize(
    ("stored", "kept", "autocast", "most"),
    [
        (torch.float64, torch.float64, False, 1e-13),
        (torch.float32, torch.float32, False, 1e-5),
        (torch.bfloat16, torch.float32, False, 1e-2),
        (torch.float32, torch.float32, True, 3e-2),
        (torch.bfloat16, torch.float32, True, 3e-2),
    ],
    ids=["float64", "float32", "bfloat16-base", "autocast", "autocast-bfloat16"],
)
def test_one_product_is_the_formula(
    shape: tuple[int, ...], stored: torch.dtype, kept: torch.dtype, autocast: bool, most: float
) -> None:
    """Values, gradients and dtypes of y + s B A x, added in one product, whatever arithmetic it is in."""
    random = torch.Generator().manual_seed(3)

    def found(function: Callable[..., Tensor]) -> list[Tensor]:
        random.manual_seed(3)
        dtypes = {"y": stored, "x": stored, "A": kept, "B": kept}
        sizes = {"y": (*shape, OUT), "x": (*shape, IN), "A": (RANK, IN), "B": (OUT, RANK)}
        leaves = [torch.randn(sizes[k], generator=random).to(d).requires_grad_() for k, d in dtypes.items()]
        y = leaves[0].to(torch.bfloat16) if autocast else leaves[0] * 1
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = function(y, *leaves[1:], 1.7)
        out.backward(torch.randn(out.shape, generator=random).to(out.dtype))
        assert [leaf.grad is not None and leaf.grad.dtype == leaf.dtype for leaf in leaves] == [True] * 4
        return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    for ours, theirs in zip(found(added), found(formula), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours - theirs).double().norm() <= most * theirs.double().norm()


def test_a_base_in_more_bits_than_autocast_keeps_them() -> None:
    y, x = torch.full((1, OUT), 1 + 2**-20), torch.ones(1, IN)
    with torch.autocast("cpu", torch.bfloat16):
        out = added(y, x, torch.ones(RANK, IN), torch.zeros(OUT, RANK), 2.0)
    assert out.dtype == torch.float32 and torch.equal(out, y)
