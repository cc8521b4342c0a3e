"""Every declared parameter gets a gradient and changes after one step; nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import budwood.core as core
from adapted import ADDED, PLACES, VARIANTS, adapted, cases, logits, weighted
from families import SMALL


@pytest.mark.parametrize(("family", "variant"), cases(SMALL, PLACES))
def test_all_of_the_adapter_and_nothing_else_moves(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    own = core.named_parameters(model, "faq")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in own.values()} == {id(p) for n, p in model.named_parameters() if n in trainable}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    own_before = {name: p.detach().clone() for name, p in own.items()}

    weighted(logits(model, batch)).backward()
    for parameter in own.values():
        assert parameter.grad is not None
    torch.optim.SGD(core.parameters(model, "faq"), lr=1.0).step()

    still = {name for name, p in own.items() if torch.equal(p, own_before[name])}
    assert still <= cannot_move(model, variant)
    for name, parameter in model.named_parameters():
        if name not in trainable:
            assert parameter.grad is None
            assert torch.equal(parameter, before[name])


def cannot_move(model: nn.Module, variant: str) -> set[str]:
    """Parameters whose gradient is zero by mathematics: a bias of all keys shifts every score of a query alike, and
    softmax does not see it."""
    if variant != "bitfit":
        return set()
    return {f"{s.path}.b" for s in core.adapters(model)["faq"].sites if s.role in ("attn.k", "cross.k")}


@pytest.mark.parametrize("variant", ADDED)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradients_in_mixed_precision(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = logits(model.train(), batch)
    weighted(out.float()).backward()
    for parameter in core.parameters(model, "faq"):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_only_the_plan_trains(family: str) -> None:
    model, batch = adapted(family, "lora", "a", perturbed=True)
    core.attach(model, VARIANTS["ia3"], name="b")
    assert {p.requires_grad for p in core.parameters(model, "a")} == {False}
    core.activate(model, core.Stack(("a", "b")), trainable=("b",))
    weighted(logits(model, batch)).backward()
    assert all(p.grad is None for p in core.parameters(model, "a"))
    assert all(p.grad is not None for p in core.parameters(model, "b"))
    core.activate(model, core.Sum(("a", "b")))
    assert all(p.requires_grad for name in "ab" for p in core.parameters(model, name))
