"""Mistakes and corners that once went through in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import budwood.core as core
from adapted import QV, VARIANTS, adapted, anatomy_of, close, logits, perturb
from budwood.core import Route, Stack, Sum
from budwood.core.plan import without
from budwood.core.registry import registry_of
from budwood.errors import BadCheckpoint, BadConfig, NoSuchSite, WrongOrder
from budwood.interop import load, save
from budwood.methods import IA3, LoRA, Selective
from families import FAMILIES


def test_an_adapter_on_a_part_of_the_model_is_noticed() -> None:
    model = FAMILIES["bert-classify"].build()
    core.attach(model.bert, LoRA(), name="a")  # type: ignore[arg-type]
    with pytest.raises(WrongOrder, match="part of this model"):
        core.attach(model, LoRA(), name="b")


def test_constructors_read_fields_as_files_do() -> None:
    assert LoRA(rank="8", targets="attn.q", layers=[]) == LoRA(rank=8, targets=("attn.q",))  # type: ignore[arg-type]
    with pytest.raises(BadConfig, match="lora.init is 'olora'"):
        LoRA(init="olora")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["gemma3", "bart"])
def test_embeddings_that_do_more_than_look_up_are_refused(family: str) -> None:
    for method in (LoRA(targets=("embed",)), LoRA(targets=QV, trained=("embed",))):
        with pytest.raises(NoSuchSite, match="Embedding"):
            core.attach(FAMILIES[family].build(), method, name="a", anatomy=anatomy_of(family))


def test_keys_that_match_no_target_are_named() -> None:
    for method in (LoRA(ranks={"attn.qq": 4}), LoRA(targets=QV, alphas={"mlp.up": 4.0}), IA3(feedforward=("mlp.dwn",))):
        with pytest.raises(NoSuchSite, match="none of the targets"):
            core.attach(FAMILIES["llama"].build(), method, name="a", anatomy=anatomy_of("llama"))


def test_what_is_left_of_a_plan_when_an_adapter_goes() -> None:
    rows = torch.zeros(1, dtype=torch.int64)
    assert without(Stack(("a", Sum(("b", "c"), (0.2, 0.8)))), "b") == Stack(("a", Sum(("c",), (0.8,))))
    assert without(Stack(("a",)), "a") is None
    routed = without(Route(("a", "b"), rows), "a")
    assert isinstance(routed, Route)
    assert routed.parts == (None, "b")

    model, batch = adapted("llama", "lora", "a", perturbed=True)
    core.attach(model, VARIANTS["ia3"], name="b")
    perturb(model, "b")
    core.activate(model, Stack(("a", "b")))
    with torch.no_grad():
        expected = logits(model, batch)
        core.merge(model, "a")
        assert close(logits(model, batch), expected, 1e-4)
        assert not close(logits(model, batch), logits(FAMILIES["llama"].build(), batch))


def test_using_does_not_bring_a_detached_adapter_back() -> None:
    model, _ = adapted("llama", "lora", "a")
    core.attach(model, VARIANTS["ia3"], name="b")
    with core.using(model, "a"):
        core.detach(model, "b")
    registry = registry_of(model)
    assert registry is not None
    assert registry.switch.plan is None


def test_a_failed_load_leaves_what_trains_as_it_was(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora", "a", perturbed=True)
    save(model, tmp_path, name="a")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors.popitem()
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint):
        load(model, tmp_path, name="b")
    assert all(p.requires_grad for p in core.parameters(model, "a"))


@pytest.mark.parametrize("change", [{"r": None}, {"r": "abc"}, {"rank_pattern": {"(": 3}}, {"rank_pattern": [1]}])
def test_malformed_fields_of_a_folder(change: dict[str, object], tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora", "a")
    save(model, tmp_path, name="a")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(BadCheckpoint):
        load(FAMILIES["llama"].build(), tmp_path, name="a", anatomy=anatomy_of("llama"))


def test_bitfit_leaves_out_what_is_read_directly() -> None:
    """Mamba's only biases of linears are those of dt_proj, which its forward reads without calling the module."""
    with pytest.raises(NoSuchSite, match="found no bias"):
        core.attach(FAMILIES["mamba"].build(), Selective(part="bitfit"), name="a", anatomy=anatomy_of("mamba"))


def test_the_same_base_under_another_head(tmp_path: Path) -> None:
    """An adapter of the masked language model loads under a classifier of the same body, without a head."""
    model, _ = adapted("bert", "lora", perturbed=True)
    save(model, tmp_path, name="faq")
    other = FAMILIES["bert-classify"].build()
    other.bert.load_state_dict(model.bert.state_dict(), strict=False)  # type: ignore[union-attr, operator, arg-type]
    adapter = load(other, tmp_path, name="faq")
    assert adapter.method == LoRA(trained=())
    assert not any(site.role == "head" for site in adapter.sites)


def test_embedding_weights_that_a_folder_repeats_are_compared(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora-embed", "a", perturbed=True)
    save(model, tmp_path, name="a")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    weight = core.base_state_dict(model)["model.embed_tokens.weight"]
    for change, fits in ((0.0, True), (0.5, False)):
        save_file({**tensors, key: weight + change}, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
        fresh = FAMILIES["llama"].build()
        if fits:
            load(fresh, tmp_path, name="a")
        else:
            with pytest.raises(BadCheckpoint, match="another model.embed_tokens.weight"):
                load(fresh, tmp_path, name="a")
