"""Which methods refuse which families, and that they say why: a frozen list, so that a refusal is never an accident."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, EncoderDecoderConfig, EncoderDecoderModel

import budwood.core as core
from adapted import AT_SUBLAYERS, BESIDE, VARIANTS, anatomy_of
from budwood.anatomy import discover
from budwood.core import Method
from budwood.errors import BadConfig, BudwoodError, NoSuchSite
from budwood.methods import AdapterH, AdapterP, Compacter, LinearAdapter, Parallel
from budwood.methods.prefix import Prefix
from budwood.methods.union import Union
from families import FAMILIES, GQA, LLAMA, _build

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
OWN_ATTENTION = {"deberta-v2"}
"""Whose attention goes neither through transformers' attention functions nor through a cache."""
NO_GATE = {"gptj", "gpt_neo", "codegen", "falcon", "mpt", "bloom"}
"""Whose attention computes by itself, through its cache: a prefix goes there, a gate for each query does not."""
NO_CACHE = {"mamba", "rwkv"}
"""Whose state does not say where a text begins."""
IN_FRONT = {"parallel-before", "parallel-heads", "parallel-queries"}
"""What reads the queries, which latent attention makes in two steps."""
IN_ATTENTION = {v for v in BESIDE if isinstance(VARIANTS[v], Prefix | Union)}
"""What puts rows in front of keys."""


def expected(family: str) -> set[str]:
    refused = {"lora-fused"} if family not in FUSED else set()
    refused |= {"bitfit"} if family in NO_BIAS else set()
    refused |= {"lora-qv", "lora-pissa", "lora-gaussian", "ia3", "unipelt"} if family in NO_QKV else set()
    refused |= {"lora-embed"} if family in SCALED_EMBEDDING else set()
    refused |= set(AT_SUBLAYERS) if family in NO_SUBLAYER else set()
    refused |= {"language"} if family in NO_INVERSE else set()
    refused |= IN_FRONT if family == "deepseek_v2" else set()
    refused |= IN_ATTENTION if family in OWN_ATTENTION | NO_CACHE else set()
    refused |= set(BESIDE) if family in NO_CACHE else set()
    refused |= {"unipelt"} if family in NO_GATE else set()
    refused |= {"linear-adapter", "linear-adapter-p"} if family in NO_MLP_LINEAR | {"mamba"} else set()
    return refused | ({"ia3"} if family in NO_MLP_LINEAR else set())


