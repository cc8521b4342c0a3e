"""Methods as values: typed, written in files, and back; mistakes name the nearest right word."""

from __future__ import annotations

import pytest

from adapted import VARIANTS
from budwood.anatomy import discover
from budwood.core import attach, field_docs
from budwood.errors import BadConfig, NoSuchSite
from budwood.methods import (
    IA3,
    METHODS,
    AdapterH,
    AdapterP,
    Compacter,
    Full,
    Fusion,
    LinearAdapter,
    LoRA,
    Parallel,
    PrefixTuning,
    PromptTuning,
    Selective,
    method_from_dict,
    method_to_dict,
    parse_method,
)
from families import FAMILIES


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
        ("lora:layers=3-5", LoRA(layers=(3, 4, 5))),
        ("lora:layers=0+3-5", LoRA(layers=(0, 3, 4, 5))),
        ("lora:targets=a-1+3-5", LoRA(targets=("a-1", "3-5"))),
        ("lora:ranks=attn.q:4+mlp.*:16", LoRA(ranks={"attn.q": 4, "mlp.*": 16})),
        ("lora:trained=", LoRA(trained=None)),
        ("dora:rank=2", LoRA(dora=True, rank=2)),
        ("bitfit", Selective(part="bitfit")),
        ("last-layers:last=3", Selective(part="last-layers", last=3)),
        ("ia3", IA3()),
        ("adapter-h:bottleneck_size=8,non_linearity=gelu", AdapterH(size=8, activation="gelu")),
        ("adapter-p:reduction_factor=4,leave_out=0+1", AdapterP(reduction=4.0, leave_out=(0, 1))),
        (
            "adapter-p:sizes=attn:8+mlp:32,targets=attn+mlp",
            AdapterP(sizes={"attn": 8, "mlp": 32}, targets=("attn", "mlp")),
        ),
        ("houlsby", AdapterH(init="houlsby", trained=("norm.*", "head?"))),
        ("pfeiffer", AdapterP(init="bert")),
        ("language-adapter", AdapterP(reduction=2.0, invertible=True)),
        ("parallel:scaling=2,learn_scale=scalar", Parallel(scale=2.0, learn_scale="scalar")),
        ("compacter++:phm_dim=2", Compacter(targets=("mlp",), n=2)),
        ("linear-adapter:form=parallel", LinearAdapter(form="parallel", targets=("attn.q", "attn.k", "attn.v"))),
        ("fusion:of=a+b", Fusion(of=("a", "b"))),
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
        ("adapter-h:size=4,reduction=2", "size and reduction both say how wide"),
        ("adapter-h:size=0", "size is 0; it must be at least 1"),
        ("adapter-h:sizes=attn:0", r"sizes\[attn\] is 0; it must be at least 1"),
        ("adapter-p:reduction=0", "reduction is 0.0; it must be above 0"),
        ("adapter-p:invertible_reduction=-1", "invertible_reduction is -1.0; it must be above 0"),
        ("parallel:dropout=1", r"parallel: dropout is 1.0; it must be in \[0, 1\)"),
        ("parallel:inner_dropout=-0.1", "inner_dropout is -0.1"),
        ("adapter-h:stochastic_depth=1", "stochastic_depth is 1.0"),
        ("adapter-h:ln_after_residual=true", "says where ln_after acts; set ln_after=true too"),
        ("adapter-h:activation=rely", "did you mean 'relu'"),
        ("adapter-h:learn_scale=yes", "adapter-h.learn_scale is 'yes'"),
        ("parallel:stochastic_depth=0.1", "parallel has no field 'stochastic_depth'"),
        ("parallel:attention=before,targets=attn,scale=2", "scale acts behind the output projection"),
        ("parallel:attention=multihead,targets=attn+mlp,adds_residual=false", "adds_residual acts behind"),
        ("parallel:attention=multihead,targets=attn,activation=gelu", "whatever activation says; leave activation out"),
        ("linear-adapter:form=parallel,before=mlp.up", "and form is parallel; leave before out"),
        ("compacter:n=0", "compacter: n is 0"),
        ("compacter:rank=0", "compacter: rank is 0"),
        ("compacter:init=bert", "has an init of its own"),
        ("linear-adapter:size=0", "linear-adapter: size is 0"),
        ("linear-adapter:dropout=2", "linear-adapter: dropout is 2.0"),
        ("linear-adapter:form=adapterp", "did you mean 'adapter-p'"),
        ("adapter:size=4", "no method is called 'adapter'; did you mean 'adapter-"),
        ("", "no method is called ''"),
        ("prompt-tuning:init=text", "init=text without a text; write both"),
        ("prompt-tuning:text=Hello", "a text, and init=words; write both"),
        ("prompt-tuning:targets=attn.q", "leave targets and layers out"),
        ("p-tuning:layers=0", "leave targets and layers out"),
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


def test_layers_and_scales_that_cannot_be() -> None:
    anatomy = discover(FAMILIES["llama"].build())
    for select in (anatomy.select, anatomy.select_sublayers):
        with pytest.raises(NoSuchSite, match="layers name block 9"):
            select("mlp", layers=(0, 9))
    for text in ("adapter-p:scale=0", "adapter-h:scale=inf", "lora:alpha=inf"):
        with pytest.raises(BadConfig, match="scale is|finite"):
            parse_method(text)


def test_the_rate_of_a_bottleneck_falls_with_its_width_and_scale() -> None:
    rates = [parse_method(f"parallel:size={m},scale={s}").rate for m, s in ((16, 1), (64, 4), (64, -4), (512, 4))]
    assert rates == [3e-3, 8e-4, 8e-4, 1e-4]


def test_a_text_in_quotes_keeps_its_commas_and_spaces() -> None:
    method = parse_method("prompt-tuning:init=text,text='Say it, briefly: ',length=9")
    assert method == PromptTuning(init="text", text="Say it, briefly: ", length=9)
    assert parse_method("prompt-tuning:init=text,text=Don't say it,length=9").to_dict()["text"] == "Don't say it"


def test_where_a_prefix_cannot_stand() -> None:
    for family, method, match in (
        ("rwkv", PrefixTuning(), "has no attention for a prefix"),
        ("llama", PrefixTuning(targets=("attn.q",)), "q_proj is a part of one; say attn or cross"),
        ("bert", PrefixTuning(length=65), "it reads 64 at once; choose length=64 at most, or init=random"),
    ):
        with pytest.raises(BadConfig, match=match):
            attach(FAMILIES[family].build(), method, name="a")
