"""What a model folder must hold before anything is loaded from it: a config and safetensors weights, never pickles."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from budwood.errors import BadCheckpoint, NotAvailable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that run code when they are opened the usual way."""

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def check_model_folder(folder: Path) -> None:
    """Raises NotAvailable if the folder is no model or holds pickles only; BadCheckpoint if files are missing."""
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names:
        raise NotAvailable(f"{folder} is no model folder: it has no config.json{_what_else(folder, names)}")
    if WEIGHTS in names:
        return
    if INDEX in names:
        _check_shards(folder, names)
        return
    pickled = sorted(name for name in names if name.endswith(PICKLES) and name != "training_args.bin")
    if pickled:
        raise NotAvailable(refuse_pickle(f"{folder} holds its weights as {pickled[0]}", folder))
    raise BadCheckpoint(
        f"{folder} has a config.json and no weights: expected {WEIGHTS}, or {INDEX} and its shards; "
        f"save the model again, or copy the missing file"
    )


def _check_shards(folder: Path, names: set[str]) -> None:
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as problem:
        raise BadCheckpoint(f"{folder / INDEX} cannot be read ({problem}); copy the file again") from problem
    if absent := sorted(shards - names):
        raise BadCheckpoint(
            f"{folder} lacks {len(absent)} of {len(shards)} weight files, {absent[0]} among them; copy them, too"
        )


def _what_else(folder: Path, names: set[str]) -> str:
    """The end of the message: what the folder seems to be, and what to type for it."""
    if "adapter_config.json" in names:
        return "; it is an adapter. Name the base model here, and the adapter where an adapter is asked for"
    if "run.json" in names:
        return f"; it is a run of Budwood. To use it: budwood try {folder}, or budwood merge {folder} --out DIR"
    if files := sorted(name for name in names if name.endswith(".gguf")):
        return f"; to use the GGUF file in it, name the file: {folder / files[0]}"
    models = sorted(path.parent for path in folder.glob("*/config.json"))
    return f"; there is one in {models[0]}" if models else ""


def refuse_pickle(found: str, folder: Path) -> str:
    """Returns the message that refuses pickle weights, with the command that converts them."""
    return (
        f"{found}, which is a pickle: opening one can run any code. Budwood reads safetensors only. If you trust where "
        f"it is from, convert it once:\n    {conversion(folder)}"
    )


def conversion(folder: Path) -> str:
    """Returns the shell command that turns a folder's pickled weights into model.safetensors, without running code."""
    return (
        'python -c "import torch, pathlib; from safetensors.torch import save_file; '
        f"d = pathlib.Path(r'{folder}'); "
        "w = {k: v.clone().contiguous() for f in sorted(d.glob('pytorch_model*.bin')) "
        "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}; "
        f"save_file(w, d / '{WEIGHTS}', metadata={{'format': 'pt'}})\""
    )


def wanted_from_hub(names: Iterable[str]) -> tuple[str, ...]:
    """Returns which files of a repository make up the model: config, tokenizer, code, and one set of safetensors."""
    top = [name for name in names if "/" not in name]
    weights = [name for name in top if name.startswith("model") and name.endswith(".safetensors")]
    if WEIGHTS in weights:
        weights = [WEIGHTS]
    rest = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".md")
    others = [name for name in top if name.endswith(rest) and not name.endswith(".bin.index.json")]
    return tuple(sorted({*weights, *others}))
