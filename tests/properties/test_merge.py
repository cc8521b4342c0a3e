"""A merged model is the attached one, shown in float64 where rounding hides nothing; or it is refused and unchanged."""

from __future__ import annotations

import pytest
import torch

import budwood.core as core
from adapted import ADDED, BESIDE, adapted, cases, close, logits
from budwood.errors import CannotFold
from families import FAMILIES, SMALL


@pytest.mark.parametrize(("family", "variant"), cases(SMALL, ("bert", "roberta-classify")))
def test_merged_equals_attached_or_is_refused(family: str, variant: str) -> None:
    exact = family != "qwen3_moe"  # transformers' grouped experts have no float64
    dtype, tolerance = (torch.float64, 1e-10) if exact else (torch.float32, 1e-4)
    model, batch = adapted(family, variant, perturbed=True, dtype=dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        expected = logits(model, batch)
        try:
            core.merge(model, "faq")
        except CannotFold as refusal:
            words = ("cannot be folded",) if variant in (*ADDED, *BESIDE) else ("tied to", "no bias", "without a bias")
            assert any(word in str(refusal) for word in words)
            assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
            assert torch.equal(logits(model, batch), expected)
            return
        assert variant not in (*ADDED, *BESIDE)
        assert close(logits(model, batch), expected, tolerance)
    assert core.adapters(model) == {}
    assert model.state_dict().keys() == FAMILIES[family].build().state_dict().keys()
