"""Adapters that another one stands on: found by name, loaded, frozen, and in force below it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood.core import Method, Plan, Stack, activate, adapters, names
from budwood.errors import BadCheckpoint, BadConfig, NotAvailable
from budwood.interop import describe, load
from budwood.records import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from budwood.anatomy import Anatomy

NOTHING = "none"
"""What one writes to stand on the base alone."""


def find_below(words: Any, *, root: Path = Path("runs")) -> tuple[str, ...]:
    """The adapter folders, absolute, that words mean, the lowest first: paths, names of runs, latest; or "none" alone.

    Raises NotAvailable where there is no such thing, BadConfig for one that nothing can stand on.
    """
    listed = [words] if isinstance(words, str | Path) else words
    if not isinstance(listed, list | tuple) or not all(isinstance(word, str | Path) for word in listed):
        raise BadConfig(f"on is {words!r}; write the folder of a run or an adapter, or a list of them")
    if NOTHING in listed:
        if len(listed) > 1:
            raise BadConfig(f"on is {', '.join(map(str, listed))}: none cannot be said beside others; keep one of them")
        return ()
    folders = [adapter_folder(word, root) for word in listed]
    for place, folder in enumerate(folders):
        _check_below(folder, listed[:place])
    return tuple(str(folder) for folder in folders)


def adapter_folder(word: str | Path, root: Path) -> Path:
    """The folder of the adapter that a path, the name of a run or latest means. Raises NotAvailable or BadConfig."""
    path = Path(word).expanduser()
    if (path / "adapter_config.json").is_file():
        return path.absolute()
    run = RunFolder.open(path if path.is_dir() else word, root=root)
    if not (run.adapter / "adapter_config.json").is_file():
        raise without_adapter(run)
    return run.adapter.absolute()


def without_adapter(run: RunFolder) -> NotAvailable:
    """The error for a run that has no adapter: a shrinking, which makes whole models, or one that is not done."""
    status = run.manifest().status
    if "shrink" not in run.manifest().method:
        return NotAvailable(
            f"{run.path} has no adapter yet (it is {status}); go on with: budwood train --resume {run.path.absolute()}"
        )
    if status != "finished":
        return NotAvailable(
            f"{run.path} is a shrinking, and it is {status}; go on with: budwood shrink --resume {run.path.absolute()}"
        )
    return NotAvailable(
        f"{run.path} is a shrinking, so it has no adapter but a whole model: name the folder {run.path / 'model'} as "
        f"MODEL (train, distill, shrink), or load it with transformers; what it can is in {run.report}"
    )


def trains_in_place(method: Method) -> bool:
    """Whether it trains the base's own weights, so that there is nothing to stack."""
    return type(method).unfreeze is not Method.unfreeze


def check_stackable(method: Method, below: Sequence[str]) -> None:
    """Raise BadConfig for a method that cannot be trained on top of others."""
    if below and trains_in_place(method):
        raise BadConfig(
            f"{method.name} trains the base's own weights, which cannot stand on the adapter {below[0]}; take another "
            f"method, or fold that adapter in first (budwood merge {below[0]} --out DIR) and train DIR"
        )


def lay(
    model: nn.Module,
    folders: Sequence[str],
    *,
    top: str,
    anatomy: Anatomy | None = None,
    allow_pickle: bool = False,
) -> tuple[str, ...]:
    """Load adapters, frozen, and put them in force, each on those before it; returns their names on the model.

    A head that one of them trained and this model does not have is left out: it belongs to the task of that one.
    top           the name that is kept for the adapter above them
    allow_pickle  read pickle files, too, tensors and nothing else
    Raises        what `budwood.load` does, naming the folder
    """
    laid: list[str] = []
    for folder in folders:
        name = _free_name(Path(folder), {top, *adapters(model)})
        try:
            load(model, folder, name=name, anatomy=anatomy, allow_pickle=allow_pickle, without_heads=True)
        except BadCheckpoint as error:
            raise BadCheckpoint(f"{folder}, which the adapter is to stand on: {error}") from error
        laid.append(name)
    if laid:
        activate(model, Stack(tuple(laid)), trainable=())
    return tuple(laid)


def stand(model: nn.Module, below: Sequence[str], name: str) -> Plan:
    """Put `name` in force on top of the adapters `below` (a fusion mixes them), and let it alone be trained."""
    plan = adapters(model)[name].method.plan(name)
    mixed = set(names(plan))
    rest = tuple(other for other in below if other not in mixed)
    plan = Stack((*rest, plan)) if rest else plan
    if below:
        activate(model, plan, trainable=name)
    return plan


def load_on(
    model: nn.Module, folder: str | Path, *, name: str, on: Sequence[str] = (), allow_pickle: bool = False
) -> Plan:
    """Load an adapter with those it stands on, and put all of them in force: the plan that is then in force."""
    below = lay(model, on, top=name, allow_pickle=allow_pickle)
    load(model, folder, name=name, allow_pickle=allow_pickle)
    return stand(model, below, name)


def contents(folders: Sequence[str]) -> str:
    """What tells these adapters from any others: 16 hex digits of what their files hold."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in sorted(Path(folder).iterdir()):
            if file.suffix in (".json", ".safetensors", ".bin"):
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _check_below(folder: Path, before: Sequence[str | Path]) -> None:
    found = describe(folder)
    if found.method is not None and trains_in_place(found.method):
        raise BadConfig(
            f"{folder} ({found.method.name}) trained the base's own weights, so nothing can stand on it; fold it in "
            f"first (budwood merge {folder} --out DIR) and train DIR"
        )
    if len(found.on) > len(before):
        flags = " ".join(f"--on {name}" for name in (*found.on, str(folder)))
        raise BadConfig(f"{folder} was itself trained on others, and only means something on them: write {flags}")


def _free_name(folder: Path, taken: set[str]) -> str:
    """A name for the adapter that says where it comes from."""
    shown = folder.parent if (folder.parent / "run.json").is_file() else folder
    stem = re.sub(r"[^A-Za-z0-9_-]", "-", shown.name).strip("-") or "below"
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (stem, *numbered) if name not in taken)
