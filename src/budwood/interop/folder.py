"""Save an adapter to a folder and load it back, in the format that fits: PEFT's where it has the type, else our own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, discover
from budwood.core import Adapter, Method, attach, delta_at, detach, named_parameters
from budwood.core.fingerprint import check_fingerprint, fingerprint
from budwood.core.registry import adapter_of, registry_of, root_of
from budwood.core.store import Folder, read_config, read_folder, write_files, write_folder
from budwood.core.trained import Trained
from budwood.errors import BadCheckpoint, BadConfig
from budwood.interop import adapterhub_write, peft, peft_prompts
from budwood.interop.foreign import describe_foreign, read_foreign
from budwood.interop.peft_prompts import Form
from budwood.interop.reading import Read
from budwood.methods import method_from_dict, method_to_dict

_VERSION = 1


@dataclass(frozen=True)
class Description:
    """What an adapter folder says of itself without a model: None where another tool wrote it and did not say."""

    base: str
    method: Method | None
    labels: tuple[str, ...] | None
    kind: str
    """The folder's own word for its type, as LORA."""
    on: tuple[str, ...] = ()
    """Folders of the adapters that it was trained on top of, the lowest first."""
    task: str | None = None
    """What it was trained for."""
    cloze: Mapping[str, Any] | None = None
    """For the task cloze, its pattern and verbalizer."""


def save(
    model: nn.Module,
    folder: Path | str,
    *,
    name: str,
    on: Sequence[str] = (),
    task: str | None = None,
    cloze: Mapping[str, Any] | None = None,
    to: Literal["budwood", "peft", "adapterhub"] = "budwood",
) -> Path:
    """Write the adapter `name` to `folder`: adapter_config.json and adapter_model.safetensors.

    A task head that was trained is in it. For the record: on, folders of the adapters that it was trained on top of;
    task; cloze, the pattern and verbalizer that task cloze was trained with.
    to: peft refuses what PEFT cannot compute, which is written in our own form otherwise; adapterhub writes that
    library's own files instead, without our record
    Raises NoSuchAdapter, or BadConfig where the folder cannot be written or the format cannot hold the adapter.
    """
    model = root_of(model)
    registry, adapter = adapter_of(model, name)
    if to == "adapterhub":
        written = adapterhub_write.write(model, adapter)
        write_files(Path(folder), configs=written.configs, tensors=written.tensors)
        return Path(folder)
    own: dict[str, Any] = {
        "version": _VERSION,
        "method": method_to_dict(adapter.method.deployed),
        "base": peft.base_name(model),
        "fingerprint": _fingerprint(model, adapter, registry.anatomy),
        "trained": None if adapter.unfrozen else _trained_paths(model, adapter),
        "labels": None if task == "question-answering" else _labels(model, adapter, registry.anatomy),
        "on": list(on),
        "task": task,
        "cloze": None if cloze is None else dict(cloze),
    }
    form = _peft_form(model, adapter, registry.anatomy)
    if isinstance(form, Form):
        config, tensors = form.config, form.tensors
        own |= {"tensors": "peft", **form.own}
    elif to == "peft":
        raise BadConfig(form)
    else:
        config = {"peft_type": f"BUDWOOD_{adapter.method.name.upper()}", "base_model_name_or_path": own["base"]}
        tensors = _stored(model, adapter)
    write_folder(folder, Folder(config, tensors, own))
    return Path(folder)


