"""LLM-Adapters' folders, read: PEFT's layout with `peft_type: BOTTLENECK` and names of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from budwood.anatomy import Anatomy
from budwood.errors import BadCheckpoint
from budwood.interop.adapterhub_names import ACTIVATIONS
from budwood.interop.reading import Read, compress, last_names
from budwood.methods import LinearAdapter

_KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.adapter_(?P<way>down|up)(?:\.default)?\.(?P<what>weight|bias)")
_BEFORE = ("gate_proj", "up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h")
"""Linears that the form AdapterH adapts at their input."""


def knows(config: Mapping[str, Any]) -> bool:
    """True for a configuration of this library."""
    return config.get("peft_type") == "BOTTLENECK"


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], anatomy: Anatomy) -> Read:
    """Its configuration and tensors as ours.

    Raises BadCheckpoint for tensors that have no place in this model, a size that does not fit, or a trained scale.
    """
    act = str(config.get("non_linearity", "tanh")).lower()
    if act not in ACTIVATIONS:
        raise BadCheckpoint(f"this adapter has the non-linearity {act!r}; known: {', '.join(ACTIVATIONS)}")
    if isinstance(config.get("scaling", 1.0), str):
        raise BadCheckpoint("this adapter trains its scale, which is not read here; train it with a constant scaling")
    if config.get("modules_to_save"):
        raise BadCheckpoint("this adapter has modules_to_save, which are not read from LLM-Adapters' folders")
    ours: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise BadCheckpoint(f"the tensor {key!r} has a name that no adapter of LLM-Adapters has")
        if not any(site.path == found["path"] for site in anatomy.sites):
            raise BadCheckpoint(
                f"wrong base: the adapter has tensors for {found['path']!r}, which is no adaptable module of this model"
            )
        letter = f"{'W' if found['what'] == 'weight' else 'b'}_{found['way'][0]}"
        ours[f"{found['path']}.A.{letter}"] = tensor
    paths = list(dict.fromkeys(key.removesuffix(".A.W_d") for key in ours if key.endswith(".A.W_d")))
    size = int(config.get("bottleneck_size", 256))
    wrong = next((path for path in paths if ours[f"{path}.A.W_d"].shape[0] != size), None)
    if wrong is not None:
        found_size = ours[f"{wrong}.A.W_d"].shape[0]
        raise BadCheckpoint(f"{wrong} has a bottleneck of {found_size}, the configuration says {size}; one is wrong")
    fields = {
        "form": _form(config), "size": size, "activation": ACTIVATIONS[act], "scale": config.get("scaling", 1.0),
        "dropout": config.get("adapter_dropout", 0.0), "bias": any(key.endswith(".b_d") for key in ours), "trained": (),
        "targets": compress(paths, last_names(paths), [site.path for site in anatomy.sites]),
        "before": [name for name in last_names(paths) if name in _BEFORE],
    }  # fmt: skip
    return Read(LinearAdapter.from_dict(fields), ours)


def _form(config: Mapping[str, Any]) -> str:
    return (
        "parallel" if config.get("use_parallel_adapter") else "adapter-p" if config.get("use_adapterp") else "adapter-h"
    )
