"""Generation with an adapter: cache = no cache, beams, left padding, one adapter a row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import VARIANTS, adapted, perturb
from families import PAD

IN_TEXT = ("prefix-tuning", "prefix-rows", "prompt-tuning", "p-tuning", "unipelt")
DECODERS = ("llama", "gpt2", "gpt_neox", "qwen3_moe", "t5", "mbart")


def generate(model: nn.Module, ids: Tensor, **settings: Any) -> Tensor:
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None, **settings}
    settings.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(ids, **settings)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("family", "variant"),
    [(family, variant) for family in DECODERS for variant in ("lora-all", "ia3", "full", "adapter-h", "parallel-all")]
    + [(family, variant) for family in ("llama", "falcon", "bart") for variant in ("language", "parallel-heads")]
    + [(family, variant) for family in (*DECODERS, "mistral", "gemma2", "bart") for variant in IN_TEXT],
)
def test_cache_changes_nothing(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    ids = batch["input_ids"][:1]
    for beams in (1, 3):
        cached = generate(model, ids, num_beams=beams, use_cache=True)
        assert torch.equal(cached, generate(model, ids, num_beams=beams, use_cache=False))


@pytest.mark.parametrize("variant", ["lora-all", "adapter-p-all", "parallel-before", *IN_TEXT])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_left_padding_changes_nothing(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    ids = batch["input_ids"][:1]
    padded = torch.cat([torch.full((1, 3), PAD), ids], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().unsqueeze(0)
    assert torch.equal(generate(model, padded, attention_mask=mask)[:, 3:], generate(model, ids))


@pytest.mark.parametrize("variant", ["lora-all", "language", "parallel-all", *IN_TEXT])
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_adapter_a_row(family: str, beams: int, variant: str) -> None:
    model, batch = adapted(family, variant, "a", perturbed=True)
    core.attach(model, VARIANTS["ia3"], name="b")
    perturb(model, "b", scale=1.0)
    ids = batch["input_ids"][:1].repeat(3, 1)
    plans: tuple[core.Plan, ...] = ("a", "b", None)
    with core.using(model, core.Route(plans, torch.arange(3))):
        routed = generate(model, ids, num_beams=beams)
    for row, plan in enumerate(plans):
        with core.using(model, plan):
            assert torch.equal(routed[row], generate(model, ids[:1], num_beams=beams)[0])
