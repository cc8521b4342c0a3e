"""An adapter starts as the identity; switched off it is the base bit for bit; detached it leaves no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import budwood.core as core
from adapted import IN_PLACE, VARIANTS, adapted, anatomy_of, close, logits
from budwood.errors import BudwoodError
from families import FAMILIES, SMALL

SWITCHED = [v for v in VARIANTS if v not in IN_PLACE]


def footprint(model: nn.Module) -> dict[str, object]:
    """Everything that attaching could leave behind."""
    return {
        "children": [(name, type(module)) for name, module in model.named_modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._forward_hooks_with_kwargs))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "trainable": [(name, p.requires_grad, p.dtype) for name, p in model.named_parameters()],
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_identity(family: str, variant: str) -> None:
    base = FAMILIES[family].build()
    model, batch = adapted(family, variant)
    with torch.no_grad():
        assert close(logits(model, batch), logits(base, batch), 1e-6)


@pytest.mark.parametrize("variant", SWITCHED)
@pytest.mark.parametrize("family", SMALL)
def test_off_is_the_base_bit_for_bit(family: str, variant: str) -> None:
    base = FAMILIES[family].build()
    model, batch = adapted(family, variant, perturbed=True)
    with torch.no_grad():
        on = logits(model, batch)
        with core.using(model, None):
            off = logits(model, batch)
        again = logits(model, batch)
        assert torch.equal(off, logits(base, batch))
    assert not torch.equal(on, off)
    assert torch.equal(on, again)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", SMALL)
def test_detach_leaves_no_trace(family: str, variant: str) -> None:
    base = FAMILIES[family].build()
    model, batch = adapted(family, variant, perturbed=True)
    model.train()
    logits(model, batch).square().sum().backward()
    model.eval()
    core.detach(model, "faq")
    assert footprint(model) == footprint(base)
    before, after = base.state_dict(), model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("family", SMALL)
def test_base_keys_and_values_stay_while_attached(family: str) -> None:
    base = FAMILIES[family].build()
    for variant in ("lora", "full", "selective"):
        model, _ = adapted(family, variant, perturbed=True)
        state = core.base_state_dict(model)
        expected = base.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("variant", ["lora", "ia3", "lora-dora", "bitfit"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_starts_as_the_identity_on_a_bfloat16_base(family: str, variant: str) -> None:
    batch = FAMILIES[family].batch()
    base, model = FAMILIES[family].build().bfloat16(), FAMILIES[family].build().bfloat16()
    try:
        core.attach(model, VARIANTS[variant], name="faq", anatomy=anatomy_of(family))
    except BudwoodError as refusal:
        pytest.skip(str(refusal))
    assert {p.dtype for p in core.parameters(model, "faq")} == {torch.float32}
    with torch.no_grad():
        assert close(logits(model, batch).float(), logits(base, batch).float(), 2e-2)
