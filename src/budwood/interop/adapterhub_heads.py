"""Prediction heads beside AdapterHub adapters: the library's own (flex) and those of transformers (static).

A static head has the names of the task model. A flex head is a list of layers; where the task model here computes the
same, its linears take their weights, otherwise the head is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, equal, nn

from budwood.anatomy import Anatomy
from budwood.core.store import read_json, read_tensors
from budwood.errors import BadCheckpoint

CONFIG = "head_config.json"
_TANH_ON_FIRST_TOKEN = ("bert", "roberta", "xlm-roberta")
"""Whose classifier computes what the library's default classification head computes: dense, tanh, linear."""


def read_head(path: Path, model: nn.Module, anatomy: Anatomy, *, allow_pickle: bool) -> dict[str, Tensor]:
    """Tensors of the head in a folder by the model's names: empty where there is none, or where the model has the same.

    Raises BadCheckpoint for a head that this model does not have.
    """
    if not (path / CONFIG).is_file():
        return {}
    config = read_json(path, CONFIG)
    tensors = read_tensors(path, "model_head.safetensors", "pytorch_model_head.bin", allow_pickle=allow_pickle)
    tensors = {key: tensor for key, tensor in tensors.items() if "prefix_tunings." not in key}  # T5: written by mistake
    fields = config.get("config")
    named = tensors if fields is None else _flex(fields, tensors, model, anatomy)
    own = dict(model.named_parameters(remove_duplicate=False))
    constants = dict(model.named_buffers())  # BART's final_logits_bias
    named = {n: t for n, t in named.items() if n not in constants or not equal(t, constants[n].detach().cpu())}
    strange = next((name for name in named if name not in own), None)
    if strange is not None:
        raise BadCheckpoint(
            f"{path / CONFIG}: the head has {strange}, which this {type(model).__name__} has not{_WAY_OUT}"
        )
    wrong = next((name for name, tensor in named.items() if tensor.shape != own[name].shape), None)
    if wrong is not None:
        raise BadCheckpoint(
            f"{path / CONFIG}: {wrong} is {list(named[wrong].shape)} in the folder and {list(own[wrong].shape)} in "
            f"this model: load the model with {named[wrong].shape[0]} labels"
        )
    return _without_same(named, own, anatomy)


_WAY_OUT = "; remove head_config.json to load the adapter without its head"


def labels_of(path: Path) -> tuple[str, ...] | None:
    """The classes of the head in a folder, in order; None where it does not say."""
    if not (path / CONFIG).is_file():
        return None
    config = read_json(path, CONFIG)
    fields = config.get("config") or config
    found = fields.get("label2id") if isinstance(fields, Mapping) else None
    if not found:
        return None
    by_number = {str(number): str(label) for label, number in found.items()} if isinstance(found, Mapping) else {}
    order = [str(number) for number in range(len(by_number))]
    if not order or len(by_number) != len(found) or sorted(by_number) != sorted(order):
        raise BadCheckpoint(f"{path / CONFIG}: label2id is {found}; it must number the classes from 0, each once")
    return tuple(by_number[number] for number in order)


def task_of_head(path: Path) -> str | None:
    """What the head in a folder is for, where it does more than tell classes apart."""
    fields = read_json(path, CONFIG).get("config") if (path / CONFIG).is_file() else None
    tasks = {"tagging": "token-classification", "question_answering": "question-answering"}
    return tasks.get(str(fields.get("head_type"))) if isinstance(fields, Mapping) else None


def _flex(
    fields: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, anatomy: Anatomy
) -> dict[str, Tensor]:
    """A flex head by the model's names."""
    layers: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = re.fullmatch(r"heads\.[^.]+\.(\d+)\.(weight|bias)", key)
        if found is None:
            raise BadCheckpoint(f"the head has a tensor {key!r}, which no head that is read here has{_WAY_OUT}")
        layers.setdefault(int(found[1]), {})[found[2]] = tensor
    stack = [layers[place] for place in sorted(layers)]
    paths = _paths(fields, model, anatomy)
    if len(paths) != len(stack):
        raise BadCheckpoint(
            f"the {fields.get('head_type')} head has {len(stack)} layers with weights, and this {type(model).__name__} "
            f"has {len(paths)}{_WAY_OUT}"
        )
    return {f"{path}.{key}": tensor for path, layer in zip(paths, stack, strict=True) for key, tensor in layer.items()}


def _paths(fields: Mapping[str, Any], model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Modules of this model that compute what the head's layers compute, in order."""
    kind, depth = fields.get("head_type"), fields.get("layers")
    by_role = {role: [s.path for s in anatomy.sites if s.role == role] for role in anatomy.roles}
    output = by_role.get("head.lm", [])
    if kind in ("causal_lm", "seq2seq_lm") and depth == 1:
        return output
    if kind == "masked_lm" and depth == 2:
        return [*by_role.get("head.transform", []), *by_role.get("norm.head", []), *output]
    heads = by_role.get("head", [])
    if kind in ("tagging", "question_answering") and depth == 1:
        return heads
    config = vars(model).get("config")
    same = (
        config is not None and config.model_type in _TANH_ON_FIRST_TOKEN and fields.get("activation_function") == "tanh"
    )
    if kind == "classification" and depth == 2 and same and not fields.get("use_pooler"):
        return [*by_role.get("pooler", []), *heads]
    raise BadCheckpoint(
        f"the head is of the type {kind} with {depth} layers, and this {type(model).__name__} does not compute the same"
        f"{_WAY_OUT}"
    )


def _without_same(named: Mapping[str, Tensor], own: Mapping[str, Tensor], anatomy: Anatomy) -> dict[str, Tensor]:
    """Without the layers of a language model's head that are the base's own anyway."""
    outside = {s.path for s in anatomy.sites if s.role in ("head.lm", "head.transform", "norm.head")}
    same = {
        path
        for path in outside
        if all(equal(t, own[n].detach().cpu()) for n, t in named.items() if n.rpartition(".")[0] == path)
    }
    return {name: tensor for name, tensor in named.items() if name.rpartition(".")[0] not in same}
