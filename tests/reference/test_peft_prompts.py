"""PEFT's prompts and prefixes: the real library loads what we write, and we load what it writes."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, close, perturb
from budwood.core import Method
from budwood.errors import BadCheckpoint, BadConfig
from budwood.interop import load, save
from budwood.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning, PTuningV2
from families import FAMILIES

P = 4
OURS: dict[str, Method] = {
    "prefix": PrefixTuning(length=P, width=12, stacks=("decoder",)),
    "prefix-shifted": PrefixTuning(length=P, width=None, positions="shifted", targets=("attn",)),
    "p-tuning-v2": PTuningV2(length=P, positions="shifted", targets=("attn",)),
    "t5-prefix": PrefixTuning(length=P, width=None, targets=("attn",), stacks=("decoder",), bias="looked-up"),
    "prompt": PromptTuning(length=P, place="front"),
    "p-tuning": PTuning(length=P, place="front", width=6),
    "multitask": MultitaskPrompt(length=P, place="front", tasks=3, rank=2),
}
WRITTEN = {
    "prefix": ("llama", "qwen3", "gpt_neox", "phi", "cohere"),
    "prefix-shifted": ("llama", "gpt2", "opt", "bert-classify", "roberta-classify", "llama-classify"),
    "p-tuning-v2": ("bert-classify", "roberta-classify"),
    "t5-prefix": ("t5",),
    "prompt": ("llama", "gpt2", "opt", "t5", "bart", "bert-classify", "roberta-classify", "gptj"),
    "p-tuning": ("llama", "t5", "bert-classify"),
    "multitask": ("llama", "gpt2"),
}


@pytest.fixture(autouse=True)
def peft_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def compared(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The logits of the text, without padding where a decoder has some."""
    logits: Tensor = model(**batch).logits
    mask = batch["attention_mask"].bool()
    if logits.dim() == 2 or "decoder_input_ids" in batch:
        return logits
    return logits[:, -mask.shape[1] :][mask]


def unpadded(family: str) -> dict[str, Tensor]:
    """The family's batch, without padding where PEFT's models count it as text."""
    batch = FAMILIES[family].batch()
    return {key: value[:1] for key, value in batch.items()} if family == "llama-classify" else batch


def adapted(family: str, method: Method, *, kept: nn.Module | None = None) -> nn.Module:
    model = kept or FAMILIES[family].build()
    core.attach(model, method, name="a", anatomy=anatomy_of(family))
    perturb(model, "a")
    return model


@pytest.mark.parametrize(("variant", "family"), [(v, family) for v, families in WRITTEN.items() for family in families])
def test_peft_loads_ours(variant: str, family: str, tmp_path: Path) -> None:
    model, batch = adapted(family, OURS[variant]), unpadded(family)
    save(model, tmp_path, name="a", to="peft")
    theirs = peft.PeftModel.from_pretrained(FAMILIES[family].build(), tmp_path).eval()
    fresh = FAMILIES[family].build()
    load(fresh, tmp_path, name="b", anatomy=anatomy_of(family))
    tasks = {}
    if variant == "multitask":
        rows = torch.tensor([2, 1])
        tasks = {"task_ids": rows}
        core.activate(model, core.Tasks("a", rows))
        core.activate(fresh, core.Tasks("b", rows))
    with torch.no_grad():
        expected = compared(model, batch)
        assert torch.equal(compared(fresh, batch), expected)
        assert close(compared(theirs, {**batch, **tasks}), expected)
    assert core.adapters(fresh)["b"].method == core.adapters(model)["a"].method.deployed


def test_a_prefix_of_text_at_position_0_keeps_its_bits(tmp_path: Path) -> None:
    model = adapted("llama", OURS["prefix"])
    save(model, tmp_path, name="a")
    assert load_file(tmp_path / "adapter_model.safetensors")["prompt_embeddings"].dtype == torch.float64
    fresh = FAMILIES["llama"].build()
    load(fresh, tmp_path, name="a")
    stored = [core.delta_at(model, site, "a").stored() for site in core.adapters(model)["a"].sites]
    again = [core.delta_at(fresh, site, "a").stored() for site in core.adapters(fresh)["a"].sites]
    assert all(torch.equal(x[letter], y[letter]) for x, y in zip(stored, again, strict=True) for letter in x)


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = adapted("llama", OURS["prefix"]).train()
    core.attach(model, PromptTuning(length=2), name="other")
    core.activate(model, core.Stack(("a", "other")), trainable="other")
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    save(model, tmp_path, name="a", to="peft")
    assert set(core.adapters(model)) == {"a", "other"}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert model.training


THEIRS: dict[str, Any] = {
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=P),
    "prefix-mlp": lambda task: peft.PrefixTuningConfig(
        task_type=task, num_virtual_tokens=P, prefix_projection=True, encoder_hidden_size=12
    ),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=P),
    "p-tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=P, encoder_hidden_size=12),
    "p-tuning-lstm": lambda task: peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=P, encoder_hidden_size=12, encoder_reparameterization_type="LSTM"
    ),
}
TASKS = {"t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "bert-classify": "SEQ_CLS", "roberta-classify": "SEQ_CLS"}
READ = {
    "prefix": ("llama", "gpt2", "opt", "t5", "bart", "bert-classify", "roberta-classify"),
    "prefix-mlp": ("qwen2", "bart"),
    "prompt": ("llama", "gpt2", "t5", "bart", "bert-classify", "roberta-classify"),
    "p-tuning": ("gpt_neox", "t5"),
    "p-tuning-lstm": ("llama", "bert-classify"),
}


def peft_folder(family: str, config: str, path: Path) -> nn.Module:
    """PEFT's own model, with every parameter it trains moved, and saved."""
    model = peft.get_peft_model(FAMILIES[family].build(), THEIRS[config](TASKS.get(family, "CAUSAL_LM"))).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize(("config", "family"), [(c, family) for c, families in READ.items() for family in families])
def test_we_load_theirs(config: str, family: str, tmp_path: Path) -> None:
    theirs, batch, model = peft_folder(family, config, tmp_path), FAMILIES[family].batch(), FAMILIES[family].build()
    load(model, tmp_path, name="a", anatomy=anatomy_of(family))
    with torch.no_grad():
        assert close(compared(model, batch), compared(theirs, batch))


# ----------------------------------------------------------------------------------------------------------- refusals
def change(path: Path, **fields: Any) -> None:
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps({**config, **fields}))


