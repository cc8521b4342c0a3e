"""`unfired` names every adapted module that a forward does not reach, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import budwood.core as core
from adapted import VARIANTS, adapted, anatomy_of
from budwood.core import Method
from budwood.errors import NoSuchSite, WrongOrder
from budwood.methods import LoRA
from families import FAMILIES, SMALL


@pytest.mark.parametrize(
    "variant", ["lora", "lora-all", "ia3", "bitfit", "adapter-h", "language", "prefix-tuning", "prompt-tuning"]
)
@pytest.mark.parametrize("family", SMALL)
def test_everything_fires(family: str, variant: str) -> None:
    model, batch = adapted(family, variant)
    model.train()
    assert core.unfired(model, batch) == ()
    assert all(module.training for module in model.modules())


def test_mamba_reads_a_weight_directly() -> None:
    """Mamba's dt_proj is a linear that its fused forward never calls: an adapter there would do nothing."""
    model, batch = FAMILIES["mamba"].build(), FAMILIES["mamba"].batch()
    method: Method = LoRA(targets=("dt_proj", "in_proj"))
    try:
        core.attach(model, method, name="a")
    except NoSuchSite:
        assert any(path.endswith("dt_proj") for path in anatomy_of("mamba").uncalled)
        return
    assert [path.rpartition(".")[2] for path in core.unfired(model, batch)] == ["dt_proj", "dt_proj"]


def test_a_module_replaced_after_attaching_is_named() -> None:
    model, batch = adapted("llama", "lora")
    site = core.adapters(model)["faq"].sites[0]
    parent, _, child = site.path.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Linear(site.in_features, site.out_features))
    assert core.unfired(model, batch) == (site.path,)
    with pytest.raises(WrongOrder, match="replaced after attaching"):
        core.parameters(model, "faq")


def test_a_skipped_layer_is_named() -> None:
    model, batch = adapted("llama", "lora")
    model.model.layers = model.model.layers[:1]  # type: ignore[union-attr, index, operator]
    torch.manual_seed(0)
    gone = [s.path for s in core.adapters(model)["faq"].sites if s.layer == 1]
    assert core.unfired(model, batch) == tuple(gone)


def test_targets_that_match_nothing_name_the_roles() -> None:
    with pytest.raises(NoSuchSite, match=r"no site matches 'atn.q'.*attn\.q.*did you mean 'attn\.q'"):
        core.attach(FAMILIES["llama"].build(), LoRA(targets=("atn.q",)), name="a")
    with pytest.raises(NoSuchSite, match="layers there are: .* 0 to 1"):
        core.attach(FAMILIES["llama"].build(), LoRA(layers=(7,)), name="a")
    assert VARIANTS["lora"] == LoRA()