SAY = (
    *("roles in this model", "sub-layers in this model", "use part=norms", "leave it out"),
    *("use prompt-tuning or p-tuning", "use lora or an adapter", "leave gate out"),
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


MISTAKES: list[tuple[str, Method, type[BudwoodError], str]] = [
    ("bert", AdapterH(targets=("mpl",)), NoSuchSite, "no sub-layer matches 'mpl'; sub-layers in this model: attn, mlp"),
    ("bert", AdapterH(targets=("cross",)), NoSuchSite, r"leave it out, or write cross\? for: where there is one"),
    ("bert", AdapterH(targets=("cross?",)), NoSuchSite, r"no sub-layer matches 'cross\?'.*leave it out$"),
    ("bert", AdapterH(layers=(7,)), NoSuchSite, "layers name block 7, and layers there are: encoder 0 to 1"),
    ("bert", AdapterH(leave_out=(2,)), BadConfig, "leave_out names layer 2; this model has layers 0 to 1"),
    ("bert", AdapterH(leave_out=(0, 1)), NoSuchSite, "match no sub-layer in layers"),
    ("bert", AdapterH(sizes={"cross": 4}), NoSuchSite, "sizes name 'cross', which is none of the targets"),
    ("bert", AdapterP(invertible=True, trained=("head.lm",)), BadConfig, "acts at the output embedding"),
    ("gpt_neox", AdapterP(adds_residual=False), NoSuchSite, "it would drop the other one; leave adds_residual"),
    ("bert", Compacter(size=6), BadConfig, "n is 4, which does not divide the bottleneck's width 6"),
    ("bert", Compacter(n=3, size=6), BadConfig, "n is 3, which does not divide the model's width 32"),
    (
        "bert",
        Compacter(shares_weights=True, n=2, sizes={"attn": 4, "mlp": 8}),
        BadConfig,
        "shares_weights needs bottlenecks of one width",
    ),
    ("llama", Parallel(attention="before"), BadConfig, "targets are mlp; add attn to them"),
    ("gpt2", LinearAdapter(targets=("attn.q",)), NoSuchSite, "acts on whole linears, and attn.q is a part of"),
    ("gpt2", LinearAdapter(targets=("norm.attn",)), NoSuchSite, "acts on linears"),
    ("llama", LinearAdapter(before=("mlp.upp",)), NoSuchSite, "before names 'mlp.upp', which is none of the targets"),
    ("rwkv", AdapterP(), NoSuchSite, "is not clear, so it is refused: rwkv.blocks.0 mlp"),
]


@pytest.mark.parametrize(("family", "method", "error", "match"), MISTAKES, ids=[match for *_, match in MISTAKES])
def test_mistakes_are_named_and_leave_nothing(
    family: str, method: Method, error: type[BudwoodError], match: str
) -> None:
    model = FAMILIES[family].build()
    before = [type(module) for module in model.modules()]
    with pytest.raises(error, match=match):
        core.attach(model, method, name="a", anatomy=anatomy_of(family))
    assert [type(module) for module in model.modules()] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert core.adapters(model) == {}


def test_a_norm_that_also_reads_a_gate_is_not_copied() -> None:
    """The norm behind Bamba's mixer multiplies by a gate, which a copy of it would not see."""
    sizes = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4, "attn_layer_indices": [1]}
    model = _build("bamba", "causal", {**GQA, **sizes})
    norms = tuple(role for role in discover(model).roles if role.startswith("norm.") and role != "norm.mixer")
    with pytest.raises(NoSuchSite, match=r"RMSNormGated, which reads more than .*leave norm\.mixer out of `trained`"):
        core.attach(model, AdapterH(size=4, trained=("norm.*",), targets=("mlp",)), name="a")
    core.attach(model, AdapterH(size=4, trained=norms, targets=("mlp",)), name="a")


@pytest.mark.parametrize("attention", ["before", "multihead"])
def test_queries_of_rearranged_tokens_are_refused(attention: str) -> None:
    """Longformer lays out what its queries read as [tokens, batch, d]: with as many tokens as rows, all would fit."""
    model = _build("longformer", "masked", {**LLAMA, "attention_window": [4, 4], "pad_token_id": 1})
    method = Parallel(targets=("attn",), attention=attention)  # type: ignore[arg-type]
    with pytest.raises(NoSuchSite, match="does not read the stream as it is but rearranged.*use attention=after"):
        core.attach(model, method, name="a")
    core.attach(model, Parallel(targets=("attn",)), name="a")


def test_every_part_of_a_model_says_how_many_heads_it_has() -> None:
    parts = [BertConfig(vocab_size=96, **{**LLAMA, "num_attention_heads": heads}) for heads in (4, 2)]
    model = EncoderDecoderModel(EncoderDecoderConfig.from_encoder_decoder_configs(*parts))
    batch = {key: torch.ones(1, 3, dtype=torch.int64) for key in ("input_ids", "decoder_input_ids")}
    method = Parallel(targets=("attn",), attention="multihead")
    adapter = core.attach(model, method, name="a", anatomy=discover(model, batch=batch))
    found = {site.path.split(".")[0]: core.delta_at(model, site, "a").heads for site in adapter.sites}
    assert found == {"encoder": 4, "decoder": 2}


def test_what_needs_the_rows_of_a_batch_apart() -> None:
    """OPT lays all tokens of a batch in one row before its feed-forward."""
    for method in (AdapterP(gate=True, gate_over="all"), AdapterP(stochastic_depth=0.5)):
        model = FAMILIES["opt"].build()
        core.attach(model, method, name="a", anatomy=anatomy_of("opt"))
        with pytest.raises(
            BadConfig, match=r"needs \[batch, tokens, d\] at .*leave (gate|stochastic_depth) or this sub"
        ):
            model.train()(**FAMILIES["opt"].batch())