BAD: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "cpt": ("llama", "prompt", {"peft_type": "CPT"}, "PEFT's CPT is not read here"),
    "cartridge": ("llama", "prefix", {"peft_type": "CARTRIDGE"}, "PEFT's CARTRIDGE is not read here"),
    "unknown": ("llama", "prefix", {"kv_scale": 2}, "has kv_scale=2, which is not known"),
    "length": ("llama", "prefix", {"num_virtual_tokens": 7}, "has 4 rows, and num_virtual_tokens 7 makes 7"),
    "no-length": ("llama", "prompt", {"num_virtual_tokens": None}, "num_virtual_tokens is None .* above 0"),
    "columns": ("llama", "prefix", {"num_layers": 3}, "has 64 columns, and num_layers 3, token_dim 16"),
    "heads": ("llama", "prefix", {"num_attention_heads": 4}, "4 heads .* of width 4, and .* has 2 of width 8"),
    "stacks": ("llama", "prefix", {"num_transformer_submodules": 2}, "a model of 2 stacks .* this one has 1"),
    "not-shared": ("t5", "prefix", {"num_transformer_submodules": 1}, "a model of 1 stacks .* this one has 2"),
    "tasks": ("llama", "prompt", {"peft_type": "MULTITASK_PROMPT_TUNING"}, "lacks it; it is incomplete"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    family, config, fields, message = BAD[case]
    peft_folder(family, config, tmp_path)
    change(tmp_path, **fields)
    model = FAMILIES[family].build()
    with pytest.raises(BadCheckpoint, match=message):
        load(model, tmp_path, name="a", anatomy=anatomy_of(family))
    assert core.adapters(model) == {}


@pytest.mark.parametrize(
    ("config", "message"),
    [("prefix", "a model of 2 layers, and this one has 3"), ("prompt", "is 32 numbers wide .* and .* 48")],
)
def test_another_base_is_refused(config: str, message: str, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    peft_folder("llama", config, tmp_path)
    deep = {"num_hidden_layers": 3} if config == "prefix" else {"hidden_size": 48}
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "vocab_size": 96, **deep}
    model = LlamaForCausalLM(LlamaConfig(**fields, num_attention_heads=4, num_key_value_heads=2)).eval()
    with pytest.raises(BadCheckpoint, match=message):
        load(model, tmp_path, name="a")


def test_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(adapted("llama", OURS["multitask"]), tmp_path, name="a")
    change(tmp_path, num_tasks=5)
    with pytest.raises(BadCheckpoint, match=r"num_tasks 5 .* the file has \[3, 4, 2\] and \[3, 2, 32\]"):
        load(FAMILIES["llama"].build(), tmp_path, name="a")


def test_a_strange_tensor_is_refused(tmp_path: Path) -> None:
    peft_folder("llama", "prompt", tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.extra.weight": torch.zeros(2)}, file)
    with pytest.raises(BadCheckpoint, match="no adaptable module of this model"):
        load(FAMILIES["llama"].build(), tmp_path, name="a")


NOT_PEFT: dict[str, tuple[str, Method, str]] = {
    "learned-positions": ("gpt2", PrefixTuning(length=P, width=None), "train it with positions=shifted"),
    "t5-zero-bias": (
        "t5",
        PrefixTuning(length=P, width=None, targets=("attn",), stacks=("decoder",)),
        "bias=looked-up",
    ),
    "cross": ("bart", PrefixTuning(length=P, width=None), "targets=attn and stacks=decoder"),
    "one-layer": ("llama", PrefixTuning(length=P, width=None, layers=(1,)), "acts at 1 modules"),
    "window": ("mistral", PrefixTuning(length=P, width=None, positions="shifted"), "leaves a sliding window"),
    "no-cache": ("distilbert-classify", PTuningV2(length=P, positions="shifted"), "in the cache"),
    "after-first": ("bert-classify", PromptTuning(length=P), "stands after-first; train it with place=front"),
    "inside": ("llama", PTuning(length=P, place="inside"), "stands inside; train it with place=front"),
    "masked": ("bert", PromptTuning(length=P, place="front"), "for a BertForMaskedLM"),
}


@pytest.mark.parametrize("case", NOT_PEFT)
def test_what_peft_cannot_compute_has_our_own_form(case: str, tmp_path: Path) -> None:
    family, method, message = NOT_PEFT[case]
    model, batch, fresh = adapted(family, method), FAMILIES[family].batch(), FAMILIES[family].build()
    with pytest.raises(BadConfig, match=message):
        save(model, tmp_path / "peft", name="a", to="peft")
    assert not (tmp_path / "peft").exists()
    save(model, tmp_path, name="a")
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"].startswith("BUDWOOD_")
    load(fresh, tmp_path, name="a", anatomy=anatomy_of(family))
    with torch.no_grad():
        assert torch.equal(compared(fresh, batch), compared(model, batch))
