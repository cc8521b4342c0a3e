"""Saving where a run stands, and going on from there as if it had never stopped.

state/state.json              position, step, seconds, plain random state, and the name and sha256 of the tensors
state/tensors-000120-1f0c3a9b.safetensors   trained parameters, optimizer state, generator states

The JSON file is replaced last, in one step, and points at tensors that are complete by then, so that a crash at any
moment leaves the state before or the state after. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from budwood.data import Position
from budwood.errors import BadCheckpoint, BadConfig
from budwood.records.files import not_writable, read_json, write_json
from budwood.train.randomness import RandomState, random_state, restore_random_state
from budwood.train.setup import Prepared

STATE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a run is: everything but tensors and random generators."""

    step: int = 0
    """Optimizer steps taken."""
    position: Position = Position()  # noqa: RUF009
    """The step of the data that comes next."""
    seconds: float = 0.0
    """Spent inside steps."""
    pieces: int = 1
    """Pieces a step is computed in, as running out of memory left it."""
    tokens: int = 0
    """Prompt and learned tokens seen."""
    learned_tokens: int = 0
    """Tokens that carried loss."""


def save_state(folder: Path, prepared: Prepared, standing: Standing, *, identity: Mapping[str, str]) -> None:
    """Write the run's state to `folder`, replacing the one there in one step.

    identity  what a resumed run must have in common with this one (the method, the data, ...)
    Raises    BadConfig if the folder cannot be written; the state that was there is kept then
    """
    random = random_state()
    tensors = {f"parameter/{name}": p.detach() for name, p in prepared.optimized.items()}
    tensors |= _optimizer_tensors(prepared)
    tensors |= {f"random/{name}": tensor for name, tensor in random.tensors.items()}
    draft = folder / "tensors.draft"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, draft)
        draft.chmod(0o644)
        digest = _sha256(draft)
        file = folder / f"tensors-{standing.step:06d}-{digest[:8]}.safetensors"
        draft.replace(file)
    except (OSError, SafetensorError) as error:
        if draft.exists():
            draft.unlink()
        raise not_writable(draft, error if isinstance(error, OSError) else OSError(str(error))) from error
    plain = {"version": STATE_VERSION, **asdict(standing), "random": dict(random.plain)}
    plain |= {"tensors": file.name, "sha256": digest, "identity": dict(identity)}
    write_json(folder / "state.json", plain)
    for old in folder.glob("tensors-*"):
        if old != file:
            old.unlink(missing_ok=True)


def load_state(folder: Path, prepared: Prepared, *, identity: Mapping[str, str]) -> Standing:
    """Put a saved state into a freshly prepared model and into the random generators; returns where it stood.

    Everything is read and checked before anything is changed.
    Raises  BadCheckpoint for a state that is missing, damaged, incomplete or of another model or method;
            BadConfig if `identity` is not the saved one, naming what changed
    """
    plain = _read_plain(folder)
    _check_identity(folder, plain["identity"], identity)
    tensors = _read_tensors(folder / plain["tensors"], plain["sha256"])
    _check_names(folder, tensors, prepared)
    with torch.no_grad():
        for name, parameter in prepared.optimized.items():
            parameter.copy_(tensors[f"parameter/{name}"])
    _restore_optimizer(prepared, tensors)
    restore_random_state(RandomState(_under("random", tensors), plain["random"]))
    values = {name: plain[name] for name in Standing.__dataclass_fields__}
    return Standing(**{**values, "position": Position(**plain["position"])})


def has_state(folder: Path) -> bool:
    """Whether a state was saved here."""
    return (folder / "state.json").is_file()


def has_begun(folder: Path) -> bool:
    """Whether the state saved here is that of a run that took a step."""
    return bool(_read_plain(folder)["step"])


def _optimizer_tensors(prepared: Prepared) -> dict[str, Tensor]:
    """The optimizer's state by what it is and whose: `exp_avg/<parameter>`."""
    return {
        f"optimizer/{key}/{name}": value.detach()
        for name, parameter in prepared.optimized.items()
        for key, value in prepared.optimizer.state.get(parameter, {}).items()
    }


def _restore_optimizer(prepared: Prepared, tensors: Mapping[str, Tensor]) -> None:
    prepared.optimizer.state.clear()
    for name, tensor in _under("optimizer", tensors).items():
        key, _, owner = name.partition("/")
        parameter = prepared.optimized[owner]
        prepared.optimizer.state[parameter][key] = tensor.to(parameter.device)


def _under(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one kind, without its name in front."""
    prefix = f"{kind}/"
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _read_plain(folder: Path) -> dict[str, Any]:
    """state.json, with every field of the version we write."""
    if not has_state(folder):
        raise BadCheckpoint(f"{folder} holds no saved state (state.json); start the run again without --resume")
    plain = read_json(folder / "state.json")
    if plain.get("version") != STATE_VERSION:
        raise BadCheckpoint(
            f"{folder / 'state.json'} has version {plain.get('version')!r}; this Budwood reads {STATE_VERSION}: "
            "resume with the Budwood that wrote it, or start again"
        )
    wanted = {*Standing.__dataclass_fields__, "random", "tensors", "sha256", "identity"}
    missing = sorted(wanted - plain.keys())
    if missing:
        raise BadCheckpoint(f"{folder / 'state.json'} lacks {', '.join(missing)}; start the run again")
    return plain


def _read_tensors(file: Path, sha256: str) -> dict[str, Tensor]:
    damaged = f"{file} is damaged or incomplete; its run cannot be resumed, start it again"
    if not file.is_file():
        raise BadCheckpoint(f"{file} is missing; its run cannot be resumed, start it again")
    if _sha256(file) != sha256:
        raise BadCheckpoint(damaged)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{damaged} ({error})") from error


def _check_identity(folder: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    changed = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if changed:
        what = "; ".join(f"{key} was {saved.get(key)}, now {now.get(key)}" for key in changed)
        raise BadConfig(f"the run of {folder} cannot go on with something else: {what}. Start a new run")


def _check_names(folder: Path, tensors: Mapping[str, Tensor], prepared: Prepared) -> None:
    """Raise BadCheckpoint unless the saved parameters are exactly the model's, in name and shape."""
    saved = {name: tuple(t.shape) for name, t in _under("parameter", tensors).items()}
    there = {name: tuple(p.shape) for name, p in prepared.optimized.items()}
    if saved != there:
        odd = sorted(name for name in {*saved, *there} if saved.get(name) != there.get(name))
        raise BadCheckpoint(
            f"{folder} was saved from another model or method: {odd[0]} is {saved.get(odd[0], 'absent')} in the state "
            f"and {there.get(odd[0], 'absent')} in the model"
        )
    strangers = {name.partition("/")[2] for name in _under("optimizer", tensors)} - there.keys()
    if strangers:
        raise BadCheckpoint(f"{folder} holds optimizer state of {min(strangers)}, which the model does not have")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
