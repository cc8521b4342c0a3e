"""Who a teacher's name means: a run, an adapter folder, a model by name, or a model in memory; ready to be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, discover
from budwood.assets import ModelRef, load_model, load_tokenizer, resolve_model, stored_labels
from budwood.assets.catalogue import DEMO_NAMES
from budwood.core import adapters, merge
from budwood.core.fingerprint import fingerprint
from budwood.core.registry import anatomy_of, registry_of
from budwood.data import Task
from budwood.distill.matching import CLASSES, class_order
from budwood.errors import BadConfig, CannotFold, NotAvailable
from budwood.interop import describe
from budwood.records import RunFolder
from budwood.train.heads import new_modules
from budwood.train.randomness import same_randomness, seed_everything
from budwood.train.stacking import adapter_folder, contents, load_on, trains_in_place

NAME = "teacher"
"""What the adapter of a teacher is called while it is attached."""
LANGUAGE = {"causal-lm", "masked-lm", "cloze"}
"""Tasks that are done with the language model's own head."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A teacher by name, before anything is loaded."""

    shown: str
    """What people are shown."""
    base: str | Path
    """The model that it is, or that its adapter is for."""
    adapter: Path | None = None
    """The folder of its adapter."""
    on: tuple[str, ...] = ()
    """Folders of the adapters that this one stands on, the lowest first."""
    is_in_place: bool = False
    """Whether that adapter is the base's own weights."""
    labels: tuple[str, ...] | None = None
    """The classes it was trained for, in its order."""
    task: str | None = None
    """What it was trained for, if that is known."""

    def find(self, *, offline: bool = False) -> ModelRef:
        """The base on this disk."""
        return resolve_model(self.base, offline=offline)


def named(where: str | Path, *, root: Path = Path("runs")) -> Named:
    """What a word means: a path, a model's name, a run's name in `root`, or latest.

    Raises NotAvailable for a run without an adapter, BadConfig for an adapter that does not name its base.
    """
    path = Path(where).expanduser()
    if (path / "run.json").is_file() or (path / "adapter_config.json").is_file():
        return _with_adapter(adapter_folder(path, root))
    if not path.exists() and str(where) not in DEMO_NAMES:
        try:
            return _with_adapter(adapter_folder(where, root))
        except NotAvailable:  # no run of that name: a model's, then, and its own errors say more
            return Named(shown=str(where), base=where)
    return Named(shown=str(where), base=where)


def load_named(
    teacher: Named,
    *,
    task: Task,
    labels: Sequence[str] | None,
    offline: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """(the model in float32, its adapters folded in where they can be; its tokenizer).

    labels: classes of the data, in the student's order; the model keeps its own order
    Raises BadConfig for a teacher that was never trained for the task or knows other classes.
    """
    check_task(teacher, task)
    ref = teacher.find(offline=offline)
    if labels is not None and task in CLASSES:
        own = teacher.labels
        if teacher.adapter is None:
            own = stored_labels(ref, trust_remote_code=trust_remote_code)
        if own is not None:
            class_order(own, labels, teacher.shown)
            labels = own

    def load(seed: int) -> PreTrainedModel:
        with same_randomness():
            seed_everything(seed)
            return load_model(ref, task=task, labels=labels, dtype=torch.float32, trust_remote_code=trust_remote_code)

    model = load(0)
    if teacher.adapter is not None:
        load_on(model, teacher.adapter, name=NAME, on=teacher.on, allow_pickle=allow_pickle)
        fold(model)
    elif task != "causal-lm":
        refuse_new(model, load(1), teacher.shown, task)
    return model, load_tokenizer(ref, trust_remote_code=trust_remote_code)


def check_task(teacher: Named, task: Task) -> None:
    """Raise BadConfig for a teacher that was trained for something else."""
    if teacher.task is None or teacher.task == task or {teacher.task, task} <= LANGUAGE:
        return
    raise BadConfig(
        f"{teacher.shown} was trained for {teacher.task}, and the student is to learn {task}; take a teacher of the "
        f"same task, or read the data with --task {teacher.task}"
    )


def known_anatomy(model: PreTrainedModel) -> Anatomy:
    """The anatomy of a model, with adapters on it or without."""
    return discover(model) if registry_of(model) is None else anatomy_of(model)


def fold(model: PreTrainedModel) -> None:
    """Fold the adapters in, from the lowest to the top; those that cannot be, and what is above, act as they are."""
    for name in list(adapters(model)):
        try:
            merge(model, name)
        except CannotFold:
            return


def refuse_new(model: PreTrainedModel, other: PreTrainedModel, shown: str, task: str) -> None:
    """Raise BadConfig where parts of a teacher are drawn at random: it would teach noise."""
    new = [path for path in new_modules(model, other) if "pooler" not in path or task == "classification"]
    if new:
        raise BadConfig(
            f"{shown} was never trained for {task}: {', '.join(new)} is new, so it would teach noise. Train it first "
            f"(budwood train {shown} DATA --out TEACHER), then name that run as the teacher"
        )


def identity_of(model: PreTrainedModel, teacher: Named | None) -> str:
    """What tells this teacher from others: of its weights, and of its adapter's files."""
    parts = [repr(sorted(fingerprint(model, known_anatomy(model)).items()))]
    if teacher is not None and teacher.adapter is not None:
        parts.append(contents((*teacher.on, str(teacher.adapter))))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _with_adapter(folder: Path) -> Named:
    found = describe(folder)
    run = folder.parent if (folder.parent / "run.json").is_file() else None
    base = RunFolder(run).manifest().model if run else found.base
    if not base:
        raise BadConfig(
            f"{folder} does not say which base it is for; fold it in first: budwood merge {folder} --out DIR"
        )
    return Named(
        shown=str(run or folder),
        base=base,
        adapter=folder,
        on=tuple(found.on),
        is_in_place=found.method is not None and trains_in_place(found.method),
        labels=found.labels,
        task=found.task,
    )
