"""AdapterHub's LoRA and (IA)^3, which that library keeps as LoRA whose B rescales the output, read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from budwood.anatomy import Site
from budwood.errors import BadCheckpoint
from budwood.interop.adapterhub_names import LORA_FIELDS, Key, Names, check_fields
from budwood.interop.reading import Read, compress, last_names
from budwood.methods import IA3, LoRA


def read_lora(fields: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names) -> Read:
    """Its LoRA as ours. Raises BadCheckpoint for variants that compute something else, and tensors that do not fit."""
    check_fields(fields, LORA_FIELDS)
    refused = {
        "use_dora": "a DoRA whose merged weights are not its forward",
        "vera_d": "VeRA", "vera_b": "VeRA",
    }  # fmt: skip
    for name, what in refused.items():
        if fields.get(name):
            raise BadCheckpoint(f"this AdapterHub LoRA has {name} ({what}), which is not supported here")
    if fields.get("composition_mode", "add") != "add":
        return _ia3(fields, keys, tensors, names)
    rank, gated = int(fields.get("r", 8)), bool(fields.get("use_gating"))
    alpha = float(rank) if gated else float(fields.get("alpha", 8))  # its gate stands where the scale was
    if rank < 1:
        raise BadCheckpoint(f"r is {rank} in adapter_config.json; it must be at least 1")
    ours: dict[str, Tensor] = {}
    sites: dict[str, Site] = {}
    for key, parsed in keys.items():
        letter = {"lora_A": "A", "lora_B": "B", "gate.weight": "W_g", "gate.bias": "b_g"}.get(parsed.leaf)
        if parsed.kind != "loras" or letter is None:
            raise BadCheckpoint(f"the tensor {key!r} does not belong to a LoRA adapter")
        site = names.linear(parsed.path)
        sites[site.path] = site
        ours[f"{site.path}.{letter}"] = tensors[key]
        if letter == "A" and (tensors[key].dim() != 2 or tensors[key].shape[0] % rank):
            raise BadCheckpoint(
                f"{key} is {list(tensors[key].shape)}, and the configuration says r={rank}; one is wrong"
            )
    method = LoRA(
        rank=rank, alpha=alpha, dropout=float(fields.get("dropout", 0.0)), trained=(), gate=gated,
        gate_over="all" if gated else "text",
        **_lora_targets(fields, sites, names),
    )  # fmt: skip
    return Read(method, ours)


def _lora_targets(fields: Mapping[str, Any], sites: Mapping[str, Site], names: Names) -> dict[str, Any]:
    """Names of the modules, and for fused projections the roles of the parts that are adapted."""
    plain = [path for path, site in sites.items() if not site.parts]
    everything = [site.path for site in names.anatomy.sites]
    fused = [site for site in sites.values() if site.parts]
    roles = tuple(f"attn.{letter}" for letter in fields.get("attn_matrices", ("q", "v"))) if fused else ()
    layers = {site.layer for site in sites.values()}
    if fused and layers != {s.layer for s in names.anatomy.sites if s.role == fused[0].role}:
        kept = tuple(sorted(layer for layer in layers if layer is not None))
        return {"targets": (*roles, *last_names(plain)), "layers": kept}
    return {"targets": (*roles, *(compress(plain, last_names(plain), everything) if plain else ()))}


def _ia3(fields: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names) -> Read:
    """Its (IA)^3: a LoRA without A, whose B times alpha / r rescales the output."""
    scale = float(fields.get("alpha", 1)) / int(fields.get("r", 1))
    ours: dict[str, Tensor] = {}
    sites: dict[str, Site] = {}
    for key, parsed in keys.items():
        if parsed.leaf != "lora_B":
            raise BadCheckpoint(f"the tensor {key!r} does not belong to an (IA)^3 adapter of rank 1")
        site = names.linear(parsed.path)
        sites[site.path] = site
        ours[f"{site.path}.l"] = tensors[key].reshape(-1) * scale
    return Read(IA3(**_lora_targets(fields, sites, names), feedforward=(), trained=()), ours)