def _peft_form(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> Form | str:
    """The adapter as PEFT has it, or why it has it not."""
    if peft.can_write(adapter):
        return Form(*peft.write(model, adapter))
    if peft_prompts.can_write(adapter):
        return peft_prompts.write(model, adapter, anatomy)
    return f"PEFT has no adapter of the type {adapter.method.name}; use it with Budwood"


def load(
    model: nn.Module,
    folder: Path | str,
    *,
    name: str,
    anatomy: Anatomy | None = None,
    allow_pickle: bool = False,
    without_heads: bool = False,
) -> Adapter:
    """Attach the adapter in `folder` under any name, active and trainable.

    Reads our folders, PEFT's (LoRA, IA3, prompts, prefixes), AdapterHub's (bottlenecks, LoRA, IA3, prompts, prefixes,
    fusion, heads) and LLM-Adapters'.
    Strict: every tensor is used, none is missing, shapes and the base must fit.
    without_heads: leave out modules it trained in full that this model does not have, as the head of a masked LM
    allow_pickle: read a pickle file where there is no safetensors file, tensors and nothing else
    Raises NotAvailable or BadCheckpoint, and then leaves the model as it was.
    """
    root = root_of(model)
    registry = registry_of(root)
    anatomy = anatomy or (registry.anatomy if registry else discover(root))
    foreign = read_foreign(Path(folder), root, anatomy, allow_pickle=allow_pickle, without_heads=without_heads)
    if foreign is not None:
        return _attach(root, foreign.method, foreign.tensors, folder, name=name, anatomy=anatomy)
    stored = read_folder(folder, allow_pickle=allow_pickle)
    if without_heads:
        stored = _for_this_body(stored, root)
    made_for = str(stored.own.get("base") or stored.config.get("base_model_name_or_path") or "another model")
    check_fingerprint(root, anatomy, stored.own.get("fingerprint", {}), made_for=made_for)
    method, tensors = _understand(root, stored, anatomy, folder)
    return _attach(root, method, tensors, folder, name=name, anatomy=anatomy)


def _attach(
    root: nn.Module, method: Method, tensors: Mapping[str, Tensor], folder: Path | str, *, name: str, anatomy: Anatomy
) -> Adapter:
    """Attach and fill; on failure the model is as it was."""
    registry = registry_of(root)
    before = None if registry is None else registry.switch.plan
    trainable = [parameter for parameter in root.parameters() if parameter.requires_grad]
    adapter = attach(root, method, name=name, anatomy=anatomy)
    try:
        _copy_into(_own_state(root, adapter), tensors, folder)
    except BaseException:
        detach(root, name)
        if registry is not None and registry.adapters:
            registry.switch.plan = before
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    return adapter


def describe(folder: Path | str) -> Description:
    """What the folder says of its base, method and labels. Raises NotAvailable or BadCheckpoint."""
    foreign = describe_foreign(Path(folder))
    if foreign is not None:
        return Description(foreign.base, None, foreign.labels, foreign.kind, task=foreign.task)
    config, own = read_config(Path(folder))
    method = _method(own, folder) if own.get("method") else None
    cloze = own.get("cloze")
    labels = list(cloze["verbalizer"]) if cloze else own.get("labels")
    base = str(own.get("base") or config.get("base_model_name_or_path") or "")
    kind = str(config.get("peft_type", "unknown"))
    on, task = tuple(own.get("on") or ()), own.get("task") or peft.TASK_OF.get(str(config.get("task_type")))
    return Description(base, method, tuple(labels) if labels else None, kind, on, task, cloze)


def _understand(
    model: nn.Module, stored: Folder, anatomy: Anatomy, folder: Path | str
) -> tuple[Method, dict[str, Tensor]]:
    kind = str(stored.config.get("peft_type"))
    if peft.knows(stored.config) or peft_prompts.knows(stored.config):
        try:
            read = _read_peft(model, stored, anatomy)
        except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:
            raise BadCheckpoint(
                f"{folder}: a field of the configuration is malformed ({error}); train it again"
            ) from error
        _check_repeated(model, read.base, folder)
        if stored.own.get("tensors") != "peft":
            return read.method, read.tensors
        method = _for_this_head(_method(stored.own, folder), stored.own, anatomy)
        split = peft.split(method, read.tensors, anatomy)
        return method, peft_prompts.split(split, stored.own)
    if kind.startswith("BUDWOOD_") and stored.own:
        return _for_this_head(_method(stored.own, folder), stored.own, anatomy), stored.tensors
    raise BadCheckpoint(
        f"{folder} holds an adapter of type {kind}, which cannot be read here; LORA, IA3, PREFIX_TUNING, "
        "PROMPT_TUNING, P_TUNING, MULTITASK_PROMPT_TUNING and our own can"
    )


def _read_peft(model: nn.Module, stored: Folder, anatomy: Anatomy) -> Read:
    if peft.knows(stored.config):
        return peft.read(stored.config, stored.tensors, anatomy)
    return peft_prompts.read(stored.config, stored.tensors, model, anatomy)


def _check_repeated(model: nn.Module, repeated: Mapping[str, Tensor], folder: Path | str) -> None:
    """Base weights that a folder repeats have to be this model's."""
    for name, tensor in repeated.items():
        own = model.get_parameter(name)
        if own.shape != tensor.shape or not torch.allclose(
            own.float(), tensor.to(own.device).float(), rtol=1e-2, atol=1e-3
        ):
            raise BadCheckpoint(
                f"wrong base: {folder} was trained with another {name} (as after adding tokens); "
                "put that into the base first"
            )


def _for_this_body(stored: Folder, model: nn.Module) -> Folder:
    """The folder without the modules trained in full that the model does not have."""
    saved, here = stored.own.get("trained") or [], dict(model.named_modules())
    absent = [path for path in saved if path not in here]
    if not absent:
        return stored
    kept = [path for path in saved if path in here]
    prefixes = tuple(f"{lead}{path}." for path in absent for lead in ("", "base_model.model."))
    (kind, fields), *_ = stored.own["method"].items()
    return Folder(
        {**stored.config, **({"modules_to_save": kept or None} if "modules_to_save" in stored.config else {})},
        {name: tensor for name, tensor in stored.tensors.items() if not name.startswith(prefixes)},
        {**stored.own, "trained": kept, "method": {kind: {**fields, "trained": kept}}},
    )


def _for_this_head(method: Method, own: Mapping[str, Any], anatomy: Anatomy) -> Method:
    """The method with the heads that were saved, where this model's own would be others."""
    saved = own.get("trained")
    if method.trained is not None or not isinstance(saved, list):
        return method
    return method if [s.path for s in method.trained_sites(anatomy)] == saved else replace(method, trained=tuple(saved))


def _method(own: Mapping[str, Any], folder: Path | str) -> Method:
    if "method" not in own or own.get("version") != _VERSION:
        raise BadCheckpoint(
            f"{folder} is of format {own.get('version')}; this version reads {_VERSION}: update budwood"
        )
    return method_from_dict(own["method"])


def _trained_paths(model: nn.Module, adapter: Adapter) -> list[str]:
    """Modules that the adapter carries a trained copy of."""
    return [site.path for site in adapter.sites if isinstance(delta_at(model, site, adapter.name), Trained)]


def _fingerprint(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> dict[str, Any]:
    """Of the base without what the adapter brings itself."""
    own = {f"{path}.weight" for path in _trained_paths(model, adapter)}
    return {name: sample for name, sample in fingerprint(model, anatomy).items() if name not in own}


def _labels(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> list[str] | None:
    """The classes of a task head that the adapter trains."""
    config = vars(model).get("config")
    has_head = any(site.role == "head" for site in anatomy.sites)
    if config is None or not has_head or not (adapter.unfrozen or any(s.role == "head" for s in adapter.sites)):
        return None
    return [str(config.id2label[i]) for i in range(config.num_labels)]


def _stored(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """What is saved of the adapter, by the name it is stored under."""
    deltas = {site.path: delta_at(model, site, adapter.name) for site in adapter.sites}
    found = dict(named_parameters(model, adapter.name)) if adapter.unfrozen else {}
    return found | {f"{path}.{key}": t for path, delta in deltas.items() for key, t in delta.stored().items()}


def _own_state(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """Parameters and persistent buffers of the adapter by the name they are stored under."""
    found: dict[str, Tensor] = dict(named_parameters(model, adapter.name))
    for site in adapter.sites:
        inside = f"deltas.{adapter.name}."
        state = model.get_submodule(site.path).state_dict(keep_vars=True)
        found.update({f"{site.path}.{k.removeprefix(inside)}": t for k, t in state.items() if k.startswith(inside)})
    return found


def _copy_into(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], folder: Path | str) -> None:
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing:
        raise BadCheckpoint(
            f"{folder} lacks {missing[0]} ({len(missing)} tensors in all); it is incomplete or for another base"
        )
    if unknown:
        raise BadCheckpoint(
            f"{folder} holds {unknown[0]} ({len(unknown)} tensors in all) that this adapter has no place for"
        )
    for key, target in own.items():
        if target.shape != tensors[key].shape:
            raise BadCheckpoint(
                f"wrong base: {key} is {list(tensors[key].shape)} in {folder} and {list(target.shape)} in this model"
            )
        if target.is_floating_point() != tensors[key].is_floating_point():
            raise BadCheckpoint(
                f"{key} is stored as {tensors[key].dtype} in {folder}, not as {target.dtype} or the like"
            )
    with torch.no_grad():
        for key, target in own.items():
            target.copy_(tensors[key])
