"""Damaged, pickled, foreign and wrong adapter folders: a clear error, and the model stays as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import budwood.core as core
from adapted import adapted, anatomy_of, logits
from budwood.errors import BadCheckpoint, BadConfig, NoSuchAdapter, NotAvailable
from budwood.interop import describe, load, save
from budwood.methods import LoRA
from families import FAMILIES


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model, _ = adapted("llama", "lora", perturbed=True)
    return save(model, tmp_path / "adapter", name="faq")


def refused(folder: Path, error: type[Exception], match: str, model: nn.Module | None = None) -> None:
    """Loading raises, and the model is what it was."""
    model = model or FAMILIES["llama"].build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(error, match=match):
        load(model, folder, name="a")
    assert core.adapters(model) == {}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def retensor(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, value in change.items():
        if value is None:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def first_key(folder: Path) -> str:
    return min(load_file(folder / "adapter_model.safetensors"))


def test_missing_folder_and_files(saved: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", NotAvailable, "no adapter folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", NotAvailable, "it holds: nothing")
    (saved / "adapter_model.safetensors").unlink()
    refused(saved, BadCheckpoint, "has no adapter_model.safetensors")


def test_cut_short(saved: Path) -> None:
    file = saved / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    refused(saved, BadCheckpoint, "damaged or cut short")
    file.write_bytes(b"")
    refused(saved, BadCheckpoint, "damaged or cut short")


def test_broken_configuration(saved: Path) -> None:
    (saved / "adapter_config.json").write_text("{")
    refused(saved, BadCheckpoint, "not readable JSON")
    (saved / "adapter_config.json").write_text("[]")
    refused(saved, BadCheckpoint, "an object is expected")
    (saved / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT"}))
    refused(saved, BadCheckpoint, "type OFT")


def test_pickle_is_refused_with_the_way_to_convert(saved: Path) -> None:
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    refused(saved, BadCheckpoint, "pickle file.*safetensors.torch.save_file")


def test_tensors_missing_unknown_or_not_finite(saved: Path) -> None:
    key = first_key(saved)
    retensor(saved, {key: torch.full((8, 32), float("nan"))})
    refused(saved, BadCheckpoint, "NaN or infinity")


def test_missing_tensor(saved: Path) -> None:
    retensor(saved, {first_key(saved): None})
    refused(saved, BadCheckpoint, "incomplete")


def test_unknown_tensor(saved: Path) -> None:
    retensor(saved, {"base_model.model.model.layers.0.mlp.nothing.lora_A.weight": torch.zeros(8, 32)})
    refused(saved, BadCheckpoint, "no adaptable module")


def test_rank_that_does_not_fit(saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "r": 5}))
    refused(saved, BadCheckpoint, "the configuration says 5")


def test_wrong_base(saved: Path) -> None:
    other = FAMILIES["llama"].build()
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(1.5)  # type: ignore[operator, union-attr]
    refused(saved, BadCheckpoint, "wrong base: .*other values", other)
    refused(saved, BadCheckpoint, "wrong base", FAMILIES["gpt2"].build())


def test_same_base_in_another_dtype_is_accepted(saved: Path) -> None:
    model = FAMILIES["llama"].build().bfloat16()
    load(model, saved, name="a", anatomy=anatomy_of("llama"))
    assert core.parameters(model, "a")[0].dtype == torch.float32


def test_peft_variants_that_change_more_than_we_support(saved: Path) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    for change, match in (
        ({"bias": "all"}, "biases of the base"),
        ({"use_qalora": True}, "use_qalora"),
        ({"init_lora_weights": "olora"}, "also changes the base"),
    ):
        (saved / "adapter_config.json").write_text(json.dumps({**config, **change}))
        refused(saved, BadCheckpoint, match)


def test_a_failed_load_keeps_the_other_adapters(saved: Path) -> None:
    model, batch = adapted("llama", "lora-all", "kept", perturbed=True)
    expected = logits(model, batch)
    retensor(saved, {first_key(saved): None})
    with pytest.raises(BadCheckpoint):
        load(model, saved, name="b")
    assert list(core.adapters(model)) == ["kept"]
    assert torch.equal(logits(model, batch), expected)


def test_save_refusals(tmp_path: Path) -> None:
    model, _ = adapted("llama", "lora")
    with pytest.raises(NoSuchAdapter, match="no adapter is called 'fqa'; did you mean 'faq'"):
        save(model, tmp_path, name="fqa")
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match="cannot write the adapter"):
        save(model, tmp_path / "file" / "adapter", name="faq")


def test_describe(saved: Path, tmp_path: Path) -> None:
    assert describe(saved).method == LoRA()
    assert describe(saved).kind == "LORA"
    model, _ = adapted("roberta-classify", "lora")
    assert describe(save(model, tmp_path / "c", name="faq")).labels == ("LABEL_0", "LABEL_1", "LABEL_2")
