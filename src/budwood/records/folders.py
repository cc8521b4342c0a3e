"""Where runs live: new folders that no one else has, and old ones by path, name or part of a name."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from budwood.errors import BadCheckpoint, BadConfig, NotAvailable, WrongOrder, did_you_mean
from budwood.records.files import not_writable
from budwood.records.manifest import Manifest, as_it_stands, read_manifest

CONTENT = (
    *("run.json", "config.yaml", "environment.json", "data.json"),
    *("metrics.jsonl", "samples.jsonl", "predictions.jsonl", "result.json"),
    *("adapter", "model", "state", "teacher.json", "stages", "stages.jsonl", "work", "report.html", "log.txt"),
)
"""Everything that a run puts into its folder."""

STAMP = re.compile(r"^\d{8}-\d{6}-")


@contextmanager
def claim(root: Path, manifest: Manifest, out: Path | None, *, force: bool) -> Iterator[Path]:
    """A new, empty folder for a run; what it replaces is kept until the block has ended well.

    Raises BadConfig if it cannot be made or holds something.
    """
    try:
        path = _stamped(root, manifest) if out is None else _chosen(out, force=force)
        old = Path(tempfile.mkdtemp(dir=path, prefix=".replaced-"))
    except OSError as error:
        raise not_writable(out or root, error) from error
    _move(path, old)
    try:
        yield path
    except BaseException:
        for name in CONTENT:
            _remove(path / name)
        _move(old, path)
        old.rmdir()
        if out is None:
            path.rmdir()
        raise
    shutil.rmtree(old)


def find(where: str, root: Path) -> Path:
    """The run folder at a path, or the only one in `root` whose name, or name after the time, begins so.

    Raises NotAvailable (none), BadConfig (several).
    """
    path = Path(where)
    if (path / "run.json").is_file():
        return path
    if path.is_dir():
        raise NotAvailable(f"{where} holds no run.json, so it is not a run; budwood runs ls shows the runs there are")
    names = sorted(found.parent.name for found in root.glob("*/run.json"))
    fits = [name for name in names if name == where] or [name for name in names if _begins(name, where)]
    if len(fits) == 1:
        return root / fits[0]
    if fits:
        raise BadConfig(f"{where!r} fits {len(fits)} runs in {root}: {', '.join(fits)}; give more of the name")
    hint = did_you_mean(where, names) if names else "there are no runs yet: start one with budwood train"
    raise NotAvailable(f"there is no run {where!r}, neither at that path nor in {root}; {hint}")


def label(manifest: Manifest) -> str:
    """METHOD-MODEL, in letters that every file system takes."""
    model = re.split(r"[/\\]", manifest.model.rstrip("/\\"))[-1]
    text = re.sub(r"[^A-Za-z0-9._]+", "-", f"{manifest.label}-{model}")
    return text.strip("-.")[:60]


def _stamped(root: Path, manifest: Manifest) -> Path:
    """A new folder of `root`, named by the local time; a number is added where the name is taken."""
    root.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{label(manifest)}"
    number = 1
    while True:
        path = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path


def _chosen(out: Path, *, force: bool) -> Path:
    """The folder the user named.  Raises BadConfig if it holds what must not be replaced."""
    out.mkdir(parents=True, exist_ok=True)
    present = sorted(entry.name for entry in out.iterdir())
    if not present:
        return out
    if not (out / "run.json").is_file():
        raise BadConfig(f"{out} is not empty ({', '.join(present[:3])}) and not a run; choose a new or empty --out")
    if not force:
        raise BadConfig(f"{out} holds a run already; choose another --out, --resume it, or replace it with --force")
    if _is_running(out / "run.json"):
        raise WrongOrder(f"the run in {out} is still going; stop it before it is replaced, or choose another --out")
    return out


def _is_running(manifest: Path) -> bool:
    try:
        return as_it_stands(read_manifest(manifest)).status == "running"
    except BadCheckpoint:  # nothing that runs left it
        return False


def _move(source: Path, target: Path) -> None:
    for name in CONTENT:
        if (source / name).exists():
            (source / name).rename(target / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _begins(name: str, start: str) -> bool:
    return name.startswith(start) or STAMP.sub("", name).startswith(start)
