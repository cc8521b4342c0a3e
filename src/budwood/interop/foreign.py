"""Which other tool wrote an adapter folder, and what it says; PEFT's own types have a module of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from budwood.anatomy import Anatomy
from budwood.core.store import CONFIG, TENSORS, read_json, read_tensors
from budwood.errors import BadCheckpoint, BadConfig
from budwood.interop import adapterhub, llm_adapters
from budwood.interop.adapterhub_heads import labels_of, read_head
from budwood.interop.reading import Read

FUSION = "adapter_fusion_config.json"
SETUP = "adapter_setup.json"
INTERFACE = "adapter_interface.json"


@dataclass(frozen=True)
class Said:
    """What a folder of AdapterHub's says without a model; empty or None where it does not."""

    base: str
    labels: tuple[str, ...] | None
    kind: str
    task: str | None


def describe_foreign(path: Path) -> Said | None:
    """Base, classes and task of AdapterHub's folders; None for any other."""
    name = next((name for name in (FUSION, CONFIG) if (path / name).is_file()), None)
    if name is None:
        return None
    config = read_json(path, name)
    if not adapterhub.knows(config):
        return None
    classes, made_by = labels_of(path), str(config.get("model_class", ""))
    task = "masked-lm" if made_by.endswith("ForMaskedLM") else None
    kind = "ADAPTERHUB_FUSION" if name == FUSION else "ADAPTERHUB"
    return Said(str(config.get("model_name") or ""), classes, kind, task)


def read_foreign(path: Path, model: nn.Module, anatomy: Anatomy, *, allow_pickle: bool) -> Read | None:
    """What a folder of AdapterHub's or LLM-Adapters says; None for any other.

    Raises BadCheckpoint or NotAvailable for a damaged folder, one for another base, or what is not supported here.
    """
    if (path / SETUP).is_file() and not (path / CONFIG).is_file():
        inside = sorted(sub.name for sub in path.iterdir() if (sub / CONFIG).is_file() or (sub / FUSION).is_file())
        raise BadConfig(
            f"{path} holds several adapters ({', '.join(inside)}); load each of these folders under its name"
        )
    if (path / FUSION).is_file():
        config = read_json(path, FUSION)
        tensors = read_tensors(
            path, "model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin", allow_pickle=allow_pickle
        )
    else:
        config = read_json(path, CONFIG)
        if llm_adapters.knows(config):
            tensors = read_tensors(path, TENSORS, "adapter_model.bin", allow_pickle=allow_pickle)
            return llm_adapters.read(config, tensors, anatomy)
        if not adapterhub.knows(config):
            return None
        tensors = read_tensors(path, "adapter.safetensors", "pytorch_adapter.bin", allow_pickle=allow_pickle)
    try:
        read = adapterhub.read(config, tensors, anatomy, model, is_interface=(path / INTERFACE).is_file())
    except (TypeError, ValueError, AttributeError, KeyError, json.JSONDecodeError) as error:
        raise BadCheckpoint(f"{path}: a field of the configuration is malformed ({error}); train it again") from error
    head = read_head(path, model, anatomy, allow_pickle=allow_pickle)
    trained = tuple(dict.fromkeys(name.rpartition(".")[0] for name in head))
    return replace(read, method=replace(read.method, trained=trained), tensors={**read.tensors, **head})
