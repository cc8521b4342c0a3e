"""An adapter on disk: one folder with `adapter_config.json` and `adapter_model.safetensors`, read strictly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from budwood.errors import BadCheckpoint, BadConfig, NotAvailable

CONFIG, TENSORS, OWN = "adapter_config.json", "adapter_model.safetensors", "budwood"
_PICKLES = ("adapter_model.bin", "pytorch_adapter.bin", "pytorch_model.bin")


@dataclass(frozen=True)
class Folder:
    """What an adapter folder holds: other tools' configuration, tensors by name, and our own record (may be empty)."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    own: dict[str, Any] = field(default_factory=dict)


def write_folder(path: Path | str, folder: Folder) -> None:
    """Write both files, each complete or not at all; other files in the folder stay.

    Raises BadConfig where the folder cannot be written.
    """
    path = Path(path)
    metadata = {"format": "pt", OWN: json.dumps(folder.own, sort_keys=True)}
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in folder.tensors.items()}
    try:
        path.mkdir(parents=True, exist_ok=True)
        _replace(path / TENSORS, to_bytes(tensors, metadata=metadata))
        _replace(path / CONFIG, (json.dumps(folder.config, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise BadConfig(
            f"cannot write the adapter to {path}: {error.strerror or error}; choose another folder"
        ) from error


def read_folder(path: Path | str) -> Folder:
    """Read both files. Raises NotAvailable where there are none, BadCheckpoint where they are damaged or pickled."""
    path = Path(path)
    config, own = read_config(path)
    try:
        with safe_open(path / TENSORS, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{path / TENSORS} is damaged or cut short ({error}); copy or train it again") from error
    broken = next(
        (name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()), None
    )
    if broken:
        raise BadCheckpoint(f"{path / TENSORS}: {broken} holds NaN or infinity; the run that wrote it diverged")
    return Folder(config, tensors, own)


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and our own record, without the tensors."""
    if not path.is_dir():
        raise NotAvailable(f"there is no adapter folder {path}; give a folder that holds {CONFIG}")
    if not (path / CONFIG).is_file():
        raise NotAvailable(f"{path} has no {CONFIG}, so it is no adapter folder; it holds: {_listing(path)}")
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadCheckpoint(f"{path / CONFIG} is not readable JSON ({error}); copy or train it again") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{path / CONFIG} holds a {type(config).__name__} where an object is expected")
    return config, _own(path)


def _own(path: Path) -> dict[str, Any]:
    if not (path / TENSORS).is_file():
        pickled = next((name for name in _PICKLES if (path / name).is_file()), None)
        if pickled:
            convert = f"safetensors.torch.save_file(torch.load({pickled!r}, weights_only=True), {TENSORS!r})"
            raise BadCheckpoint(
                f"{path / pickled} is a pickle file, which can run code when read, so it is refused; convert it where "
                f"you trust it: {convert}"
            )
        raise BadCheckpoint(f"{path} has no {TENSORS}; it holds: {_listing(path)}")
    try:
        with safe_open(path / TENSORS, framework="pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        own = json.loads(metadata.get(OWN, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{path / TENSORS} is damaged or cut short ({error}); copy or train it again") from error
    return own if isinstance(own, dict) else {}


def _replace(path: Path, content: bytes) -> None:
    """Write beside, flush, and move into place."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _listing(path: Path) -> str:
    return ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
