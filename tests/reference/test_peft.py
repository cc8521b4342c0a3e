"""Hugging Face PEFT: the real library loads what we write, and we load what it writes; logits and gradients agree."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import VARIANTS, adapted, anatomy_of, close, logits, perturb, weighted
from budwood.interop import load, save
from budwood.methods import IA3, LoRA
from families import FAMILIES

WRITABLE = [name for name, method in VARIANTS.items() if isinstance(method, LoRA | IA3)]
BASES = (
    "llama",
    "gpt2",
    "bert",
    "t5",
    "gpt_neox",
    "roberta-classify",
    "distilbert-classify",
    "llama-classify",
    "gpt2-classify",
)


@pytest.fixture(autouse=True)
def peft_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_loaded(base: nn.Module, folder: Path) -> nn.Module:
    """PEFT's model; a tensor that PEFT did not find or use is an error here (PEFT only warns)."""
    model = peft.PeftModel.from_pretrained(base, folder, is_trainable=True)
    result = model.load_adapter(str(folder), "default", is_trainable=True)
    assert not result.unexpected_keys
    lacking = [key for key in result.missing_keys if any(word in key for word in ("lora_", "ia3_", "modules_to_save"))]
    assert not lacking
    return model.eval()


@pytest.mark.parametrize("variant", WRITABLE)
@pytest.mark.parametrize("family", BASES)
def test_peft_loads_ours(family: str, variant: str, tmp_path: Path) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    save(model, tmp_path, name="faq")
    model.double()  # some of these models make a thousand times more of a rounding
    theirs = peft_loaded(FAMILIES[family].build(), tmp_path).double()
    assert close(logits(theirs, batch), logits(model, batch), 1e-4 if "pissa" in variant else 1e-5)

    weighted(logits(model, batch)).backward()
    weighted(logits(theirs, batch)).backward()
    ours = sum(p.grad.square().sum() for p in core.parameters(model, "faq") if p.grad is not None)
    if family != "gpt2" and "pissa" not in variant and "embed" not in variant and not VARIANTS[variant].trained:
        found = sum(p.grad.square().sum() for p in theirs.parameters() if p.grad is not None)
        if all(not site.chosen for site in core.adapters(model)["faq"].sites):
            assert torch.allclose(torch.as_tensor(ours), torch.as_tensor(found), rtol=1e-4)


CONFIGS: dict[str, Any] = {
    "qv": peft.LoraConfig(r=4, lora_alpha=8),
    "all": peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", use_rslora=True),
    "patterns": peft.LoraConfig(
        r=4, target_modules="all-linear", rank_pattern={"^.*0.*$": 2}, alpha_pattern={".*1.*": 3}
    ),
    "dora": peft.LoraConfig(r=4, use_dora=True),
    "one-layer": peft.LoraConfig(r=4, layers_to_transform=[1]),
    "ia3": peft.IA3Config(),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "roberta-classify"])
def test_we_load_theirs(family: str, config: str, tmp_path: Path) -> None:
    base, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    fields = dict(CONFIGS[config].to_dict())
    if family.endswith("classify"):
        fields["task_type"] = "SEQ_CLS"
    theirs = peft.get_peft_model(
        base, type(CONFIGS[config])(**{k: v for k, v in fields.items() if k != "peft_type" and v is not None})
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)

    model = FAMILIES[family].build()
    load(model, tmp_path, name="a", anatomy=anatomy_of(family))
    assert close(logits(model, batch), logits(theirs, batch), 1e-5)
    weighted(logits(model, batch)).backward()
    weighted(logits(theirs, batch)).backward()
    ours = sorted(p.grad.norm().item() for p in core.parameters(model, "a") if p.grad is not None)
    found = sorted(p.grad.norm().item() for p in theirs.parameters() if p.requires_grad and p.grad is not None)
    assert ours == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_the_configuration_uses_short_names_where_they_are_exact(tmp_path: Path) -> None:
    for variant, expected in (("lora-qv", ["q_proj", "v_proj"]), ("ia3", ["down_proj", "k_proj", "v_proj"])):
        model, _ = adapted("llama", variant)
        save(model, tmp_path / variant, name="faq")
        assert json.loads((tmp_path / variant / "adapter_config.json").read_text())["target_modules"] == expected
    model = FAMILIES["llama"].build()
    core.attach(model, LoRA(targets=("attn.q", "attn.v"), layers=(1,)), name="a")
    save(model, tmp_path / "one", name="a")
    names = json.loads((tmp_path / "one" / "adapter_config.json").read_text())["target_modules"]
    assert names == ["model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]


def test_a_head_travels_as_modules_to_save(tmp_path: Path) -> None:
    model, _ = adapted("roberta-classify", "lora", perturbed=True)
    save(model, tmp_path, name="faq")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["classifier"])


