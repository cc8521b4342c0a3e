"""A cut model is the uncut one with closed gates, as a stock transformers model; or the cut is refused by name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import budwood.core as core
from budwood.anatomy import Anatomy, discover
from budwood.errors import BadConfig
from budwood.methods import LoRA
from budwood.prune.cut import cut
from budwood.prune.gates import closed
from budwood.prune.kept import Kept, Structure
from budwood.prune.structure import structure_of
from families import FAMILIES

WIDTH = ("heads", "hidden")
"""Refused one by one where a class takes width / heads for the size of a head."""
REFUSED: dict[str, tuple[str, ...]] = {
    "mixtral": ("ffn",),
    "olmo2": ("heads",),
    "stablelm": WIDTH,
    "gpt2": WIDTH,
    "gpt_neox": WIDTH,
    "gptj": WIDTH,
    "gpt_neo": WIDTH,
    "gpt_bigcode": WIDTH,
    "opt": WIDTH,
    "bloom": ("ffn", *WIDTH),
    "falcon": WIDTH,
    "mpt": ("ffn", *WIDTH),
    "codegen": WIDTH,
    "bert": WIDTH,
    "roberta": WIDTH,
    "electra": WIDTH,
    "distilbert": WIDTH,
    "deberta-v2": WIDTH,
    "modernbert": WIDTH,
    "albert": ("layers", *WIDTH),
    "bart": WIDTH,
    "mbart": WIDTH,
    "mamba": ("ffn", "heads"),
    "rwkv": ("layers", "heads"),
    "qwen3_moe": ("ffn",),
    "deepseek_v2": ("ffn",),
    "jamba": ("ffn", "hidden"),
    "bert-classify": WIDTH,
    "roberta-classify": WIDTH,
    "distilbert-classify": WIDTH,
    "gpt2-classify": WIDTH,
}
"""Family to the dimensions in which it cannot be cut alone; all others can. RWKV's class has no model of one block."""
NOT_TOGETHER = ("bloom", "mpt", "gpt_bigcode", "codegen", "jamba")
"""Families whose heads and width cannot be cut together either: ALiBi, one group, rows for four devices, Mamba."""
ROOT_OF_WIDTH = ("gemma", "gemma2", "gemma3_text")
"""Types that multiply embeddings by the root of the width, which is smaller in the cut model."""


def whole(family: str) -> tuple[PreTrainedModel, Anatomy, Structure]:
    model = FAMILIES[family].build()
    anatomy = discover(model)
    return model, anatomy, structure_of(model, anatomy)


def chosen(structure: Structure, *dimensions: str, seed: int = 5) -> Kept:
    """A random half of every dimension named; of the layers, the first."""
    rng = random.Random(seed)
    half = {n: tuple(sorted(rng.sample(range(n), n // 2))) for n in {u.count for u in structure.units}}
    tied = {path for paths in structure.together for path in paths}
    units = {
        u.path: half[u.count] if u.path in tied else tuple(sorted(rng.sample(range(u.count), u.count // 2)))
        for u in structure.units
        if u.dimension in dimensions
    }
    channels = tuple(sorted(rng.sample(range(structure.hidden), structure.hidden // 2)))
    return Kept(
        layers=dict.fromkeys(structure.depths, (0,)) if "layers" in dimensions else {},
        units=units,
        channels=channels if "hidden" in dimensions else None,
    )


def answer(model: nn.Module, family: str) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(**FAMILIES[family].batch()).logits
        return logits


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def reloaded(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    model.save_pretrained(folder)
    stock = getattr(__import__("transformers"), model.config.architectures[0])
    again: PreTrainedModel = stock.from_pretrained(folder).eval()
    return again


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_refused_is_known(family: str) -> None:
    _, _, structure = whole(family)
    assert tuple(structure.refused) == tuple(
        d for d in ("layers", "ffn", "heads", "hidden") if d in REFUSED.get(family, ())
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_is_the_model_with_closed_gates(family: str, tmp_path: Path) -> None:
    model, anatomy, structure = whole(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    open_ = answer(model, family)
    dimensions = [
        d for d in ("ffn", "heads", "layers") if d not in structure.refused and (family, d) != ("jamba", "layers")
    ]
    for names in dict.fromkeys((*((d,) for d in dimensions), tuple(dimensions))):
        if not names:
            continue
        kept = chosen(structure, *names)
        smaller = cut(model, kept, anatomy=anatomy)
        with closed(model, kept, anatomy):
            expected = answer(model, family)
        assert type(smaller) is type(model) and smaller.num_parameters() < model.num_parameters()
        assert close(answer(smaller, family), expected), names
        assert not torch.allclose(expected, open_, rtol=1e-4), names
    assert torch.equal(answer(model, family), open_)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert core.adapters(model) == {}
    assert all(parameter.requires_grad for parameter in model.parameters())
    _is_stock(smaller, family, tmp_path)


def _is_stock(model: PreTrainedModel, family: str, folder: Path) -> None:
    """It loads, answers the same, writes, and takes adapters."""
    expected = answer(model, family)
    again = reloaded(model, folder)
    assert torch.equal(answer(again, family), expected)
    if model.can_generate():
        ids = FAMILIES[family].batch()["input_ids"][:1]
        assert again.generate(ids, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape[0] == 1
    core.attach(again, LoRA(rank=2, targets=("all",)), name="faq")
    assert close(answer(again, family), expected)


@contextmanager
def narrowed(model: PreTrainedModel, smaller: PreTrainedModel, anatomy: Anatomy, kept: Kept) -> Iterator[None]:
    """The uncut model, whose norms take the channels that are kept and whose ends know no others."""
    assert kept.channels is not None
    index = torch.tensor(kept.channels)
    width = anatomy.hidden_size
    mask = torch.zeros(width).index_fill(0, index, 1.0)
    scale = (len(index) / width) ** 0.5

    def norm(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
            return torch.zeros_like(y).index_copy(-1, index, smaller.get_submodule(path)(args[0][..., index]))

        return hook

    handles = []
    for site in (site for site in anatomy.sites if site.kind != "parameter"):
        module = model.get_submodule(site.path)
        if site.kind == "norm" and site.out_features == width and site.role not in ("norm.q", "norm.k"):
            handles.append(module.register_forward_hook(norm(site.path)))
        elif site.layer is None and site.kind in ("linear", "embedding") and site.out_features == width:
            factor = scale if site.role == "embed" and model.config.model_type in ROOT_OF_WIDTH else 1.0
            handles.append(module.register_forward_hook(lambda _, __, y, factor=factor: y * mask * factor))
        elif site.role == "mixer.out" and model.config.model_type == "rwkv":  # as wide as the residual
            handles.append(module.register_forward_pre_hook(lambda _, args: (args[0] * mask,)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_channels_compute_as_the_others_alone_would(family: str, tmp_path: Path) -> None:
    model, anatomy, structure = whole(family)
    alone = "hidden" not in structure.refused
    kept = chosen(structure, "hidden" if alone else "", *(() if alone else WIDTH))
    if not alone and family in NOT_TOGETHER:
        with pytest.raises(BadConfig, match="cannot be cut so|keep one at least"):
            cut(model, kept, anatomy=anatomy)
        return
    smaller = cut(model, kept, anatomy=anatomy)
    with closed(model, Kept(units=kept.units), anatomy), narrowed(model, smaller, anatomy, kept):
        expected = answer(model, family)
    if family == "t5":  # its head multiplies by the root of 1 / width
        expected = expected * 2**0.5
    assert close(answer(smaller, family), expected)
    _is_stock(smaller, family, tmp_path)
