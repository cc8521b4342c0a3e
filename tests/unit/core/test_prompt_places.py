"""A prompt beside others at the same embedding: in an order that means something, or refused."""

from __future__ import annotations

import pytest
import torch

import budwood.core as core
from adapted import perturb
from budwood.errors import BadConfig
from budwood.methods import LoRA, PromptTuning, PTuning
from families import FAMILIES


def test_what_changes_an_embedding_goes_before_the_prompt() -> None:
    model, batch = FAMILIES["llama"].build(), FAMILIES["llama"].batch()
    core.attach(model, PromptTuning(length=3), name="prompt")
    core.attach(model, LoRA(targets=("embed",)), name="words")
    perturb(model, "words")
    with pytest.raises(BadConfig, match=r"write Stack\(\('words', 'prompt'\)\)"):
        core.activate(model, core.Stack(("prompt", "words")))
    core.activate(model, core.Stack(("words", "prompt")))
    table = core.delta_at(model, core.adapters(model)["prompt"].sites[0], "prompt").get_parameter("P")
    read: list[torch.Tensor] = []
    model.get_submodule("model.layers.0").register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(**batch)
    assert torch.equal(read[0][0, :3], table)  # as trained: no word's change on it


def test_the_embedding_under_a_prompt_is_not_trained_in_full() -> None:
    model = FAMILIES["llama"].build()
    with pytest.raises(BadConfig, match="where the prompt itself stands; leave it out of trained"):
        core.attach(model, PromptTuning(length=3, trained=("embed",)), name="prompt")
    assert core.adapters(model) == {}


def test_a_route_takes_the_positions_of_its_longest_part() -> None:
    model = FAMILIES["llama"].build()
    for length in (3, 5):
        core.attach(model, PromptTuning(length=length), name=f"p{length}")
    rows = torch.tensor([0, 1])
    for plan, taken in {"p3": 3, core.Stack(("p3", "p5")): 8, core.Route(("p3", "p5"), rows): 5, None: 0}.items():
        with core.using(model, plan):
            assert core.positions_taken(model) == taken


def test_pseudo_tokens_of_a_route_are_those_of_every_part() -> None:
    model = FAMILIES["llama"].build()
    core.attach(model, PTuning(length=2, place="inside", width=4), name="cloze")
    core.attach(model, LoRA(), name="lora")
    assert core.pseudo_tokens(model) == 0
    with core.using(model, core.Stack(("lora", "cloze"))):
        assert core.pseudo_tokens(model) == 2
    with (
        core.using(model, core.Route(("lora", "cloze"), torch.tensor([0, 1]))),
        pytest.raises(BadConfig, match="differ"),
    ):
        core.pseudo_tokens(model)
