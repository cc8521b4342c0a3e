"""AdapterHub's adapter folders, written: bottlenecks with invertible adapters, Compacter, LoRA, fusion, heads.

`model.load_adapter(folder, use_safetensors=True)` of the `adapters` library (1.3) gives the same logits, heads included
when it adapted the task model itself. What that library cannot express, or computes otherwise, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy import SubLayer
from budwood.core import Adapter, anatomy_of, delta_at
from budwood.core.trained import Trained
from budwood.errors import BadConfig
from budwood.interop.adapterhub import differing_part, disagreement, expected_sites
from budwood.interop.adapterhub_names import ACTIVATIONS, DEFAULTS, NARROW, RULE, Names, base_prefix
from budwood.methods import IA3, Compacter, Fusion, LoRA, Parallel
from budwood.methods.bottleneck import Bottleneck, Sequential
from budwood.methods.lora import LoRADelta, LoRAParts

_BERTS = ("bert", "roberta", "xlm-roberta", "electra", "deberta", "deberta-v2", "bert-generation")
"""Whose own classes the library changes: adapters lie in the modules that hold the LayerNorms."""
_SWAPPED = ("llama", "mistral")
"""Whose down projection the library calls intermediate, and whose up projection output."""
_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
_SWITCHES = {"mh_adapter": "attn", "output_adapter": "mlp", "cross_adapter": "cross"}
VERSION = "adapters.1.3.0"


@dataclass(frozen=True)
class Written:
    """The content of a folder: JSON files and tensor files by name."""

    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)


def write(model: nn.Module, adapter: Adapter) -> Written:
    """An adapter as files of the library, under its own name. Raises BadConfig for what the format cannot hold."""
    anatomy, config = anatomy_of(model), vars(model).get("config")
    kind = "" if config is None else str(config.model_type)
    names = Names(anatomy, base_prefix(model), kind)
    about = {
        "hidden_size": anatomy.hidden_size, "model_class": type(model).__name__, "model_type": kind,
        "name": adapter.name, "model_name": "" if config is None else str(config.name_or_path), "version": VERSION,
    }  # fmt: skip
    method = adapter.method
    written = Written()
    if isinstance(method, Fusion):
        differs = differing_part(method.of, model)
        if differs is not None:
            raise BadConfig(f"AdapterHub feeds a fusion in a way of its own, {differs}; use it with Budwood")
        about |= {"adapter_names": list(method.of), "name": ",".join(method.of)}
        written.configs["adapter_fusion_config.json"] = {**about, "config": _fusion_fields(method)}
        written.tensors["model_adapter_fusion.safetensors"] = _fusion_tensors(model, adapter, names)
    elif isinstance(method, Bottleneck):
        fields = _fields(method, adapter, names)
        written.configs["adapter_config.json"] = {**about, "config": fields}
        written.tensors["adapter.safetensors"] = _bottleneck_tensors(model, adapter, names)
    elif isinstance(method, LoRA):
        fields, tensors = _lora(model, adapter, names)
        written.configs["adapter_config.json"] = {**about, "config": fields}
        written.tensors["adapter.safetensors"] = tensors
    else:
        form = "merged" if adapter.unfrozen else "peft" if isinstance(method, IA3) else None
        other = f"export it --to {form}" if form else "use it with Budwood"
        raise BadConfig(f"AdapterHub has no adapter of the method {method.name}; {other}")
    _write_head(model, adapter, about, written)
    return written


def _write_head(model: nn.Module, adapter: Adapter, about: dict[str, Any], written: Written) -> None:
    """Modules trained in full, as the head of the task model."""
    found = {
        f"{site.path}.{key}": tensor.detach()
        for site in adapter.sites
        if isinstance(delta := delta_at(model, site, adapter.name), Trained)
        for key, tensor in delta.named_parameters()
    }
    if not found:
        return
    roles = {site.path: site.role for site in adapter.sites}
    inside = next((name for name in found if not roles[name.rpartition(".")[0]].startswith("head")), None)
    if inside is not None:
        raise BadConfig(f"AdapterHub's format holds heads, and {inside} is trained too; use it with Budwood")
    config = vars(model)["config"]
    written.configs["head_config.json"] = {
        **about, "config": None, "name": None, "num_labels": config.num_labels, "label2id": dict(config.label2id),
    }  # fmt: skip
    written.tensors["model_head.safetensors"] = found


# ------------------------------------------------------------------------------------------------------ bottlenecks
def _fields(method: Bottleneck, adapter: Adapter, names: Names) -> dict[str, Any]:
    """The configuration. Raises BadConfig for options or sites that it cannot say."""
    if method.gate and method.gate_over != "all":
        raise BadConfig(
            "AdapterHub's gates are means over padding, too; train with gate_over=all, or use it with Budwood"
        )
    if isinstance(method, Parallel) and method.attention != "after":
        raise BadConfig(f"AdapterHub's parallel adapters have no attention={method.attention}; use it with Budwood")
    sublayers = [site.sublayer for site in adapter.sites if site.kind == "sublayer" and site.sublayer is not None]
    paths = [sublayer.path for sublayer in sublayers]
    indices = {names.index(s.stack, s.layer) for s in sublayers}
    total = sum(names.anatomy.num_layers(stack) for stack in names.stacks)
    sequential = method if isinstance(method, Sequential) else None
    residual = sequential.residual if sequential else "h"
    fields: dict[str, Any] = {
        **DEFAULTS,
        **{switch: any(s.role == role for s in sublayers) for switch, role in _SWITCHES.items()},
        "leave_out": sorted(set(range(total)) - indices),
        "reduction_factor": _reduction(method, adapter, names),
        "non_linearity": _NAMES[method.activation],
        "original_ln_before": method.reading == "total", "original_ln_after": method.adds_residual,
        "is_parallel": method.reading == "r",
        "residual_before_ln": {"h": True, "input": False, "total": "post_add"}[residual],
        "adapter_residual_before_ln": sequential is not None and sequential.ln_after_residual,
        "ln_before": method.ln_before, "ln_after": method.ln_after, "use_gating": method.gate,
        "dropout": method.dropout, "stochastic_depth": sequential.stochastic_depth if sequential else 0.0,
        "scaling": {"no": float(method.start), "scalar": "learned", "channel": "channel"}[method.learn_scale],
        "inv_adapter": "nice" if method.invertible else None,
        "inv_adapter_reduction_factor": method.invertible_reduction if method.invertible else None,
        "init_weights": {"zero": "mam_adapter"}.get(method.init, method.init),
    }  # fmt: skip
    if isinstance(method, Compacter):
        fields |= {
            "phm_layer": True, "phm_dim": method.n, "phm_rank": method.rank, "phm_bias": method.bias,
            "shared_phm_rule": method.shares_rule, "factorized_phm_rule": method.factorized_rule,
            "learn_phm": method.learn_rule, "factorized_phm_W": method.factorized, "init_weights": "bert",
            "shared_W_phm": method.shares_weights,
        }  # fmt: skip
    wrong = disagreement(fields, paths, names)
    if wrong is not None:
        raise BadConfig(f"AdapterHub {wrong}; its adapter would not compute the same, so use it with Budwood")
    if set(expected_sites(fields, names)) != set(paths):
        raise BadConfig(
            "AdapterHub's format adapts the same sub-layers in every layer that is not left out, and this adapter does "
            "not; use it with Budwood"
        )
    return fields


def _reduction(method: Bottleneck, adapter: Adapter, names: Names) -> Any:
    """One reduction factor, or one by layer."""
    found: dict[str, float] = {}
    for site in adapter.sites:
        if site.kind != "sublayer" or site.sublayer is None:
            continue
        ratio = _ratio(site.out_features, method.size_at(site))
        index = str(names.index(site.sublayer.stack, site.sublayer.layer))
        if found.setdefault(index, ratio) != ratio:
            raise BadConfig("AdapterHub's format has one bottleneck size a layer, and this adapter has several")
    return next(iter(found.values())) if len(set(found.values())) == 1 else found


def _ratio(d: int, m: int) -> float:
    """A factor that makes m of d in the library's arithmetic: int(d // factor)."""
    return next(ratio for ratio in (d // m, d / m, d / (m + 0.25)) if ratio and int(d // ratio) == m)


def _bottleneck_tensors(model: nn.Module, adapter: Adapter, names: Names) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for site in adapter.sites:
        delta = delta_at(model, site, adapter.name)
        if isinstance(delta, Trained):
            continue
        state = dict(delta.state_dict().items())
        if site.kind == "sublayer" and site.sublayer is not None:
            prefix = f"{_place(site.sublayer, names)}.adapters.{adapter.name}."
            method = adapter.method
            assert isinstance(method, Bottleneck)
            if not method.bias and not isinstance(method, Compacter):
                m = method.size_at(site)
                state |= {"A.b_d": torch.zeros(m), "A.b_u": torch.zeros(site.out_features)}
            for key, tensor in state.items():
                shared = _shared_name(key, method)
                if shared is not None:
                    found[f"{_joined(_base(model, names))}shared_parameters.{adapter.name}.{shared}"] = tensor
                else:
                    found |= {f"{prefix}{name}": tensor for name in _leaves(key, method)}
        elif site.role == "block":
            place = f"{_joined(_base(model, names))}{'encoder.' if len(names.stacks) > 1 else ''}"
            for key, tensor in state.items():
                part, _, letter = key.partition(".")
                leaf = f"{'0' if letter.endswith('d') else '2'}.{'weight' if letter[0] == 'W' else 'bias'}"
                found[f"{place}invertible_adapters.{adapter.name}.{part}.{leaf}"] = tensor
    return found


def _leaves(key: str, method: Bottleneck) -> list[str]:
    """The library's names of one tensor of a bottleneck; a LayerNorm in front is there twice."""
    first = "adapter_down.1" if method.ln_before else "adapter_down.0"
    if key.startswith("ln_before."):
        what = key.rpartition(".")[2]
        return [f"adapter_norm_before.{what}", f"adapter_down.0.{what}"]
    if key.startswith("ln_after."):
        return [f"adapter_norm_after.{key.rpartition('.')[2]}"]
    if key in ("s", "W_g", "b_g"):
        return [{"s": "scaling", "W_g": "gate.weight", "b_g": "gate.bias"}[key]]
    ours = key.removeprefix("A.")
    direction = "d" if ours[2] == "d" else "u"
    where = first if direction == "d" else "adapter_up"
    table = {**NARROW, **RULE}
    if isinstance(method, Compacter):
        table = {name: pattern for name, pattern in table.items() if name not in ("weight", "bias")}
    (what,) = (
        name
        for name, pattern in table.items()
        if pattern.format(direction) == ours and (name != "b" or isinstance(method, Compacter))
    )
    return [f"{where}.{what}"]


def _shared_name(key: str, method: Bottleneck) -> str | None:
    """The library's name of a tensor that all sites of a Compacter share."""
    if not isinstance(method, Compacter):
        return None
    ours = key.removeprefix("A.")
    if method.shares_rule and ours.startswith("R_"):
        return next(name for name, pattern in RULE.items() if pattern.format("d") == ours)
    if method.shares_weights and ours.startswith("W_"):
        side = {"L": "_left", "T": "_right", "M": ""}[ours.rpartition(".")[2]]
        return f"W_{'down' if ours[2] == 'd' else 'up'}{side}"
    return None


def _place(sublayer: SubLayer, names: Names) -> str:
    """Where the library keeps the adapters of a sub-layer."""
    block = next(
        s.path for s in names.anatomy.sites
        if s.role == "block" and (s.stack, s.layer) == (sublayer.stack, sublayer.layer)
    )  # fmt: skip
    if names.kind in _BERTS:
        inside = {"attn": "attention.output", "mlp": "output", "cross": "crossattention.output"}
        return f"{block}.{inside[sublayer.role]}"
    if names.kind in ("t5", "mt5"):
        order = ("attn", "mlp") if sublayer.stack == "encoder" else ("attn", "cross", "mlp")
        return f"{block}.layer.{order.index(sublayer.role)}"
    word = {"attn": "attention", "mlp": "output", "cross": "cross_attention"}[sublayer.role]
    return f"{block}.{word}_adapters"


def _base(model: nn.Module, names: Names) -> str:
    """Path of the base model inside a task model; empty where it is the model itself."""
    return names.prefix if names.prefix in dict(model.named_children()) else ""


def _joined(path: str) -> str:
    return f"{path}." if path else ""


# ------------------------------------------------------------------------------------------------------------- LoRA
def _lora(model: nn.Module, adapter: Adapter, names: Names) -> tuple[dict[str, Any], dict[str, Tensor]]:
    method = adapter.method
    assert isinstance(method, LoRA)
    if method.dora or method.bias or method.gate:
        raise BadConfig("AdapterHub's LoRA has no bias of B, and its DoRA and gates are others; export it --to peft")
    tensors: dict[str, Tensor] = {}
    scales: set[tuple[int, float]] = set()
    roles: set[str] = set()
    for site in adapter.sites:
        delta = delta_at(model, site, adapter.name)
        if isinstance(delta, Trained):
            continue
        if isinstance(delta, LoRAParts) and delta.A0 is None:
            A, B, rank = delta.A.detach(), delta.B.detach(), delta.rank
            roles |= set(site.chosen)
        elif isinstance(delta, LoRADelta) and not site.parts:
            A, B = (tensor.detach() for tensor in delta.pair())
            rank = A.shape[0]
            roles.add(site.role)
        else:
            raise BadConfig(
                f"AdapterHub has no LoRA of this kind at {site.path} (fused projections take q, k and v apart, "
                "there is none for embeddings); export it --to peft"
            )
        scales.add((rank, delta.scale * rank))
        tensors[f"{site.path}.loras.{adapter.name}.lora_A"] = A
        tensors[f"{site.path}.loras.{adapter.name}.lora_B"] = B
    if len(scales) != 1:
        raise BadConfig("AdapterHub's LoRA has one rank and one alpha for all sites; export it --to peft")
    ((rank, alpha),) = scales
    return {**_lora_sites(adapter, roles, names), "r": rank, "alpha": alpha, "dropout": method.dropout}, tensors


def _lora_sites(adapter: Adapter, roles: set[str], names: Names) -> dict[str, Any]:
    known = {"attn.q", "attn.k", "attn.v", "cross.q", "cross.k", "cross.v", "mlp.up", "mlp.down"}
    if roles - known:
        raise BadConfig(f"AdapterHub has no LoRA at {', '.join(sorted(roles - known))}; export it --to peft")
    matrices = [letter for letter in "qkv" if f"attn.{letter}" in roles]
    has_cross = any(role.startswith("cross.") for role in names.anatomy.roles)
    crossed = {role for role in roles if role.startswith("cross.")}
    if has_cross and {f"cross.{letter}" for letter in matrices} != crossed:
        raise BadConfig(
            "AdapterHub's LoRA adapts cross-attention as it does self-attention, and this adapter does not; export it "
            "--to peft"
        )
    up, down = "mlp.up" in roles, "mlp.down" in roles
    if names.kind in _SWAPPED:
        up, down = down, up
    indices = {names.index(s.stack, s.layer) for s in adapter.sites if s.layer is not None}
    total = sum(names.anatomy.num_layers(stack) for stack in names.stacks)
    return {
        "architecture": "lora", "selfattn_lora": bool(matrices), "attn_matrices": matrices, "intermediate_lora": up,
        "output_lora": down, "leave_out": sorted(set(range(total)) - indices), "composition_mode": "add",
        "use_gating": False, "init_weights": "lora", "init_weights_seed": None, "vera_d": None, "vera_b": None,
        "use_dora": False, "dtype": None,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- fusion
def _fusion_fields(method: Fusion) -> dict[str, Any]:
    if method.temperature != 1:
        raise BadConfig("AdapterHub's fusion has no constant temperature; use it with Budwood")
    return {
        "key": method.key, "query": method.query, "value": method.value, "dropout_prob": method.dropout or None,
        "query_before_ln": False, "residual_before": False, "temperature": False, "value_before_softmax": True,
        "value_initialized": True, "regularization": bool(method.regularization),
    }  # fmt: skip


def _fusion_tensors(model: nn.Module, adapter: Adapter, names: Names) -> dict[str, Tensor]:
    method = adapter.method
    assert isinstance(method, Fusion)
    words = {"Q": "query", "K": "key", "V": "value"}
    found: dict[str, Tensor] = {}
    for site in adapter.sites:
        delta = delta_at(model, site, adapter.name)
        if isinstance(delta, Trained):
            continue
        if site.sublayer is None or site.kind != "sublayer":
            raise BadConfig(f"AdapterHub fuses bottleneck adapters, and {site.path} is no sub-layer; use it here")
        prefix = f"{_place(site.sublayer, names)}.adapter_fusion_layer.{','.join(method.of)}."
        for key, tensor in delta.named_parameters():
            found[f"{prefix}{words[key[2]]}.{'weight' if key[0] == 'W' else 'bias'}"] = tensor.detach()
    return found
