"""A prompt beside others at the same embedding: in an order that means something, or refused."""

from __future__ import annotations

import pytest
import torch

import budwood.core as core
from adapted import perturb
from budwood.errors import BadConfig
from budwood.methods import LoRA, PromptTuning
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
