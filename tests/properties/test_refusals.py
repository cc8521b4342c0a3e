"""Which methods refuse which families, and that they say why: a frozen list, so that a refusal is never an accident."""

from __future__ import annotations

import pytest

import budwood.core as core
from adapted import VARIANTS, anatomy_of
from budwood.errors import BudwoodError
from families import FAMILIES

FUSED = {"phi3", "gpt2", "gpt2-classify", "gpt_neox", "gpt_bigcode", "bloom", "falcon", "mpt", "codegen", "modernbert"}
NO_BIAS = {
    "llama", "llama-classify", "mistral", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "mixtral", "olmo2", "granite",
    "cohere", "mpt", "mamba", "jamba", "t5", "flan-t5", "qwen3_moe", "deepseek_v2",
}  # fmt: skip
NO_QKV = {"mamba", "rwkv", "deepseek_v2"}
"""Without plain query, key and value projections: a mixer, or latent attention."""
SCALED_EMBEDDING = {"gemma", "gemma2", "gemma3", "bart", "mbart"}
"""Whose token embedding multiplies what it looks up."""
NO_MLP_LINEAR = {"mixtral"}
"""Every feed-forward layer is experts in one tensor."""


def expected(family: str) -> set[str]:
    refused = {"lora-fused"} if family not in FUSED else set()
    refused |= {"bitfit"} if family in NO_BIAS else set()
    refused |= {"lora-qv", "lora-pissa", "lora-gaussian", "ia3"} if family in NO_QKV else set()
    refused |= {"lora-embed"} if family in SCALED_EMBEDDING else set()
    return refused | ({"ia3"} if family in NO_MLP_LINEAR else set())


@pytest.mark.parametrize("family", FAMILIES)
def test_refusals(family: str) -> None:
    model = FAMILIES[family].build()
    refused = {}
    for variant, method in VARIANTS.items():
        try:
            core.attach(model, method, name="a", anatomy=anatomy_of(family))
        except BudwoodError as refusal:
            refused[variant] = str(refusal)
        else:
            core.detach(model, "a")
    for reason in refused.values():
        assert "roles in this model" in reason or "use part=norms" in reason or "leave it out" in reason
    assert set(refused) == expected(family)
