"""What `eval`, `try`, `merge` and `export` are about: a run or an adapter folder, with its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood.cli.layers import columns_of, text_of, words_of
from budwood.cli.output import Sink
from budwood.errors import BadCheckpoint, BadConfig, NotAvailable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budwood.assets import ModelRef
    from budwood.core import Plan
    from budwood.data import Cloze, Corpus, Task
    from budwood.interop import Description
    from budwood.records import RunFolder

NAME = "trained"
"""What the adapter is called while it is attached here."""
PREFERENCE = ("test", "validation", "train")
"""Which split is used where none is named: the first there is."""


@dataclass(frozen=True)
class Subject:
    """An adapter on disk, and everything needed to put it on its base."""

    folder: Path
    """Where the adapter is."""
    run: RunFolder | None
    """The run it came from, None for a bare adapter folder."""
    base: str
    """The base model, as one would type it."""
    task: Task
    """What it is used for."""
    labels: tuple[str, ...] | None
    """Classes in the order of the head."""
    settings: Mapping[str, object]
    """What was asked for, over what the run was trained with."""
    sink: Sink
    on: tuple[str, ...] = ()
    """Folders of the adapters that it stands on here, the lowest first."""
    cloze: Cloze | None = None
    """For the task cloze, how it asks for the class."""

    @property
    def shown(self) -> str:
        """How it is called in messages."""
        return str(self.run.path if self.run else self.folder)

    @property
    def in_force(self) -> str:
        """How it is called, with what it stands on."""
        return self.shown + "".join(f", on {folder}" for folder in reversed(self.on))

    @property
    def device(self) -> torch.device:
        """Where to compute. Raises BadConfig for a device that is not there."""
        from budwood.train.precision import resolve_device

        return resolve_device(text_of(self.settings, "device") or "auto")

    @property
    def compute(self) -> torch.dtype:
        """The precision of products."""
        from budwood.train.precision import resolve_precision

        return resolve_precision(text_of(self.settings, "precision") or "auto", self.device)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Forwards inside use the precision asked for."""
        from budwood.train.precision import arithmetic

        with arithmetic(self.device, self.compute):
            yield

    def find_base(self) -> ModelRef:
        """The base on this disk."""
        from budwood.assets import resolve_model

        return resolve_model(self.base, offline=bool(self.settings.get("offline")), say=self.sink.say)

    def load_base(self, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The base alone, on the device; dtype None is float32 for exact arithmetic, else what is stored."""
        import torch

        from budwood.assets import load_model
        from budwood.train.randomness import seed_everything

        if dtype is None and self.compute == torch.float32:
            dtype = torch.float32
        seed_everything(whole(self.settings, "seed", 0))
        model = load_model(
            self.find_base(),
            task=self.task,
            labels=self.labels,
            dtype=dtype,
            trust_remote_code=self._trusts,
        )
        return model.to(self.device)

    def load(self, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The base with the adapter on it, called NAME, and those it stands on below.

        Raises BadCheckpoint for a wrong base or damaged files.
        """
        model = self.load_base(dtype=dtype)
        self.put_on(model, NAME)
        return model

    def put_on(self, model: PreTrainedModel, name: str) -> Plan:
        """Load the adapter, and those it stands on below, onto a model: the plan that it acts by."""
        from budwood.train.stacking import load_on

        return load_on(model, self.folder, name=name, on=self.on, allow_pickle=bool(self.settings.get("allow_pickle")))

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer."""
        from budwood.assets import load_tokenizer

        return load_tokenizer(self.find_base(), trust_remote_code=self._trusts)

    def read(self, source: str | None) -> Corpus:
        """Data to use it on: `source`, or what the run was trained with, divided as the run divided it.

        Raises BadConfig where there is neither.
        """
        from dataclasses import replace

        from budwood.assets import resolve_data
        from budwood.data import read, with_cloze, with_validation

        name = source or (self.run.manifest().data if self.run else None)
        if name is None:
            raise BadConfig(f"{self.shown} is a bare adapter; name the data, too: a file, a folder or a demo name")
        path = Path(name).expanduser()
        name = str(path.absolute()) if path.exists() else name  # as the run recorded it
        place = resolve_data(name, offline=bool(self.settings.get("offline")), say=self.sink.say)
        columns = columns_of(self.settings.get("columns"))
        corpus = replace(read(place, columns=columns, task=self.task, labels=self.labels), origin=name)
        if self.cloze is not None:
            corpus = with_cloze(corpus, self.cloze)
        if self.run is not None and name == self.run.manifest().data:
            return with_validation(corpus, seed=self.run.manifest().seed)  # as the run divided it
        return corpus

    @property
    def _trusts(self) -> bool:
        return bool(self.settings.get("trust_remote_code"))


@dataclass
class Pair:
    """The trained model and its base, in one model where the method can be switched off, else in two."""

    subject: Subject
    trained: PreTrainedModel
    other: PreTrainedModel | None = None
    plans: tuple[Plan, ...] = ()
    """How the adapter acts, and each of those that were loaded beside it."""

    @classmethod
    def load(cls, subject: Subject, beside: Sequence[Subject] = ()) -> Pair:
        """Both, on the device.

        beside: others of the same base and task to load as well; none of them may train the base in place
        """
        from budwood.core import adapters

        trained = subject.load_base()
        names = (NAME, *(f"{NAME}-{number}" for number in range(2, len(beside) + 2)))
        plans = tuple(one.put_on(trained, name) for one, name in zip((subject, *beside), names, strict=True))
        in_place = bool(adapters(trained)[NAME].unfrozen)
        return cls(subject, trained, subject.load_base() if in_place else None, plans)

    @contextmanager
    def base(self) -> Iterator[PreTrainedModel]:
        """The base, while inside."""
        from budwood.core import using

        if self.other is not None:
            yield self.other
        else:
            with using(self.trained, None):
                yield self.trained


def open_subject(where: str, settings: Mapping[str, object], sink: Sink, *, model: str | None = None) -> Subject:
    """The run or the adapter folder that a word means: a path, a run's name, the start of one, or latest.

    model: the base to use instead of the one it names
    Raises NotAvailable if there is no such thing, BadConfig where nothing says what its base is.
    """
    from budwood.interop import describe, holds_adapter
    from budwood.records import RunFolder
    from budwood.train.stacking import without_adapter

    path = Path(where).expanduser()
    if holds_adapter(path) and not (path / "run.json").is_file():
        parent = path.parent
        if not (parent / "run.json").is_file():
            return _of_adapter(path, settings, sink, model)
        path = parent
    run = RunFolder.open(path if path.is_dir() else where)
    manifest = run.manifest()
    if not (run.adapter / "adapter_config.json").is_file():
        raise without_adapter(run)
    found = describe(run.adapter)
    task = _task(manifest.task, run.path)
    return Subject(
        run.adapter, run, model or manifest.model, task, found.labels, _over(settings, run.config()), sink,
        on=_below(found, settings, str(run.path)), cloze=_cloze(found, run.path),
    )  # fmt: skip


def check_alike(subject: Subject, others: Sequence[Subject]) -> None:
    """Raise BadConfig for others that do not answer what this one does: another base, task, classes or cloze."""
    for other in others:
        for what, ours, theirs in (
            ("base", str(subject.find_base().path), str(other.find_base().path)),
            ("task", subject.task, other.task),
            ("classes", subject.labels, other.labels),
            ("cloze", subject.cloze, other.cloze),
        ):
            if ours != theirs:
                raise BadConfig(
                    f"{other.shown} has another {what} than {subject.shown}: {_listed(theirs)}, not {_listed(ours)}; "
                    "only runs of one base, task and classes answer together: leave it out of --with"
                )


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _of_adapter(path: Path, settings: Mapping[str, object], sink: Sink, model: str | None) -> Subject:
    from budwood.interop import describe

    found = describe(path)
    base = model or found.base
    if not base:
        raise BadConfig(f"{path} does not say which base it is for; name it with --model")
    task = _task(found.task or ("classification" if found.labels else "causal-lm"), path)
    return Subject(
        path, None, base, task, found.labels, settings, sink,
        on=_below(found, settings, str(path)), cloze=_cloze(found, path),
    )  # fmt: skip


def _cloze(found: Description, where: Path) -> Cloze | None:
    """The pattern and verbalizer of a cloze. Raises BadCheckpoint where they are not what was written."""
    from budwood.data import Cloze

    if found.cloze is None:
        return None
    try:
        return Cloze.from_dict(found.cloze)
    except BadConfig as error:
        raise BadCheckpoint(f"{where}: {error}") from error


def _task(word: str, where: Path) -> Task:
    """The task of that name. Raises BadCheckpoint for one that this Budwood does not know."""
    from budwood.data import TASKS

    for task in TASKS:
        if task == word:
            return task
    raise BadCheckpoint(f"{where} is for {word}, which this Budwood cannot do; use the one that wrote it")


def _below(found: Description, settings: Mapping[str, object], shown: str) -> tuple[str, ...]:
    """The adapters it stands on: those asked for, else those it was trained on.

    Raises NotAvailable or BadConfig for what is not there or cannot stand below.
    """
    from budwood.train.stacking import find_below

    asked = words_of(settings.get("on"), "on")
    if asked:
        return find_below(asked)
    if found.kind == "ADAPTERHUB_FUSION":
        raise BadConfig(f"{shown} mixes adapters that are not in it; name their folders in its order, each with --on")
    gone = [folder for folder in found.on if not (Path(folder) / "adapter_config.json").is_file()]
    if gone:
        raise NotAvailable(
            f"{shown} was trained on top of {gone[0]}, which is not there any more; "
            "say where it is with --on FOLDER, or do without it with --on none"
        )
    return found.on


def _over(settings: Mapping[str, object], trained_with: Mapping[str, Any]) -> dict[str, object]:
    """What was asked for, over those of the run's settings that say how rows are read."""
    kept = ("columns", "template", "max_length", "seed", "trust_remote_code", "allow_pickle")
    found: dict[str, object] = {key: trained_with[key] for key in kept if trained_with.get(key) is not None}
    return {**found, **settings}


def asked_below(on: tuple[str, ...]) -> dict[str, object]:
    """The flag --on as a setting; nothing where it was not typed."""
    return {"on": on} if on else {}


def whole(settings: Mapping[str, object], key: str, default: int) -> int:
    """A setting that must be a whole number. Raises BadConfig."""
    value = settings.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadConfig(f"{key} is {value!r}; it must be a whole number")
    return value
