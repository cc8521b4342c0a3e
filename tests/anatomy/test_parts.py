"""Rows of fused projections, against the split that each family's modelling code makes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from budwood.anatomy import discover
from families import FAMILIES, GPT2, LLAMA, _build

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
HEADS, SIZE = 4, 8


def thirds(rows: Tensor) -> tuple[Tensor, ...]:
    """GPT-2 (`split`), MPT (`chunk`), ModernBERT (`view(3, heads, size)`)."""
    return rows.chunk(3)


def per_head(rows: Tensor) -> tuple[Tensor, ...]:
    """GPT-NeoX (`view(heads, 3 * size).chunk(3, -1)`), BLOOM, Falcon RW, GPT-BigCode with many heads of keys."""
    return tuple(part.flatten() for part in rows.view(HEADS, 3 * SIZE).chunk(3, -1))


def grouped(rows: Tensor) -> tuple[Tensor, ...]:
    """New Falcon: two groups of two queries, a key and a value."""
    groups = rows.view(2, HEADS // 2 + 2, SIZE)
    return groups[:, :-2].flatten(), groups[:, -2].flatten(), groups[:, -1].flatten()


def multi_query(rows: Tensor) -> tuple[Tensor, ...]:
    """GPT-BigCode and Falcon 7B: all queries, then one key and one value."""
    return rows.split((HEADS * SIZE, SIZE, SIZE))


def two_kv_heads(rows: Tensor) -> tuple[Tensor, ...]:
    """Phi-3: queries, then keys, then values."""
    return rows.split((HEADS * SIZE, 2 * SIZE, 2 * SIZE))


def model_parallel(rows: Tensor) -> tuple[Tensor, ...]:
    """CodeGen: four shards, each query, value, key."""
    query, value, key = rows.view(4, -1).split(HEADS * SIZE // 4, dim=-1)
    return query.flatten(), key.flatten(), value.flatten()


def falcon(**settings: object) -> PreTrainedModel:
    return _build("falcon", "causal", {**LLAMA, "bias": True, "ffn_hidden_size": 48, **settings})


CASES: dict[str, tuple[Callable[[], PreTrainedModel], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "gpt2": (FAMILIES["gpt2"].build, thirds),
    "mpt": (FAMILIES["mpt"].build, thirds),
    "modernbert": (FAMILIES["modernbert"].build, thirds),
    "gpt_neox": (FAMILIES["gpt_neox"].build, per_head),
    "bloom": (FAMILIES["bloom"].build, per_head),
    "phi3": (FAMILIES["phi3"].build, two_kv_heads),
    "codegen": (FAMILIES["codegen"].build, model_parallel),
    "gpt_bigcode": (FAMILIES["gpt_bigcode"].build, multi_query),
    "gpt_bigcode, many": (lambda: _build("gpt_bigcode", "causal", {**GPT2, "multi_query": False}), per_head),
    "falcon": (FAMILIES["falcon"].build, grouped),
    "falcon 7B": (lambda: falcon(new_decoder_architecture=False, multi_query=True), multi_query),
    "falcon RW": (
        lambda: falcon(new_decoder_architecture=False, multi_query=False, parallel_attn=False, alibi=True),
        per_head,
    ),
    "deberta": (
        lambda: _build("deberta", "masked", {**LLAMA, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
        per_head,
    ),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("case", sorted(CASES))
def test_parts_are_the_rows_that_the_source_splits_off(case: str, device: str) -> None:
    build, split = CASES[case]
    sites = discover(build().to(device)).select("attn.qkv")
    assert len(sites) == 2
    for site in sites:
        rows = split(torch.arange(site.out_features))
        assert [part.role for part in site.parts] == ["attn.q", "attn.k", "attn.v"]
        for part, expected in zip(site.parts, rows, strict=True):
            found = [row for start, stop in part.rows for row in range(start, stop)]
            assert found == sorted(expected.tolist())
            assert part.size == len(found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "falcon", "modernbert"])
def test_parts_do_not_depend_on_precision(name: str, dtype: torch.dtype) -> None:
    model = FAMILIES[name].build()
    assert discover(model).sites == discover(model.to(dtype)).sites


def test_trained_weights_make_no_difference() -> None:
    """Saturated softmaxes of a real model (here: weights times 30) must not hide queries and keys."""
    model = FAMILIES["gpt_neox"].build()
    before = discover(model).sites
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)
    assert discover(model).sites == before


def test_a_role_inside_a_fused_projection_selects_its_part() -> None:
    anatomy = discover(FAMILIES["gpt_neox"].build())
    (site, _) = anatomy.select("attn.v")
    assert (site.role, site.chosen) == ("attn.qkv", ("attn.v",))
