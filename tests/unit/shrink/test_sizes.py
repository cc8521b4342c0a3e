"""What a model would come to at other sizes, and the shapes that a stage chooses from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from budwood.anatomy import discover
from budwood.prune.cut import cut
from budwood.prune.importance import keep
from budwood.prune.structure import structure_of
from budwood.shrink.sizes import Shape, Sizing, least
from families import FAMILIES

EVERY = ("layers", "ffn", "heads", "hidden")


def sizing_of(model: Any) -> Sizing:
    anatomy = discover(model)
    return Sizing(model, structure_of(model, anatomy), anatomy)


def llama(**settings: Any) -> Sizing:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model("llama", vocab_size=96, **{**sizes, **settings})
    return sizing_of(AutoModelForCausalLM.from_config(config))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert-classify", "t5", "gemma2"])
def test_a_count_is_what_the_cut_model_has(family: str) -> None:
    sizing = sizing_of(FAMILIES[family].build())
    assert sizing.count(sizing.now) == sum(p.numel() for p in sizing.subject.model.parameters())
    ways = sizing.ladders(EVERY)
    assert ways.keys() >= {"ffn"}
    for way, steps in ways.items():
        shape = next(s for step in steps if sizing.count(s := replace(sizing.now, **step)) is not None)
        made = cut(sizing.subject.model, keep(sizing.outline, sizing.random, sizing.sizes(shape)))
        assert sizing.count(shape) == sum(p.numel() for p in made.parameters()), way
        assert Shape.of(structure_of(made)) == shape, way


@pytest.mark.parametrize(("family", "tied"), [("bert-classify", "hidden+heads"), ("gpt2", "hidden+heads")])
def test_what_a_class_ties_is_cut_by_one_share(family: str, tied: str) -> None:
    sizing = sizing_of(FAMILIES[family].build())
    assert {"hidden", "heads"} <= sizing.structure.refused.keys()
    ways = sizing.ladders(EVERY)
    assert [dict(step) for step in ways[tied]] == [{"heads": n, "hidden": 8 * n} for n in (3, 2, 1)]
    assert not sizing.ladders(("hidden",)) and not sizing.ladders(("heads",))


def test_shapes_of_one_size() -> None:
    sizing = llama()
    whole = sizing.count(sizing.now)
    assert whole is not None
    target = int(0.8 * whole)
    shapes = list(sizing.candidates(target, EVERY))
    assert len(shapes) == len(set(shapes)) >= 4
    changed = [sizing.now.change(shape) for shape in shapes]
    assert any(what.startswith("layers 6 ->") for what in changed) and any("heads 2 -> 1" in what for what in changed)
    for shape in shapes:
        count = sizing.count(shape)
        assert count is not None and target - 0.2 * whole <= count <= target
    assert all("ffn" not in what for shape in sizing.candidates(target, ("layers",)) if (what := shape.change(shape)))


def test_the_largest_depth_that_meets_a_target() -> None:
    sizing = llama()
    for depth in (5, 4, 3, 2):
        target = sizing.count(replace(sizing.now, layers=depth))
        assert target is not None
        assert next(iter(sizing.candidates(target, ("layers",)))).layers == depth


def test_sizes_that_a_class_refuses_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    sizing = llama()
    counted = Sizing._counted
    monkeypatch.setattr(Sizing, "_counted", lambda self, s: None if s.layers in (5, 3, 2) else counted(self, s))
    target = sizing.count(replace(sizing.now, layers=4))
    assert target is not None
    assert [shape.layers for shape in sizing.candidates(target, ("layers",))] == [4]
    assert not list(sizing.candidates(target - 1, ("layers",))) or least(sizing, ("layers",))[1]["layers"] == 4


def test_far_targets_are_met_in_several_ways() -> None:
    sizing = llama()
    fewest, sizes = least(sizing, EVERY)
    assert sizes["layers"] == 2 and sizes["heads"] == 1 and sizes["ffn"] == 16
    shapes = list(sizing.candidates(fewest, EVERY))
    assert [sizing.count(shape) for shape in shapes] == [fewest]
    beyond = list(sizing.candidates(1, EVERY))  # no target: as small as it gets
    assert [sizing.count(shape) for shape in beyond] == [fewest]


def test_nothing_is_left() -> None:
    sizing = llama(num_hidden_layers=2, num_key_value_heads=1, num_attention_heads=1)
    assert not list(sizing.candidates(1, ("layers", "heads")))
