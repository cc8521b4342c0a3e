"""Where results go: places that are checked before anything is computed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.data import Row


def refuse_taken(paths: Path | list[Path], *, force: bool) -> None:
    """Raises BadConfig where something is there already, unless `force`."""
    there = [str(path) for path in ([paths] if isinstance(paths, Path) else paths) if path.exists()]
    if there and not force:
        raise BadConfig(f"{', '.join(there)} is there already; name another place, or write over it with --force")


def make_parent(path: Path) -> None:
    """The folder above `path`, made. Raises BadConfig where that cannot be."""
    from budwood.records.files import not_writable

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".budwood-"):
            pass
    except OSError as error:
        raise not_writable(path, error) from error


@contextmanager
def new_folder(path: Path, *, force: bool) -> Iterator[Path]:
    """A folder to fill, which becomes `path` in one step when everything went well, and is gone otherwise.

    Raises BadConfig, before anything is done, where something is there (unless `force`) or it cannot be written.
    """
    from budwood.records.files import not_writable

    filled = path.exists() and (not path.is_dir() or any(path.iterdir()))
    refuse_taken([path] if filled else [], force=force)
    make_parent(path)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        draft.chmod(0o755)
        yield draft
        for file in draft.iterdir():  # safetensors writes for the owner alone
            file.chmod(0o644)
        if path.is_dir():
            shutil.rmtree(path)
        draft.replace(path)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_splits(splits: Mapping[str, Sequence[Row]], out: Path, *, force: bool, is_folder: bool = False) -> list[Path]:
    """One file, or one a split in a folder. Raises BadConfig rather than writing over something."""
    from budwood.data import write_jsonl
    from budwood.records.files import not_writable

    single = len(splits) == 1 and not is_folder and out.suffix
    if not single and out.suffix:
        raise BadConfig(f"--out is {out}, a file, and there are {len(splits)} splits; name a folder")
    paths = [out] if single else [out / f"{name}.jsonl" for name in splits]
    refuse_taken(paths, force=force)
    try:
        for path, rows in zip(paths, splits.values(), strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(rows, path)
    except OSError as error:
        raise not_writable(out, error) from error
    return paths
