"""Reference tensors of prompts and prefixes: how a fixture becomes a model, a folder and expected numbers."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import budwood.core as core
from budwood.methods.prefix import Reparametrised
from budwood.methods.ptuning import PseudoTokens

SHARED = Path(__file__).parents[2].parent / "shared" / "fixtures" / "prompts"
CLASSES = {
    "gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration", "bert": "BertForSequenceClassification",
}  # fmt: skip
TRAINED = "prompt_encoder.default."
"""Where PEFT has the parameters of a prompt while it is trained."""


@dataclass(frozen=True)
class Fixture:
    """One file of reference tensors."""

    name: str
    data: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Fixture:
        """Read the file."""
        return cls(path.stem, torch.load(path, weights_only=True))

    @property
    def config(self) -> dict[str, Any]:
        """What the peer says of the adapter."""
        fields: dict[str, Any] = json.loads(self.data["config"])
        return fields

    def model(self) -> nn.Module:
        """The plain base model in eval mode, with the fixture's weights."""
        fields = json.loads(self.data["base_config"])
        name = "BertForTokenClassification" if "tokcls" in self.name else CLASSES[fields["model_type"]]
        cls = getattr(transformers, name)
        model = cls(cls.config_class.from_dict(fields)).eval()
        missing, unexpected = model.load_state_dict(self.data["base_state_dict"], strict=False)
        assert not missing and not unexpected
        return model  # type: ignore[no-any-return]

    def folder(self, root: Path) -> Path:
        """What the peer would have written, below `root`."""
        tensors = {key: tensor.contiguous() for key, tensor in self.data["adapter_state_dict"].items()}
        if "peft" in self.data["peer"]:
            write(root / "adapter_config.json", {**self.config, "inference_mode": True})
            save_file(tensors, root / "adapter_model.safetensors")
            return root
        base = json.loads(self.data["base_config"])
        about = {"model_type": base["model_type"], "name": "a", "version": "adapters.1.3.0"}
        write(root / "adapter_config.json", {**about, "config": self.config})
        head = {key: tensor for key, tensor in tensors.items() if key.startswith("classifier.")}
        save_file({key: t for key, t in tensors.items() if key not in head}, root / "adapter.safetensors")
        if head:
            write(root / "head_config.json", {**about, "config": None, "num_labels": 3})
            save_file(head, root / "model_head.safetensors")
        return root

    def inputs(self, case: str) -> dict[str, Tensor]:
        """Keyword arguments of a forward."""
        given = self.data["cases"][case]
        batch = {name: given[name] for name in ("input_ids", "attention_mask") if given[name] is not None}
        if "decoder_input_ids" in self.data:
            batch["decoder_input_ids"] = self.data["decoder_input_ids"][: len(batch["input_ids"])]
        return batch

    def compared(self, case: str, logits: Tensor) -> Tensor:
        """Logits that kernels agree on: those of padding in decoders they do not."""
        mask = self.data["cases"][case]["attention_mask"]
        if mask is None or logits.dim() == 2 or "decoder_input_ids" in self.data:
            return logits
        front = mask.new_ones(len(mask), logits.shape[1] - mask.shape[1])
        return logits[torch.cat([front, mask], dim=1).bool()]


def write(path: Path, fields: Mapping[str, Any]) -> None:
    """A JSON file."""
    path.write_text(json.dumps(fields), encoding="utf-8")


def objective(x: Tensor) -> Tensor:
    """The scalar whose gradients the fixtures have."""
    return (x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum()


def without_positions(model: nn.Module) -> None:
    """Have generate() give no positions, as PEFT does with prompts: padding then takes some."""
    prepare: Callable[..., dict[str, Any]] = model.prepare_inputs_for_generation  # type: ignore[assignment]

    @functools.wraps(prepare)
    def prepared(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**prepare(*args, **kwargs), "position_ids": None}

    object.__setattr__(model, "prepare_inputs_for_generation", prepared)


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Keys and values by path as one table of all peers': [P, 2 * layers * heads * width]."""
    rows = torch.stack([tensor for key, tensor in tensors.items() if key.endswith((".PK", ".PV"))])
    return rows.permute(2, 0, 1, 3).flatten(1)


def prefix_network(model: nn.Module, name: str) -> dict[str, Any]:
    """Parameters of a prefix's network by PEFT's names: a parameter, or those of all layers in one."""
    deltas = [d for d in deltas_of(model, name) if isinstance(d, Reparametrised)]
    network = deltas[0].network
    assert network is not None
    return {
        "embedding.weight": network.E, "transform.0.weight": network.W1, "transform.0.bias": network.b1,
        "transform.2.weight": [d.W2 for d in deltas], "transform.2.bias": [d.b2 for d in deltas],
    }  # fmt: skip


def prompt_network(model: nn.Module, name: str) -> dict[str, Any]:
    """Parameters of P-Tuning's network by PEFT's names."""
    delta = next(d for d in deltas_of(model, name) if isinstance(d, PseudoTokens))
    assert delta.network is not None
    names = {"lstm": "lstm_head", "mlp": "mlp_head"}
    inside = {key.split(".")[0]: key for key, _ in delta.network.named_parameters()}
    assert set(inside) <= set(names)
    own = {f"{names[key.split('.')[0]]}.{key.partition('.')[2]}": p for key, p in delta.network.named_parameters()}
    return {"embedding.weight": delta.E, **own}


def deltas_of(model: nn.Module, name: str) -> list[core.Delta]:
    """The adapter's deltas, in model order."""
    return [core.delta_at(model, site, name) for site in core.adapters(model)[name].sites]


def joined(parameters: Any, *, gradient: bool = False) -> Tensor:
    """One tensor out of a parameter or the parameters of all layers."""
    several = parameters if isinstance(parameters, list) else [parameters]
    return torch.cat([p.grad if gradient else p for p in several])


@torch.no_grad()
def fill(parameters: Any, value: Tensor) -> None:
    """The inverse of `joined`."""
    several = parameters if isinstance(parameters, list) else [parameters]
    for parameter, part in zip(several, value.split([len(p) for p in several]), strict=True):
        parameter.copy_(part)
