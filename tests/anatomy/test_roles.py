from __future__ import annotations

import re

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from anatomy.golden import GOLDEN
from budwood.anatomy import ROLES, discover
from families import FAMILIES

EVERY = sorted(FAMILIES)
MODULES = ("attn", "cross", "mlp", "mixer", "block")


def expected_for(paths: list[str], golden: dict[str, str]) -> dict[str, str]:
    """The golden lines written out for the layers there are; a line for one layer wins over a line for all."""
    found: dict[str, str] = {}
    for path in paths:
        fitting = [line for line in golden if re.fullmatch(re.escape(line).replace(r"\.N", r"\.\d+"), path)]
        found |= {path: golden[min(fitting, key=lambda line: "N." in line)]} if fitting else {}
    return found


@pytest.mark.parametrize("name", EVERY)
def test_every_linear_norm_and_embedding_has_the_role_its_source_gives_it(name: str) -> None:
    found = {s.path: s.role for s in discover(FAMILIES[name].build()).sites if s.role not in MODULES}
    expected = expected_for(list(found), GOLDEN[name])
    assert found == expected
    lines = [re.escape(line).replace(r"\.N", r"\.\d+") for line in GOLDEN[name]]
    assert [line for line in lines if not any(re.fullmatch(line, path) for path in found)] == []


@pytest.mark.parametrize("name", EVERY)
def test_every_linear_is_one_site_or_reported(name: str) -> None:
    model = FAMILIES[name].build()
    anatomy = discover(model)
    paths = [s.path for s in anatomy.sites]
    linears = {path for path, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    assert len(paths) == len(set(paths))
    assert {s.path for s in anatomy.sites if s.is_linear} == linears
    assert anatomy.unresolved == ()
    assert {s.role for s in anatomy.sites} <= set(ROLES)


@pytest.mark.parametrize("name", EVERY)
def test_sizes_kinds_and_layers_are_those_of_the_module(name: str) -> None:
    model = FAMILIES[name].build()
    anatomy = discover(model)
    for site in anatomy.sites:
        if site.kind == "parameter":
            shape = model.get_parameter(site.path).shape
            assert {site.in_features, site.out_features} <= {*shape[-2:]}
            continue
        module = model.get_submodule(site.path)
        if site.kind == "conv1d":
            assert module.weight.shape == (site.in_features, site.out_features)
        elif site.kind == "linear":
            assert module.weight.shape == (site.out_features, site.in_features)
        elif site.kind == "embedding":
            assert module.weight.shape == (site.in_features, site.out_features)
        numbers = [int(part) for part in site.path.split(".") if part.isdigit()]
        assert site.layer == (numbers[-1] if name == "albert" and numbers else numbers[0] if numbers else None)
    assert anatomy.hidden_size == 32


@pytest.mark.parametrize(
    ("name", "role", "path"),
    [
        ("llama", "attn", "model.layers.0.self_attn"),
        ("llama", "mlp", "model.layers.0.mlp"),
        ("llama", "block", "model.layers.0"),
        ("bert", "attn", "bert.encoder.layer.0.attention.self"),
        ("gpt_neo", "attn", "transformer.h.0.attn.attention"),
        ("t5", "cross", "decoder.block.0.layer.1.EncDecAttention"),
        ("t5", "mlp", "encoder.block.0.layer.1.DenseReluDense"),
        ("mixtral", "mlp", "model.layers.0.mlp"),
        ("mamba", "mixer", "backbone.layers.0.mixer"),
        ("deepseek_v2", "attn", "model.layers.0.self_attn"),
    ],
)
def test_modules_are_sites_too(name: str, role: str, path: str) -> None:
    assert path in [s.path for s in discover(FAMILIES[name].build()).select(role)]


@pytest.mark.parametrize("name", ["bert", "bart", "opt", "albert"])
def test_a_family_without_an_mlp_module_has_no_mlp_site(name: str) -> None:
    assert "mlp" not in discover(FAMILIES[name].build()).roles


@pytest.mark.parametrize("name", EVERY)
def test_stacks_are_named_after_what_they_do(name: str) -> None:
    family = FAMILIES[name]
    stacks = {s.stack for s in discover(family.build()).sites}
    assert stacks == set(family.kind.split("-"))


@pytest.mark.parametrize("name", EVERY)
def test_meta_models_give_the_same_answer(name: str) -> None:
    model = FAMILIES[name].build()
    assert discover(model) == discover(model.to("meta"))
