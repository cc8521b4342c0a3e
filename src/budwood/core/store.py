"""An adapter on disk: one folder with `adapter_config.json` and `adapter_model.safetensors`, read strictly."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from budwood.errors import BadCheckpoint, BadConfig, NotAvailable

CONFIG, TENSORS, OWN = "adapter_config.json", "adapter_model.safetensors", "budwood"


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
    own = {OWN: json.dumps(folder.own, sort_keys=True)}
    write_files(Path(path), configs={CONFIG: folder.config}, tensors={TENSORS: folder.tensors}, metadata=own)


def write_files(
    path: Path,
    *,
    configs: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write JSON and safetensors files by name, tensors first, each file complete or not at all.

    Raises BadConfig where the folder cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for name, content in tensors.items():
            plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in content.items()}
            _replace(path / name, to_bytes(plain, metadata={"format": "pt", **(metadata or {})}))
        for name, config in configs.items():
            _replace(path / name, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())
    except OSError as error:
        raise BadConfig(
            f"cannot write the adapter to {path}: {error.strerror or error}; choose another folder"
        ) from error


def read_folder(path: Path | str, *, allow_pickle: bool = False) -> Folder:
    """Read both files. Raises NotAvailable where there are none, BadCheckpoint where they are damaged or pickled."""
    path = Path(path)
    config = read_json(path, CONFIG)
    tensors = read_tensors(path, TENSORS, "adapter_model.bin", allow_pickle=allow_pickle)
    return Folder(config, tensors, read_own(path))


def read_json(path: Path, name: str) -> dict[str, Any]:
    """An object from a JSON file of an adapter folder. Raises NotAvailable or BadCheckpoint."""
    if not path.is_dir():
        raise NotAvailable(f"there is no adapter folder {path}; give a folder that holds {CONFIG}")
    if not (path / name).is_file():
        raise NotAvailable(f"{path} has no {name}, so it is no adapter folder; it holds: {_listing(path)}")
    try:
        config = json.loads((path / name).read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BadCheckpoint(f"{path / name} is not readable JSON ({error}); copy or train it again") from error
    if not isinstance(config, dict):
        raise BadCheckpoint(f"{path / name} holds a {type(config).__name__} where an object is expected")
    return config


def read_tensors(path: Path, name: str, pickled: str, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or else, where that is allowed, of a pickle that holds nothing but tensors.

    Raises BadCheckpoint where the file is damaged, cut short, refused, or holds NaN.
    """
    if (path / name).is_file():
        try:
            with safe_open(path / name, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise BadCheckpoint(f"{path / name} is damaged or cut short ({error}); copy or train it again") from error
    elif (path / pickled).is_file():
        name, tensors = pickled, _unpickle(path / pickled, name, allow_pickle=allow_pickle)
    else:
        raise BadCheckpoint(f"{path} has no {name}; it holds: {_listing(path)}")
    broken = next((key for key, t in tensors.items() if t.is_floating_point() and not t.isfinite().all()), None)
    if broken:
        raise BadCheckpoint(f"{path / name}: {broken} holds NaN or infinity; the run that wrote it diverged")
    return tensors


def _unpickle(path: Path, name: str, *, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        convert = f"safetensors.torch.save_file(torch.load({path.name!r}, weights_only=True), {name!r})"
        raise BadCheckpoint(
            f"{path} is a pickle file, which is refused; allow it with --allow-pickle (allow_pickle=True in Python), "
            f"which reads tensors and nothing else, or convert it: {convert}"
        )
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise BadCheckpoint(
            f"{path} is damaged, cut short, or holds more than tensors, so it was not read ({type(error).__name__}); "
            "copy it again, or save tensors by name and nothing else"
        ) from error
    plain = isinstance(tensors, dict) and all(
        isinstance(key, str) and isinstance(t, Tensor) and t.layout == torch.strided for key, t in tensors.items()
    )
    if not plain:
        raise BadCheckpoint(f"{path} does not hold dense tensors by name; save the adapter's own state dictionary")
    return tensors


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configuration and our own record, without the tensors."""
    config = read_json(path, CONFIG)
    return config, read_own(path)


def read_own(path: Path) -> dict[str, Any]:
    """Our own record in the tensors' file; empty where another tool wrote the folder."""
    if not (path / TENSORS).is_file():
        return {}
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
