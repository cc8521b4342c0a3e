"""Adapters on int8 and NF4 bases: identity at start, gradients, detach; what needs the plain weight is refused."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import BESIDE, VARIANTS, anatomy_of, close, logits, perturb, weighted
from budwood.errors import BadConfig, CannotFold
from families import FAMILIES

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason='bitsandbytes is absent: pip install "budwood[quant]"'
)


def quantised(kind: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny Llama whose block linears are bitsandbytes'."""
    import bitsandbytes as bnb

    model = FAMILIES["llama"].build()
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in path:
            size: dict[str, Any] = {"input_features": module.in_features, "output_features": module.out_features}
            weight = module.weight.detach()
            if kind == "nf4":
                new = bnb.nn.Linear4bit(**size, bias=False, quant_type="nf4", compute_dtype=torch.float32)
                new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
            else:
                new = bnb.nn.Linear8bitLt(**size, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, new.to("cpu"))
    return model.eval(), FAMILIES["llama"].batch()


@pytest.mark.parametrize(
    "variant",
    [
        "lora-all",
        "ia3",
        "adapter-h",
        "adapter-p-all",
        "parallel-heads",
        "linear-adapter",
        "prefix-rows",
        "prompt-tuning",
    ],
)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_attach_train_detach(kind: str, variant: str) -> None:
    model, batch = quantised(kind)
    with torch.no_grad():
        base = logits(model, batch)
    core.attach(model, VARIANTS[variant], name="a", anatomy=anatomy_of("llama"))
    with torch.no_grad():
        assert variant in BESIDE or close(logits(model, batch), base, 1e-5)
    perturb(model, "a")
    weighted(logits(model, batch)).backward()
    assert all(p.grad is not None and p.grad.any() for p in core.parameters(model, "a"))
    with pytest.raises(CannotFold, match="unquantised" if variant not in BESIDE else "cannot be folded"):
        core.merge(model, "a")
    core.detach(model, "a")
    with torch.no_grad():
        assert torch.equal(logits(model, batch), base)


@pytest.mark.parametrize("variant", ["lora-dora", "lora-pissa"])
def test_what_reads_the_weight_is_refused(variant: str) -> None:
    model, _ = quantised("nf4")
    with pytest.raises(BadConfig, match="stored as"):
        core.attach(model, VARIANTS[variant], name="a", anatomy=anatomy_of("llama"))
