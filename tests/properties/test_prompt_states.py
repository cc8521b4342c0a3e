"""A prompt behind the embeddings (AdapterHub's) is what a hook on them would make by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import close, logits, perturb
from budwood.errors import BadConfig, NoSuchSite
from budwood.interop import load, save
from budwood.methods import LoRA, PromptTuning
from families import FAMILIES

P = 3


def by_hand(family: str, rows: Tensor, *, first: int) -> Tensor:
    """The logits of a model whose embeddings return the rows, too, with a mask for them."""
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    base: nn.Module = model.base_model

    def put(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        return torch.cat([y[:, :first], rows.expand(len(y), -1, -1), y[:, first:]], dim=1)

    base.get_submodule("embeddings").register_forward_hook(put)
    mask = batch["attention_mask"]
    batch["attention_mask"] = torch.cat([mask[:, :first], mask.new_ones(len(mask), P), mask[:, first:]], dim=1)
    found: Tensor = model(**batch).logits
    return found


@pytest.mark.parametrize("place", ["front", "after-first"])
@pytest.mark.parametrize("family", ["bert-classify", "roberta-classify", "bert", "electra"])
def test_by_hand(family: str, place: Literal["front", "after-first"], tmp_path: Path) -> None:
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    plain = logits(model, batch)
    core.attach(model, PromptTuning(length=P, level="states", place=place, trained=()), name="a")
    perturb(model, "a")
    rows = next(p for key, p in core.named_parameters(model, "a").items() if key.endswith(".P"))
    expected = by_hand(family, rows.detach(), first=int(place == "after-first"))
    if expected.dim() == 3:
        first = int(place == "after-first")
        text = [*range(first), *range(first + P, expected.shape[1])]
        expected = expected[:, text][batch["attention_mask"].bool()]
    assert close(logits(model, batch), expected)
    fresh = FAMILIES[family].build()
    save(model, tmp_path, name="a")
    load(fresh, tmp_path, name="a")
    assert torch.equal(logits(fresh, batch), logits(model, batch))
    logits(model, batch).square().sum().backward()
    assert rows.grad is not None and bool(rows.grad.any(dim=1).all())
    core.detach(model, "a")
    assert torch.equal(logits(model, batch), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_beside_others() -> None:
    model, batch = FAMILIES["bert"].build(), FAMILIES["bert"].batch()
    core.attach(model, LoRA(), name="lora")
    core.attach(model, PromptTuning(length=P, level="states"), name="a")
    core.attach(model, PromptTuning(length=P), name="b")
    core.activate(model, core.Stack(("lora", "a")))
    assert logits(model, batch).isfinite().all()
    for plan in (core.Stack(("a", "b")), core.Route(("a", None), torch.tensor([0, 1]))):
        core.activate(model, plan)
        with pytest.raises(BadConfig, match="puts its prompt behind the embeddings of a whole batch"):
            model(**batch)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_only_where_there_are_embeddings(family: str) -> None:
    with pytest.raises(NoSuchSite, match="use level=words"):
        core.attach(FAMILIES[family].build(), PromptTuning(length=P, level="states"), name="a")
    with pytest.raises(BadConfig, match="has no pseudo tokens"):
        PromptTuning(level="states", place="inside")
