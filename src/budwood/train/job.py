"""What a person asks to be trained, as a value: the same from Python, a YAML file and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood.core import Method
from budwood.data import TASKS, Cloze, Template
from budwood.data.corpus import Task
from budwood.data.pattern import Verbalizer
from budwood.errors import BadConfig, did_you_mean
from budwood.methods import LoRA, method_from_dict, method_to_dict
from budwood.records import Json
from budwood.train.config import TrainConfig
from budwood.train.pseudo import filling
from budwood.train.stacking import check_stackable, find_below

if TYPE_CHECKING:
    from budwood.train.recipe import Recipe

SAID = (
    *("model", "data", "method", "on", "columns", "template", "task", "pattern", "verbalizer", "offline"),
    "allow_pickle",
)
"""What config.yaml says beside the settings of `TrainConfig`."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, before anything is loaded."""

    model: Any
    """A name (demo-lm, a folder, a hub id, a .gguf file), or a loaded transformers model."""
    data: Any
    """A name (demo-chat, a file, a folder, a hub id), or a `datasets.Dataset`."""
    method: Method = field(default_factory=LoRA)
    """What is trained."""
    on: tuple[str, ...] = ()
    """Runs or adapter folders that it is trained on top of, frozen, the lowest first."""
    config: TrainConfig = field(default_factory=TrainConfig)
    """How."""
    tokenizer: Any = None
    """For a loaded model; named ones bring their own."""
    columns: Mapping[str, str] | None = None
    """Canonical column to the one that holds it, where names do not tell."""
    template: Template = "auto"
    """How conversations are written: chat (the tokenizer's own), plain, or auto."""
    task: Task | None = None
    """One of `budwood.data.TASKS`; None takes what data and model say, cloze where there is a pattern."""
    pattern: str | None = None
    """For cloze, how a row is put to a language model: {text}, <mask> for the word, <p> for a pseudo token."""
    verbalizer: Verbalizer | None = None
    """For cloze, the word or words that name each label."""
    name: str = "default"
    """The adapter's name on the model."""
    out: Path | None = None
    """The run folder; None makes one under `root`."""
    root: Path = Path("runs")
    """Where run folders are made."""
    force: bool = False
    """Replace an earlier run in `out`."""
    offline: bool = False
    """Never ask the network."""
    trust_remote_code: bool = False
    """Run the code that the model's folder brings along."""
    allow_pickle: bool = False
    """Read adapters below it from pickle files, too, tensors and nothing else."""
    command: tuple[str, ...] = ()
    """What was typed, for the record."""
    baseline: Path | None = None
    """Run folder in which the untuned base was examined before, so that it need not be examined again."""
    recipe: Recipe | None = None
    """What is learned beside the data's own targets."""

    def __post_init__(self) -> None:
        """A file or folder is known by its absolute path from here on: the run is used from other folders, too.

        Raises what `find_below` does for `on`, and BadConfig for a method that cannot
        stand on others or a task that there is not.
        """
        for name, value in (("model", self.model), ("data", self.data)):
            if isinstance(value, str | Path) and (path := Path(value).expanduser()).exists():
                object.__setattr__(self, name, str(path.absolute()))
        if self.task is not None and self.task not in TASKS:
            raise BadConfig(f"task is {self.task!r}; {did_you_mean(self.task, TASKS)}")
        if self.task is None and (self.pattern or self.verbalizer):
            object.__setattr__(self, "task", "cloze")
        object.__setattr__(self, "method", filling(self.method, self.cloze))
        object.__setattr__(self, "on", find_below(self.on, root=self.root))
        check_stackable(self.method, self.on)

    @property
    def cloze(self) -> Cloze | None:
        """How a language model is asked for the class; None for other tasks.

        Raises BadConfig for a pattern or verbalizer that is wanting, malformed, or beside another task.
        """
        if self.task == "cloze":
            return Cloze.of(self.pattern, self.verbalizer)
        if self.pattern or self.verbalizer:
            raise BadConfig(f"pattern and verbalizer belong to task cloze, not to {self.task}; leave them or task out")
        return None

    @property
    def model_name(self) -> str:
        """What people are shown."""
        return str(self.model) if isinstance(self.model, str | Path) else f"a {type(self.model).__name__} in memory"

    @property
    def data_name(self) -> str:
        """What people are shown."""
        return str(self.data) if isinstance(self.data, str | Path) else f"a {type(self.data).__name__} in memory"

    def to_dict(self) -> dict[str, Json]:
        """The content of config.yaml: `from_dict` and `--config` read it."""
        return {
            "model": self.model_name,
            "data": self.data_name,
            "method": method_to_dict(self.method),
            "on": list(self.on) or None,
            "columns": dict(self.columns) if self.columns else None,
            "template": self.template,
            "task": self.task,
            "pattern": self.pattern,
            "verbalizer": None if self.cloze is None else self.cloze.to_dict()["verbalizer"],
            "offline": self.offline,
            "allow_pickle": self.allow_pickle,
            **self.config.to_dict(),
            **(self.recipe.to_dict() if self.recipe else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, recipe: Recipe | None = None) -> Job:
        """The job that a config.yaml says, but for what is said of its recipe.

        Raises BadConfig for unknown keys or what is missing.
        """
        if "teacher" in values:
            raise BadConfig(f"this is a distillation ({values['teacher']} teaches); type budwood distill, not train")
        if "shrink" in values:
            raise BadConfig("this is a shrinking; type budwood shrink, not train")
        known = set(SAID)
        settings = {key: value for key, value in values.items() if key not in known}
        said = {key: value for key, value in values.items() if key in known and value is not None}
        for name in ("model", "data"):
            if name not in said:
                raise BadConfig(f"the config does not say which {name}; add a line `{name}: ...`")
        method = method_from_dict(said.pop("method", "lora"))
        return cls(method=method, config=TrainConfig.from_dict(settings), recipe=recipe, **said)


def as_config(config: TrainConfig | Mapping[str, Any] | None, **flags: object) -> TrainConfig:
    """A config with some settings said apart; those that are None were not said."""
    given = {name: value for name, value in flags.items() if value is not None}
    if isinstance(config, TrainConfig):
        plain: dict[str, Any] = config.to_dict()
        unknown = given.keys() - {f.name for f in fields(TrainConfig)}
        if unknown:
            raise BadConfig(f"no setting is called {min(unknown)!r}; {did_you_mean(min(unknown), plain)}")
        return TrainConfig.from_dict({**plain, **given})
    return TrainConfig.from_dict({**(config or {}), **given})
