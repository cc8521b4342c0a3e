"""Which other tool wrote an adapter folder, and what it says; PEFT's own types have a module of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from budwood.anatomy import Anatomy
from budwood.core.store import CONFIG, TENSORS, read_json, read_tensors
from budwood.errors import BadCheckpoint, BadConfig, NoSuchAdapter
from budwood.interop import adapterhub, llm_adapters
from budwood.interop.adapterhub_heads import labels_of, read_head, task_of_head
from budwood.interop.reading import Read

FUSION = "adapter_fusion_config.json"
SETUP = "adapter_setup.json"
INTERFACE = "adapter_interface.json"

TASKS = {
    "ForMaskedLM": "masked-lm",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}
"""What a model is used for, by the end of its class' name, where its head does not show it."""

_FILES = (
    (llm_adapters.knows, (TENSORS, "adapter_model.bin")),
    (adapterhub.knows, ("adapter.safetensors", "pytorch_adapter.bin")),
)


@dataclass(frozen=True)
class Said:
    """What a folder of AdapterHub's says without a model; empty or None where it does not."""

    base: str
    labels: tuple[str, ...] | None
    kind: str
    task: str | None


def holds_adapter(path: Path) -> bool:
    """Whether there is the configuration of an adapter or of a fusion in a folder."""
    return (path / CONFIG).is_file() or (path / FUSION).is_file()


def describe_foreign(path: Path) -> Said | None:
    """Base, classes and task of AdapterHub's folders; None for any other."""
    name = next((name for name in (FUSION, CONFIG) if (path / name).is_file()), None)
    if name is None:
        return None
    config = read_json(path, name)
    if not adapterhub.knows(config):
        return None
    classes, made_by = labels_of(path), str(config.get("model_class", ""))
    task = next((task for ending, task in TASKS.items() if made_by.endswith(ending)), None) or task_of_head(path)
    kind = "ADAPTERHUB_FUSION" if name == FUSION else "ADAPTERHUB"
    return Said(str(config.get("model_name") or ""), classes, kind, task)


def read_foreign(
    path: Path, model: nn.Module, anatomy: Anatomy, *, allow_pickle: bool, without_heads: bool = False
) -> Read | None:
    """What a folder of AdapterHub's or LLM-Adapters says; None for any other.

    without_heads: leave out a head that this model does not have
    Raises BadCheckpoint or NotAvailable for a damaged folder, one for another base, or what is not supported here.
    """
    if (path / SETUP).is_file() and not (path / CONFIG).is_file():
        inside = sorted(sub.name for sub in path.iterdir() if holds_adapter(sub))
        raise BadConfig(
            f"{path} holds several adapters ({', '.join(inside)}); load each of these folders under its name"
        )
    config = read_json(path, FUSION if (path / FUSION).is_file() else CONFIG)
    files = next((names for knows, names in _FILES if knows(config)), None)
    if (path / FUSION).is_file():
        files = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
    if files is None:
        return None
    tensors = read_tensors(path, *files, allow_pickle=allow_pickle)
    try:
        if llm_adapters.knows(config):
            return llm_adapters.read(config, tensors, anatomy)
        read = adapterhub.read(config, tensors, anatomy, model, is_interface=(path / INTERFACE).is_file())
    except NoSuchAdapter:
        raise  # a fusion's parts are to be attached first
    except BadConfig as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise BadCheckpoint(f"{path}: a field of the configuration is malformed ({error}); train it again") from error
    try:
        head = read_head(path, model, anatomy, allow_pickle=allow_pickle)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise BadCheckpoint(f"{path}: the configuration of the head is malformed ({error})") from error
    except BadCheckpoint:
        if not without_heads:
            raise
        head = {}
    trained = tuple(dict.fromkeys(name.rpartition(".")[0] for name in head))
    return replace(read, method=replace(read.method, trained=trained), tensors={**read.tensors, **head})
