"""Settings in layers: flags over BUDWOOD_* over a YAML file over the method's own defaults, all with the same names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.core import Method

PREFIX = "BUDWOOD_"
BESIDE = (
    *("model", "data", "method", "on", "out", "columns", "template", "task", "pattern", "verbalizer", "offline"),
    *("trust_remote_code", "allow_pickle", "version"),
)
"""Keys that may stand in a file beside those of TrainConfig."""
NAMES = {
    "model_name_or_path": "model",
    "base_model": "model",
    "checkpoint_dir": "model",
    "dataset": "data",
    "dataset_name": "data",
    "output_dir": "out",
    "chat_template": "template",
}
"""Other tools' names for those keys."""
ELSEWHERE = ("CACHE", "WHEELS", "HUB")
"""Variables that are read where they are used."""
TEXT = (
    *("model", "data", "method", "out", "template", "task", "pattern", "verbalizer"),
    *("budget", "device", "precision", "schedule"),
)
"""Keys whose value in the environment is taken as it is, not read as a number or a list."""

Settings = dict[str, object]


def layered(
    flags: Mapping[str, object],
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    *,
    also: Sequence[str] = (),
) -> Settings:
    """What was asked for, each setting from the highest layer that has it, under our names.

    flags: those that were typed, by name
    file:  the YAML file of --config, or that of BUDWOOD_CONFIG
    also:  keys of this verb alone
    Raises BadConfig for unknown keys in any layer, with the nearest name, and for a file that cannot be read.
    """
    env = os.environ if environment is None else environment
    if file is None and env.get(f"{PREFIX}CONFIG"):
        file = Path(env[f"{PREFIX}CONFIG"])
    below = _named(read_yaml(file), str(file), also) if file is not None else {}
    return {**below, **_from_environment(env, also), **_named(flags, "flags", also)}


def read_yaml(path: Path) -> dict[str, object]:
    """The mapping in a YAML file. Raises BadConfig, naming the line that is no YAML."""
    import yaml

    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadConfig(f"config file {path} cannot be read: {reason}; give a YAML file with --config") from error
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise BadConfig(f"{path} is not YAML: {where}; write one `key: value` a line") from error
    if found is None:
        return {}
    if isinstance(found, dict) and True in found:  # YAML 1.1 takes a bare `on` for true
        found = {"on" if key is True else key: value for key, value in found.items()}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise BadConfig(f"{path} holds {type(found).__name__}; write one `key: value` a line, as `budget: 10m`")
    return {str(key): value for key, value in found.items()}


def _from_environment(env: Mapping[str, str], also: Sequence[str]) -> Settings:
    """BUDWOOD_BATCH=4 is `batch: 4`; empty variables count as unset."""
    import yaml

    found: dict[str, object] = {}
    for variable in sorted(env):
        word = variable.removeprefix(PREFIX)
        if word == variable or word in (*ELSEWHERE, "CONFIG") or not env[variable]:
            continue
        key, text = word.lower(), env[variable]
        found[key] = text if key in TEXT else yaml.safe_load(text)
    return _named(found, "the environment (BUDWOOD_*)", also)


def _named(values: Mapping[str, object], where: str, also: Sequence[str]) -> Settings:
    """The settings under our names. The source is said in front of every error."""
    from budwood.train.config import canonical

    renamed: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        name = NAMES.get(name, name)
        if name in renamed:
            raise BadConfig(f"{where}: {key!r} says {name} a second time; keep one of them")
        renamed[name] = value
    try:
        return canonical(renamed, extra=(*BESIDE, *also))
    except BadConfig as error:
        raise BadConfig(f"{where}: {error}") from error


def split(settings: Settings, beside: Sequence[str] = BESIDE) -> tuple[Settings, Settings]:
    """(the settings of other names, those of the names `beside`): by default what TrainConfig takes, and the rest."""
    found = {key: value for key, value in settings.items() if key in beside}
    return {key: value for key, value in settings.items() if key not in beside}, found


def text_of(settings: Mapping[str, object], key: str) -> str | None:
    """A setting that must be text. Raises BadConfig."""
    value = settings.get(key)
    if value is not None and not isinstance(value, (str, Path)):
        raise BadConfig(f"{key} is {value!r}; it must be text")
    return None if value is None else str(value)


def require(settings: Mapping[str, object], key: str, usage: str) -> str:
    """A setting that has to be there. Raises BadConfig with the usage."""
    value = text_of(settings, key)
    if not value:
        raise BadConfig(f"no {key} was given; type {usage}, or write {key}: in the file of --config")
    return value


def columns_of(value: object) -> dict[str, str] | None:
    """`prompt=q,completion=a` or a mapping, as a mapping."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): str(item) for key, item in value.items()}
    from budwood.data import parse_columns

    return dict(parse_columns(str(value)))


def words_of(value: object, key: str) -> tuple[str, ...]:
    """A setting that is one word or a list of them. Raises BadConfig."""
    listed = [value] if isinstance(value, (str, Path)) else value or []
    if not isinstance(listed, (list, tuple)) or not all(isinstance(word, (str, Path)) for word in listed):
        raise BadConfig(f"{key} is {value!r}; write a word or a list of words")
    return tuple(str(word) for word in listed)


def method_of(value: object) -> Method:
    """The Method that a flag, a variable or a file says; LoRA with its defaults where nothing is said."""
    from budwood.methods import method_from_dict

    if value is None:
        return method_from_dict("lora")
    if not isinstance(value, (str, Mapping)):
        raise BadConfig(f"method is {value!r}; write a name, or its fields as method: {{lora: {{rank: 16}}}}")
    return method_from_dict(value)
