"""The search for blocks: it finds what does nothing, and says what each step costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from budwood.errors import BadConfig, BadData
from budwood.prune.search import search_layers
from budwood.prune.structure import structure_of
from calibrating import calibration
from families import FAMILIES, GQA, VOCABULARY


def deep() -> LlamaForCausalLM:
    """Six blocks, of which 2 and 4 add nothing."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**{**GQA, "num_hidden_layers": 6}, vocab_size=VOCABULARY, initializer_range=0.2)
    )
    with torch.no_grad():
        for block in (2, 4):
            model.model.layers[block].self_attn.o_proj.weight.zero_()
            model.model.layers[block].mlp.down_proj.weight.zero_()
    return model.eval()


def test_blocks_that_do_nothing_go_first() -> None:
    model, steps = deep(), []
    kept = search_layers(
        model, [calibration("llama")], stack="decoder", count=4, structure=structure_of(model),
        told=lambda block, loss: steps.append((block, loss)),
    )  # fmt: skip
    assert kept.layers == {"decoder": (0, 1, 3, 5)} and kept.units == {}
    assert {block for block, _ in steps} == {2, 4}
    assert steps[0][1] == pytest.approx(steps[1][1], rel=1e-4)  # the loss of the whole model, both times


@pytest.mark.parametrize("name", ["t5", "bert-classify"])
def test_both_ends_of_other_stacks_stay(name: str) -> None:
    model = FAMILIES[name].build()
    structure = structure_of(model)
    for stack in structure.depths:
        kept = search_layers(model, [calibration(name)], stack=stack, count=2, structure=structure)
        assert kept.layers == {stack: (0, 1)}


def test_what_cannot_be_searched() -> None:
    model, text = deep(), calibration("llama")
    structure = structure_of(model)
    for stack, count in (("encoder", 2), ("decoder", 1), ("decoder", 7)):
        with pytest.raises(BadConfig, match="are to stay; there is decoder with 2 to 6 blocks"):
            search_layers(model, [text], stack=stack, count=count, structure=structure)
    with pytest.raises(BadConfig, match="candidates is 0"):
        search_layers(model, [text], stack="decoder", count=5, structure=structure, candidates=0)
    with pytest.raises(BadData, match="no position of the calibration text is labelled"):
        search_layers(model, [replace(text, labels=None)], stack="decoder", count=5, structure=structure)
