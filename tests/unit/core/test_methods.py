"""Methods as values: typed, written in files, and back; mistakes name the nearest right word."""

from __future__ import annotations

import pytest

from adapted import VARIANTS
from budwood.core import field_docs
from budwood.errors import BadConfig
from budwood.methods import IA3, METHODS, Full, LoRA, Selective, method_from_dict, method_to_dict, parse_method


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: str) -> None:
    method = VARIANTS[variant]
    assert method_from_dict(method_to_dict(method)) == method


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_documented_and_needs_no_arguments(method: type) -> None:
    method()
    assert method.name
    assert method.paper
    assert method.formula
    assert 0 < method().rate < 1
    docs = field_docs(method)
    assert set(docs) >= set(method().to_dict())
    assert all(docs.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lora", LoRA()),
        ("lora:rank=16,targets=all", LoRA(rank=16, targets=("all",))),
        ("lora:r=4,lora_alpha=8,target_modules=q_proj+v_proj", LoRA(rank=4, alpha=8.0, targets=("q_proj", "v_proj"))),
        ("lora:dora=true,init=gaussian,layers=0+1", LoRA(dora=True, init="gaussian", layers=(0, 1))),
        ("lora:ranks=attn.q:4+mlp.*:16", LoRA(ranks={"attn.q": 4, "mlp.*": 16})),
        ("lora:trained=", LoRA(trained=None)),
        ("dora:rank=2", LoRA(dora=True, rank=2)),
        ("bitfit", Selective(part="bitfit")),
        ("last-layers:last=3", Selective(part="last-layers", last=3)),
        ("ia3", IA3()),
        ("full", Full()),
    ],
)
def test_as_typed(text: str, expected: object) -> None:
    assert parse_method(text) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lore", "no method is called 'lore'; did you mean 'lora'"),
        ("lora:rnk=4", "lora has no field 'rnk'; did you mean 'rank'"),
        ("lora:rank", "is not field=value"),
        ("selective:bitfit", "write selective:part=bitfit"),
        ("lora:rank=four", "lora.rank is 'four'; it must be a whole number"),
        ("lora:rank=1.5", "whole number"),
        ("lora:rank=0", "at least 1"),
        ("lora:rank=4,r=4", "given twice"),
        ("lora:rank=4,rank=5", "given twice"),
        ("lora:dropout=1", r"must be in \[0, 1\)"),
        ("lora:dora=maybe", "true or false"),
        ("lora:init=pisa", "did you mean 'pissa'"),
        ("lora:ranks=4", "role:number"),
        ("selective:part=norm", "did you mean 'norms'"),
        ("selective:targets=all", "choose part="),
        ("full:targets=all", "full trains every parameter"),
        ("", "no method is called ''"),
    ],
)
def test_mistakes(text: str, match: str) -> None:
    with pytest.raises(BadConfig, match=match):
        parse_method(text)


def test_in_files() -> None:
    assert method_from_dict("lora:rank=2") == LoRA(rank=2)
    assert method_from_dict({"lora": {"rank": 2, "targets": ["attn.*"]}}) == LoRA(rank=2, targets=("attn.*",))
    assert method_from_dict({"lora": None}) == LoRA()
    for wrong in ({}, {"lora": {}, "ia3": {}}, 3, {"lora": 4}):
        with pytest.raises(BadConfig, match="method"):
            method_from_dict(wrong)  # type: ignore[arg-type]