# ------------------------------------------------------------------------------ files the official library wrote
FIXTURES = Path(__file__).parents[2].parent / "shared" / "fixtures" / "adapters"
PEFT_FIXTURES = sorted(path.stem for path in FIXTURES.glob("lora_peft_*.pt"))


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the reference tensors are not beside this checkout")
@pytest.mark.parametrize("fixture", PEFT_FIXTURES)
def test_fixtures(fixture: str, tmp_path: Path) -> None:
    data = torch.load(FIXTURES / f"{fixture}.pt", weights_only=True)
    for name, content in data["ckpt_files"].items():
        (tmp_path / name).write_bytes(bytes(content.numpy().tobytes()))
    model = build(data)
    batch = {k: data[k] for k in ("input_ids", "attention_mask", "decoder_input_ids") if data.get(k) is not None}
    assert close(model(**batch).logits, data["base_logits"])

    load(model, tmp_path, name="a")
    found = model(**batch).logits
    assert close(found, data["logits"])
    (found * data["loss_weight"]).sum().backward()
    check_gradients(model, data["adapter_grads"])
    if data.get("merged_weights"):
        core.merge(model, "a")
        assert close(model(**batch).logits, data["logits"])
        state = model.state_dict()
        for name, weight in data["merged_weights"].items():
            assert close(state[name], weight, 1e-6)


def build(data: dict[str, Any]) -> nn.Module:
    """The fixture's plain base model."""
    import transformers

    fields = json.loads(data["config_json"])
    config = transformers.AutoConfig.for_model(**fields)
    config._attn_implementation = "eager"
    config.tie_word_embeddings = fields.get("tie_word_embeddings", config.tie_word_embeddings)  # T5's forgets it
    model = getattr(transformers, data["model_class"])(config)
    model.load_state_dict(data["base_state_dict"], strict=False)
    return model.eval()


def check_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    """Every gradient of the fixture's is one of ours, by path and letter."""
    letters = {
        "lora_A": "A",
        "lora_B": "B",
        "lora_magnitude_vector": "m",
        "lora_embedding_A": "A",
        "lora_embedding_B": "B",
    }
    own = core.named_parameters(model, "a")
    assert len(own) == len(expected)
    for key, gradient in expected.items():
        path, _, rest = (
            key.removeprefix("base_model.model.").replace(".modules_to_save.default", "").partition(".lora_")
        )
        letter = letters.get(f"lora_{rest.split('.')[0]}", "")
        name = f"{path}.b" if rest.endswith("B.default.bias") else f"{path}.{letter}" if rest else path
        found = own[name].grad
        assert found is not None
        scale = gradient.abs().max().item()
        assert (found.reshape(-1) - gradient.reshape(-1)).abs().max() <= 1e-4 * max(scale, 1e-6), key


def test_perturbing_changes_the_output() -> None:
    model, batch = adapted("llama", "lora")
    before = logits(model, batch)
    perturb(model, "faq")
    assert not close(logits(model, batch), before)
