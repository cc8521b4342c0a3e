"""The one place that speaks to the model hub: a bounded question first, then a download, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from budwood.assets.folder import wanted_from_hub
from budwood.errors import NotAvailable

if TYPE_CHECKING:
    from collections.abc import Callable

Kind = Literal["model", "dataset"]

_ANSWER_S = 3.0
_YES = ("1", "true", "yes", "on")
_MARK = "BUDWOOD_HUB"
"""Environment variable with what this process (and its children) decided: "closed" by us, or "open" for a name."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


Listing = dict[str, int]
"""The files of a repository: size in bytes by name; 0 where the hub does not say."""


def looks_like_id(name: str) -> bool:
    """True for "org/name"."""
    return _ID.fullmatch(name) is not None


def is_forbidden(asked: bool) -> bool:
    """True where the network must not be used: asked for, or by HF_HUB_OFFLINE or BUDWOOD_OFFLINE of the user."""
    said = os.environ.get("HF_HUB_OFFLINE", "").lower() in _YES and os.environ.get(_MARK) != "closed"
    return asked or said or os.environ.get("BUDWOOD_OFFLINE", "").lower() in _YES


def close() -> None:
    """From here on nothing in this process asks the hub, unless a remote name was or will be given."""
    if os.environ.get(_MARK) != "open":
        if os.environ.get("HF_HUB_OFFLINE", "").lower() not in _YES:
            os.environ[_MARK] = "closed"
        _set_offline(True)


def open_for_a_name() -> None:
    """The user named something remote: takes back what `close` did, and keeps it so."""
    os.environ[_MARK] = "open"
    _set_offline(False)


def cut_off() -> None:
    """The hub does not answer: whatever is cached is used without asking again."""
    _set_offline(True)


def _set_offline(offline: bool) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1" if offline else "0"
    # the hub's client, and datasets through it, read the variable once, when they are imported
    if "huggingface_hub" in sys.modules:
        from huggingface_hub import constants

        constants.HF_HUB_OFFLINE = offline


def ask(repo: str, kind: Kind = "model") -> Listing:
    """Returns what the hub has under this id, after at most three seconds or so.

    Raises NotAvailable if there is no answer, no such repository, or no permission.
    """
    from huggingface_hub import HfApi

    found: list[Listing | Exception] = []

    def question() -> None:
        try:
            api = HfApi()
            asked = api.model_info if kind == "model" else api.dataset_info
            info = asked(repo, timeout=_ANSWER_S, files_metadata=True)
            found.append({file.rfilename: file.size or 0 for file in info.siblings or ()})
        except Exception as problem:  # handed over to the asking thread
            found.append(problem)

    thread = threading.Thread(target=question, daemon=True)
    thread.start()
    thread.join(_ANSWER_S)  # looking up a host's address knows no time limit of its own
    if not found:
        raise no_answer(repo, kind, f"no answer within {_ANSWER_S:g} seconds")
    if isinstance(found[0], Exception):
        raise _refusal(repo, kind, found[0]) from found[0]
    return found[0]


def _refusal(repo: str, kind: Kind, problem: Exception) -> NotAvailable:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(problem, GatedRepoError):
        return NotAvailable(
            f"{repo} asks for a licence to be accepted: open its page in a browser, then type: hf auth login"
        )
    if isinstance(problem, RepositoryNotFoundError):
        return NotAvailable(
            f"the hub has no {kind} {repo!r} that you may see: check the spelling, or log in with: hf auth login"
        )
    if isinstance(problem, HfHubHTTPError):
        return NotAvailable(f"the hub answered for {repo} with an error: {_first_line(problem)}; try again later")
    return no_answer(repo, kind, _first_line(problem))


def no_answer(repo: str, kind: Kind, why: str) -> NotAvailable:
    """The error for a hub that cannot be reached: it names the ways that need no network."""
    from huggingface_hub import constants

    carry = f"hf download {repo} --local-dir FOLDER" + (" --repo-type dataset" if kind == "dataset" else "")
    demo = "" if kind == "dataset" else "; a demo model such as demo-lm needs no hub"
    return NotAvailable(
        f"{repo!r} is neither here nor in the hub's cache, and {constants.ENDPOINT} cannot be asked ({why}).\n"
        f"With a network try again; without one, type elsewhere\n    {carry}\n"
        f"carry the folder here and name it{demo}"
    )


def cached_model(repo: str) -> Path | None:
    """Returns the folder of a model in the hub's local cache, without asking anyone; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def cached_dataset(repo: str) -> bool:
    """True where the datasets package has prepared this data set before."""
    from huggingface_hub import constants

    root = os.environ.get("HF_DATASETS_CACHE", str(Path(constants.HF_HOME) / "datasets"))
    return (Path(root).expanduser() / repo.replace("/", "___").lower()).is_dir()


def download_model(repo: str, listing: Listing, say: Callable[[str], None]) -> Path:
    """Returns the local folder of a model after fetching what is not there yet.

    Raises NotAvailable if the connection breaks or the disk is too small.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    files = wanted_from_hub(listing)
    num_bytes = sum(listing[name] for name in files)
    _check_space(repo, num_bytes, Path(constants.HF_HUB_CACHE))
    say(f"{repo}: {num_bytes / 1e6:.0f} MB in {len(files)} files, kept in {constants.HF_HUB_CACHE}")
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(repo, allow_patterns=list(files)))
    except Exception as problem:
        raise NotAvailable(
            f"fetching {repo} stopped: {_first_line(problem)}. Try again: what has arrived is kept"
        ) from problem


def _check_space(repo: str, num_bytes: int, cache: Path) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise NotAvailable(
            f"{repo} needs {num_bytes / 1e6:.0f} MB in {cache}, and {free / 1e6:.0f} MB are free; "
            f"free some space, or move the hub's cache with HF_HOME=FOLDER"
        )


def _first_line(problem: Exception) -> str:
    lines = str(problem).strip().splitlines()
    return f"{type(problem).__name__}: {lines[0][:200]}" if lines else type(problem).__name__
