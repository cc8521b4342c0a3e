"""An adapter starts as the identity; switched off it is the base bit for bit; detached it leaves no trace."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import BESIDE, IN_PLACE, VARIANTS, adapted, anatomy_of, cases, close, logits, perturb
from budwood.errors import BudwoodError
from families import FAMILIES, SMALL

EVERYWHERE = ("prefix-tuning", "prompt-tuning", "mam")
"""One of each kind of variant that stands beside the text: test_refusals.py attaches them all to every family."""
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


@cache
def untouched(family: str) -> tuple[Tensor, dict[str, object], dict[str, Tensor]]:
    """The plain model's logits, footprint and weights."""
    model = FAMILIES[family].build()
    with torch.no_grad():
        return logits(model, FAMILIES[family].batch()), footprint(model), model.state_dict()


@pytest.mark.parametrize(
    ("family", "variant"),
    [(f, v) for f in FAMILIES for v in VARIANTS if v not in BESIDE or v in EVERYWHERE or f in SMALL],
)
def test_starts_as_the_identity_acts_when_moved_and_goes(family: str, variant: str) -> None:
    """Off, it is the base bit for bit; detached, nothing tells that it was there."""
    base, before, state = untouched(family)
    model, batch = adapted(family, variant)
    # two Mambas with the same weights differ in the last bit, by where in memory they lie
    same = close if FAMILIES[family].is_stateful else torch.equal
    with torch.no_grad():
        start = logits(model, batch)
        assert variant in BESIDE or close(start, base, 1e-6)  # test_words.py has what those start as
        perturb(model, "faq")
        on = logits(model, batch)
        assert not close(on, base, 1e-4)
        assert not close(on, start, 1e-4)
        if variant in SWITCHED:
            with core.using(model, None):
                assert same(logits(model, batch), base)
            assert torch.equal(on, logits(model, batch))
        core.detach(model, "faq")
        assert same(logits(model, batch), base)
    assert footprint(model) == before
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize(("family", "variant"), cases(SMALL, ("llama", "bert", "t5", "falcon")))
def test_detach_after_training_leaves_no_trace(family: str, variant: str) -> None:
    _, before, state = untouched(family)
    model, batch = adapted(family, variant, perturbed=True)
    model.train()
    logits(model, batch).square().sum().backward()
    model.eval()
    core.detach(model, "faq")
    assert footprint(model) == before
    after = model.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(state[key], after[key]) for key in state)


@pytest.mark.parametrize("family", SMALL)
def test_base_keys_and_values_stay_while_attached(family: str) -> None:
    base = FAMILIES[family].build()
    for variant in ("lora", "full", "selective"):
        model, _ = adapted(family, variant, perturbed=True)
        state = core.base_state_dict(model)
        expected = base.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "variant", ["lora", "ia3", "lora-dora", "bitfit", "adapter-h-norms", "language", "parallel-all", "compacter"]
)
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
