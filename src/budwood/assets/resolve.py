"""What a user types for MODEL and DATA, turned into something on this disk (or, for data, an id that the hub knows)."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from budwood.assets import hub
from budwood.assets.catalogue import CATALOGUE
from budwood.assets.folder import PICKLES, check_model_folder, refuse_pickle
from budwood.assets.store import get
from budwood.errors import NotAvailable, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable

_say = logging.getLogger(__name__).info

_MODELS = tuple(asset.name for asset in CATALOGUE if asset.kind != "data")
_DATA = tuple(asset.name for asset in CATALOGUE if asset.kind == "data")

DATA_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")
"""Endings of files that are data and no model."""


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A model that lies on this disk."""

    kind: Literal["folder", "hub", "gguf", "demo"]
    """Where the name led: a folder, the hub (fetched by now, or in its cache), a GGUF file, or a demo asset."""
    path: Path
    """The folder, or the .gguf file."""
    name: str
    """What the user typed; what people are shown."""
    revision: str | None = None
    """The commit, for a model of the hub."""

    @property
    def path_or_id(self) -> str:
        """What another program would be given to load the same model: the id for the hub, else an absolute path."""
        return self.name if self.kind == "hub" else str(self.path)


def resolve_model(name: str | Path, *, offline: bool = False, say: Callable[[str], None] = _say) -> ModelRef:
    """Returns the model that a name means: a folder, a .gguf file, a demo name, or an id of the hub ("org/name").

    Something local is never looked for elsewhere: once it is found, the hub is closed for this process.
    offline: use the disk only, the hub's cache included
    say:     called with a line for people before something slow
    Raises   NotAvailable if the name means nothing, or what it means cannot be had (within five seconds, for the hub).
    """
    typed = str(name)
    path = Path(typed).expanduser()
    if path.is_dir():
        check_model_folder(path)
        hub.close()
        return ModelRef(kind="folder", path=path.resolve(), name=typed)
    if path.is_file():
        ref = ModelRef(kind="gguf", path=_check_model_file(path), name=typed)
        hub.close()
        return ref
    if typed in _MODELS:
        hub.close()
        return ModelRef(kind="demo", path=get(typed, offline=hub.is_forbidden(offline), say=say), name=typed)
    if typed in _DATA:
        raise NotAvailable(f"{typed} is data, and a model is asked for here; {_there_are(_MODELS)}")
    if _looks_like_path(typed):
        raise NotAvailable(f"there is no file or folder {typed!r}; {_near(path)}")
    if hub.looks_like_id(typed):
        return _from_hub(typed, offline=offline, say=say)
    raise NotAvailable(
        f"{typed!r} is no folder or file here and no demo model, and a model of the hub is written org/name; "
        f"{_meant(typed, _MODELS)}"
    )


def resolve_data(name: str | Path, *, offline: bool = False, say: Callable[[str], None] = _say) -> Path | str:
    """Returns the file or folder that a name means, or the name itself if it is an id of the hub that answers.

    Raises NotAvailable if the name means nothing, or what it means cannot be had (within five seconds, for the hub).
    """
    typed = str(name)
    path = Path(typed).expanduser()
    if path.exists():
        return path.resolve()
    if typed in _DATA:
        return get(typed, offline=hub.is_forbidden(offline), say=say)
    if typed in _MODELS:
        raise NotAvailable(f"{typed} is a model, and data is asked for here; {_there_are(_DATA)}")
    if _looks_like_path(typed) or typed.endswith(DATA_ENDINGS):
        raise NotAvailable(f"there is no file or folder {typed!r}; {_near(path)}")
    if hub.looks_like_id(typed):
        return _data_from_hub(typed, offline=offline)
    raise NotAvailable(
        f"{typed!r} is no file or folder here and no demo data, and data of the hub is written org/name; "
        f"{_meant(typed, _DATA)}"
    )


def _from_hub(repo: str, *, offline: bool, say: Callable[[str], None]) -> ModelRef:
    cached = hub.cached_model(repo)
    if hub.is_forbidden(offline):
        hub.cut_off()
        if cached is None:
            raise hub.no_answer(repo, "model", "offline")
        return _hub_ref(repo, cached)
    hub.open_for_a_name()
    try:
        listing = hub.ask(repo)
    except NotAvailable as problem:
        if cached is None:
            raise
        say(f"{repo}: taking the copy in the hub's cache ({str(problem).splitlines()[0]})")
        return _hub_ref(repo, cached)
    _check_listing(repo, listing)
    path = hub.download_model(repo, listing, say)
    return _hub_ref(repo, path)


def _hub_ref(repo: str, folder: Path) -> ModelRef:
    check_model_folder(folder)
    return ModelRef(kind="hub", path=folder, name=repo, revision=folder.name)


def _check_listing(repo: str, listing: hub.Listing) -> None:
    """Says no before anything large is fetched."""
    if not any(name.endswith(".safetensors") for name in listing):
        if pickled := [name for name in listing if name.endswith(PICKLES)]:
            fetch = f"hf download {repo} --local-dir FOLDER"
            raise NotAvailable(
                refuse_pickle(f"{repo} has its weights as {pickled[0]} only", Path("FOLDER"))
                + f"\nafter:\n    {fetch}\nthen name FOLDER"
            )
        ggufs = [name for name in listing if name.endswith(".gguf")]
        hint = f"; fetch a GGUF file and name it: hf download {repo} {ggufs[0]} --local-dir ." if ggufs else ""
        raise NotAvailable(f"{repo} has no safetensors weights{hint}")


def _data_from_hub(repo: str, *, offline: bool) -> str:
    if hub.is_forbidden(offline):
        if not hub.cached_dataset(repo):
            raise hub.no_answer(repo, "dataset", "offline")
        hub.cut_off()
        return repo
    hub.open_for_a_name()
    try:
        hub.ask(repo, "dataset")
    except NotAvailable:
        if not hub.cached_dataset(repo):
            raise
        hub.cut_off()
    return repo


def _check_model_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path.resolve()
    if path.suffix in PICKLES:
        raise NotAvailable(refuse_pickle(str(path), path.parent))
    if path.suffix == ".safetensors":
        raise NotAvailable(f"{path} holds weights alone; name the folder that has them and config.json: {path.parent}")
    said = "it looks like data" if path.suffix in DATA_ENDINGS else "it is none of them"
    raise NotAvailable(
        f"{path} is a file, and a model is a folder, a .gguf file, an id of the hub or a demo name; {said}"
    )


def _there_are(names: tuple[str, ...]) -> str:
    return "of the demo assets there are: " + ", ".join(names)


def _looks_like_path(typed: str) -> bool:
    separators = {"/", os.sep}
    starts = ("~", ".", *separators)
    return typed.startswith(starts) or typed.count("/") > 1 or "\\" in typed or typed.endswith((".gguf", "/"))


def _near(path: Path) -> str:
    """The end of the message about a path that is not there: the nearest name in the nearest folder that is."""
    parent = path.parent
    if not parent.is_dir():
        return f"nor is there a folder {parent}"
    near = get_close_matches(path.name, _beside(parent))
    return did_you_mean(path.name, near) if near else f"nothing in {parent.resolve()} has a name like it"


def _meant(typed: str, demo_names: tuple[str, ...]) -> str:
    """The end of the message about a word: the nearest demo name or file here, else all demo names."""
    return did_you_mean(typed, [*demo_names, *get_close_matches(typed, _beside(Path()))])


def _beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
