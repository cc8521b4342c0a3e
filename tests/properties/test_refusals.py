"""Which methods refuse which families, and that they say why: a frozen list, so that a refusal is never an accident."""

from __future__ import annotations

import pytest

import budwood.core as core
from adapted import AT_SUBLAYERS, VARIANTS, anatomy_of
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
NO_SUBLAYER = {"mamba", "rwkv"}
"""A mixer alone; a feed-forward that a gate scales before the sum."""
NO_INVERSE = {"electra", "albert"}
"""An output embedding narrower than the blocks; a first block that runs once for every layer."""
IN_FRONT = {"parallel-before", "parallel-heads", "parallel-queries"}
"""What reads the queries, which latent attention makes in two steps."""


def expected(family: str) -> set[str]:
    refused = {"lora-fused"} if family not in FUSED else set()
    refused |= {"bitfit"} if family in NO_BIAS else set()
    refused |= {"lora-qv", "lora-pissa", "lora-gaussian", "ia3"} if family in NO_QKV else set()
    refused |= {"lora-embed"} if family in SCALED_EMBEDDING else set()
    refused |= set(AT_SUBLAYERS) if family in NO_SUBLAYER else set()
    refused |= {"language"} if family in NO_INVERSE else set()
    refused |= IN_FRONT if family == "deepseek_v2" else set()
    refused |= {"linear-adapter", "linear-adapter-p"} if family in NO_MLP_LINEAR | {"mamba"} else set()
    return refused | ({"ia3"} if family in NO_MLP_LINEAR else set())


SAY = (
    *("roles in this model", "sub-layers in this model", "use part=norms", "leave it out"),
    *("leave invertible=true out", "use attention=after", "adapt its linears"),
)
"""What a refusal says of the way on."""


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
        assert any(words in reason for words in SAY)
    assert set(refused) == expected(family)
