"""AdapterHub's folders of prefixes, prompts and unions: which tensor goes where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of
from budwood.errors import BadCheckpoint
from budwood.interop import load
from budwood.methods import PromptTuning
from families import FAMILIES

P, K = 3, 5
KINDS = {"bert-classify": "bert", "llama": "llama", "bart": "bart", "t5": "t5"}
POOL = "prefix_tuning.prefix_tunings.a"
PREFIX: dict[str, Any] = {
    "architecture": "prefix_tuning", "prefix_length": P, "bottleneck_size": K, "flat": True, "leave_out": [],
}  # fmt: skip


def folder(path: Path, family: str, fields: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    config = {"config": fields, "model_type": KINDS[family], "version": "adapters.1.3.0", "name": "a"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path / "adapter.safetensors")
    return path


def table(columns: int, seed: int = 1) -> Tensor:
    return torch.randn(P, columns, generator=torch.Generator().manual_seed(seed))


def rows(model: nn.Module, flat: Tensor, paths: list[str]) -> dict[str, Tensor]:
    """Keys and values of modules with the same heads, as all peers cut them: [H, P, D]."""
    calls = {site.path: site.call for site in core.adapters(model)["a"].sites}
    call = calls[paths[0]]
    assert call is not None
    cut = flat.view(P, 2 * len(paths), call.heads, call.key_size).permute(1, 2, 0, 3)
    return {f"{path}.{letter}": cut[2 * n + i] for n, path in enumerate(paths) for i, letter in enumerate(("PK", "PV"))}


def check(model: nn.Module, expected: dict[str, Tensor]) -> None:
    own = core.named_parameters(model, "a")
    assert own.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(own[key].detach(), tensor)


def attentions(family: str, stack: str, role: str = "attn") -> list[str]:
    return [s.path for s in anatomy_of(family).sites if s.role == role and s.stack == stack]


def test_flat_prefixes_of_all_places(tmp_path: Path) -> None:
    flats = {key: table(128, seed) for seed, key in enumerate(("encoder_prefix", "self_prefix", "cross_prefix"))}
    tensors = {f"{POOL}.{key}.control_trans": flat.flatten() for key, flat in flats.items()}
    again = {f"encoder.block.1.layer.0.SelfAttention.prefix_tuning.pool.{k[14:]}": t for k, t in tensors.items()}
    model = FAMILIES["t5"].build()
    method = load(model, folder(tmp_path, "t5", PREFIX, {**tensors, **again}), name="a").method
    assert (method.targets, method.to_dict()["bias"]) == (("attn", "cross?"), "adapterhub")
    paths = [attentions("t5", "encoder"), attentions("t5", "decoder"), attentions("t5", "decoder", "cross")]
    expected: dict[str, Tensor] = {}
    for flat, found in zip(flats.values(), paths, strict=True):
        expected |= rows(model, flat, found)
    check(model, expected)


def test_a_network_gives_its_rows(tmp_path: Path) -> None:
    parts = {
        "wte.weight": table(32), "control_trans.0.weight": torch.randn(K, 32), "control_trans.0.bias": torch.randn(K),
        "control_trans.2.weight": torch.randn(32, K), "control_trans.2.bias": torch.randn(32),
    }  # fmt: skip
    model = FAMILIES["llama"].build()
    fields = {**PREFIX, "flat": False, "leave_out": [0], "non_linearity": "tanh"}
    tensors = {f"model.{POOL}.self_prefix.{key}": tensor for key, tensor in parts.items()}
    load(model, folder(tmp_path, "llama", fields, tensors), name="a")
    hidden = torch.tanh(parts["wte.weight"] @ parts["control_trans.0.weight"].T + parts["control_trans.0.bias"])
    flat = hidden @ parts["control_trans.2.weight"].T + parts["control_trans.2.bias"]
    check(model, rows(model, flat, attentions("llama", "decoder")[1:]))


def test_gates(tmp_path: Path) -> None:
    flat, paths = table(128), attentions("bert-classify", "encoder")
    gates = {f"{path}.prefix_tuning.prefix_gates.a.weight": torch.randn(2, 32) for path in paths}
    gates |= {f"{path}.prefix_tuning.prefix_gates.a.bias": torch.randn(2) for path in paths}
    tensors = {f"bert.{POOL}.self_prefix.control_trans": flat.flatten(), **gates}
    model = FAMILIES["bert-classify"].build()
    fields = {**PREFIX, "use_gating": True, "shared_gating": False}
    method = load(model, folder(tmp_path, "bert-classify", fields, tensors), name="a").method.to_dict()
    assert (method["gate"], method["gate_over"]) == ("separate", "all")
    letters = {"weight": "W_g", "bias": "b_g"}
    named = {f"{k.partition('.prefix_tuning')[0]}.{letters[k.rpartition('.')[2]]}": t for k, t in gates.items()}
    check(model, {**rows(model, flat, paths), **named})


@pytest.mark.parametrize(("combine", "place"), [("prefix", "front"), ("prefix_after_bos", "after-first")])
def test_prompts(combine: str, place: str, tmp_path: Path) -> None:
    prompt = {"bert.prompt_tuning.prompt_tunings.a.prompt_embedding.weight": table(32)}
    fields = {"architecture": "prompt_tuning", "prompt_length": P, "combine": combine}
    model = FAMILIES["bert-classify"].build()
    method = load(model, folder(tmp_path, "bert-classify", fields, prompt), name="a").method
    assert isinstance(method, PromptTuning)
    assert (method.place, method.level) == (place, "states")
    check(model, {"bert.embeddings.P": table(32)})


FLAT = {f"bert.{POOL}.self_prefix.control_trans": table(128).flatten()}
LORA = {"bert.encoder.layer.0.attention.self.query.loras.a.lora_A": torch.ones(2, 32)}
PROMPT = {"architecture": "prompt_tuning", "prompt_length": P}
BAD: dict[str, tuple[dict[str, Any], dict[str, Tensor], str]] = {
    "length": ({**PREFIX, "prefix_length": 7}, FLAT, "are for another; one is wrong"),
    "heads": (PREFIX, {next(iter(FLAT)): table(64).flatten()}, "has 64 numbers a row, .* take 128"),
    "layers": ({**PREFIX, "leave_out": [1]}, FLAT, "has 128 numbers a row, .* take 64"),
    "place": (PREFIX, {f"bert.{POOL}.cross_prefix.control_trans": table(128)}, "holds cross_prefix"),
    "network": ({**PREFIX, "flat": False}, FLAT, "flat=False has .*wte.weight"),
    "act": ({**PREFIX, "flat": False, "non_linearity": "prelu"}, FLAT, "flat=False has"),
    "strange": (PREFIX, {**FLAT, **LORA}, "does not belong to a prefix"),
    "field": ({**PREFIX, "rotary": True}, FLAT, "rotary=True, which is not known here"),
    "gates": ({**PREFIX, "use_gating": True}, FLAT, "lacks .*_g"),
    "copies": (PREFIX, {**FLAT, f"bert.x.{next(iter(FLAT))}": table(128, 2).flatten()}, "differs from the same tensor"),
    "prompt": (PROMPT, {"prompt_tunings.a.prompt_embedding.weight": table(16)}, r"\[3, 16\] .* \[3, 32\]"),
    "combine": ({**PROMPT, "combine": "suffix"}, {"prompt_tunings.a.prompt_embedding.weight": table(32)}, "'suffix'"),
    "union": ({"architecture": "union", "configs": [PREFIX]}, FLAT, "a union of prefix-tuning with options"),
    "union-key": ({"architecture": "union", "configs": [PREFIX]}, {**FLAT, **LORA}, "belongs to none, or to several"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(case: str, tmp_path: Path) -> None:
    fields, tensors, message = BAD[case]
    model = FAMILIES["bert-classify"].build()
    with pytest.raises(BadCheckpoint, match=message):
        load(model, folder(tmp_path, "bert-classify", fields, tensors), name="a")
    assert core.adapters(model) == {}


def test_t5_with_layers_left_out_is_refused(tmp_path: Path) -> None:
    fields = {**PREFIX, "leave_out": [0], "cross_prefix": False}
    tensors = {f"{POOL}.{key}.control_trans": table(64).flatten() for key in ("encoder_prefix", "self_prefix")}
    with pytest.raises(BadCheckpoint, match="no position bias where leave_out"):
        load(FAMILIES["t5"].build(), folder(tmp_path, "t5", fields, tensors), name="a")
