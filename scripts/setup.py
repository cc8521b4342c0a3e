#!/usr/bin/env python3
"""Makes the project's environment, or leaves it as it is when it is right.  Standard library only; any Python 3.11+.

    python3 scripts/setup.py [FOLDER]        the folder is .venv unless named

What it guarantees: exact versions (constraints.txt); torch's CPU build on Linux unless an NVIDIA driver is there; an
environment that was left half-made is thrown away and made anew; two runs at once wait for each other.  It uses uv
where there is one, else venv and pip, with the configuration (index, proxy, certificates) that the user gave them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.py")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STAMP = "budwood-stamp.json"
HALF_MADE = "budwood-half-made"
PROBE = (
    "import importlib.util as u, sys;"
    "sys.exit(not all(map(u.find_spec, ('torch', 'transformers', 'accelerate', 'budwood', 'pytest', 'ruff', 'mypy'))))"
)


class SetupError(Exception):
    """Something a person has to do first; the message says what."""


class StepError(Exception):
    """A command of pip or uv failed; another way may work."""


def main() -> int:
    """Makes or checks the environment; returns the exit code."""
    folder = (ROOT / (sys.argv[1] if len(sys.argv) > 1 else ".venv")).absolute()
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 (whoever runs this file by hand may have any)
            raise SetupError(
                f"this is Python {platform.python_version()}; Budwood needs 3.11 or newer: make PYTHON=python3.11"
            )
        with one_at_a_time(folder):
            if not is_right(folder):
                make(folder)
    except (SetupError, StepError) as problem:
        print(f"set-up failed: {problem}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        print("stopped; the next run starts the environment anew", file=sys.stderr)
        return 130
    return 0


def make(folder: Path) -> None:
    """Brings the environment up to date, from nothing if there is nothing good to start from."""
    say(f"setting up {folder.name} with about 1.2 GB of packages; this takes some minutes, once")
    if not (folder.exists() and is_ours_to_update(folder) and was_updated(folder)):
        if folder.exists():
            say(f"{folder.name} is half-made or damaged; making it anew")
            shutil.rmtree(folder)
        if not (with_uv(folder) or with_pip(folder)):
            raise SetupError("neither uv nor pip could make the environment; what they said is above")
        if not works(folder):
            raise SetupError(f"{folder} was made and does not work; remove it and try again")
    (folder / STAMP).write_text(json.dumps(stamp()), encoding="utf-8")
    (folder / HALF_MADE).unlink(missing_ok=True)


def was_updated(folder: Path) -> bool:
    """Installs what has changed; False if the result does not work.  Raises SetupError if pip fails."""
    (folder / STAMP).unlink(missing_ok=True)
    try:
        install(pip_of(folder), last_resort=True)
    except StepError as problem:
        raise SetupError(
            f"{folder.name} could not be brought up to date; it was left as it is:\n{problem}"
        ) from problem
    return works(folder)


def with_uv(folder: Path) -> bool:
    """Makes the environment with uv; False if there is no uv or it failed."""
    uv = shutil.which("uv")
    if uv is None:
        return False
    try:
        run([uv, "venv", "--quiet", "--seed", "--python", base_python(), str(folder)])
        (folder / HALF_MADE).touch()
        links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
        install([uv, "pip", "install", "--quiet", "--python", str(python_of(folder)), *links], last_resort=False)
    except StepError as problem:
        say(f"uv could not do it; trying venv and pip.  It was:\n{problem}")
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def with_pip(folder: Path) -> bool:
    """Makes the environment with venv and pip; False if that failed."""
    try:
        new_venv(folder)
        install(pip_of(folder), last_resort=True)
    except StepError as problem:
        say(f"pip could not do it:\n{problem}")
        return False
    return True


def pip_of(folder: Path) -> list[str]:
    """The environment's own `pip install`."""
    return [str(python_of(folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]


def base_python() -> str:
    """The Python outside of any environment, so that an active one can be replaced."""
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    return str(base) if sys.prefix != sys.base_prefix and base.exists() else sys.executable


def new_venv(folder: Path) -> None:
    """An empty environment with pip; where Debian left ensurepip out, the system's pip puts itself in."""
    python = base_python()
    folder.mkdir()
    (folder / HALF_MADE).touch()
    if succeeds([python, "-c", "import ensurepip"]):
        run([python, "-m", "venv", str(folder)])
    elif succeeds([python, "-m", "pip", "--version"]):
        run([python, "-m", "venv", "--without-pip", str(folder)])
        run([python, "-m", "pip", "--python", str(python_of(folder)), "install", "--quiet", "pip"])
    else:
        raise SetupError(
            "this Python has neither ensurepip nor pip; type: sudo apt install python3-venv (or your system's like)"
        )


def install(command: list[str], *, last_resort: bool) -> None:
    """Installs torch, then Budwood with everything its developers need.

    command:     pip's or uv's `install`, with options
    last_resort: take torch with CUDA rather than none
    """
    pinned = [*command, "--constraint", str(ROOT / "constraints.txt")]
    problems = []
    for way in torch_ways(last_resort):
        say(f"  {way[-1]} ...")
        try:
            run([*pinned, *way])
            break
        except StepError as problem:
            problems.append(str(problem))
    else:
        raise StepError("\n".join(problems))
    say("  everything else ...")
    run([*pinned, "--editable", f"{ROOT}[dev]"])


def torch_ways(last_resort: bool) -> list[list[str]]:
    """What to ask for, in order, so that torch comes without gigabytes of CUDA where there is no NVIDIA card.

    The local version "+cpu" can only be a CPU build: first from where the user's own configuration looks (a folder of
    wheels, a mirror), then from PyTorch's index.  Elsewhere, and as a last resort, whatever the user's index has.
    """
    version = pinned_torch()
    if platform.system() != "Linux" or has_nvidia():
        return [[f"torch=={version}"]]
    cpu = f"torch=={version}+cpu"
    ways = [["--no-deps", cpu], ["--no-deps", "--index-url", CPU_INDEX, cpu]]
    return [*ways, [f"torch=={version}"]] if last_resort else ways


def pinned_torch() -> str:
    """The version of torch in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("torch=="):
            return line.removeprefix("torch==").strip()
    raise SetupError("constraints.txt pins no torch")


def has_nvidia() -> bool:
    """True where an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def is_right(folder: Path) -> bool:
    """True where the stamp says that this very environment was finished from these very files, and it still stands."""
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == stamp()) and not (folder / HALF_MADE).exists() and works(folder)


def is_ours_to_update(folder: Path) -> bool:
    """False where updating could not help: left half-made, made elsewhere and moved, or without a working Python."""
    if (folder / HALF_MADE).exists() or not succeeds([str(python_of(folder)), "-m", "pip", "--version"]):
        return False
    try:
        found = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # made by hand: kept, and brought up to date
    return bool(found.get("root") == str(ROOT) and found.get("python") == platform.python_version())


def stamp() -> dict[str, str]:
    """What an environment depends on."""
    digest = hashlib.sha256()
    for name in INPUTS:
        digest.update((ROOT / name).read_bytes())
    return {"inputs": digest.hexdigest(), "root": str(ROOT), "python": platform.python_version()}


def works(folder: Path) -> bool:
    """True where the environment's Python runs and finds the packages that matter."""
    return succeeds([str(python_of(folder)), "-c", PROBE])


def python_of(folder: Path) -> Path:
    """The environment's Python."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Holds a lock beside the environment; the system drops it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no make either
        yield
        return
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up is at work; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(command: list[str]) -> None:
    """Runs a command.  Raises StepError, with the end of its output, if it fails."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = "\n".join(f"    {line}" for line in done.stdout.splitlines()[-12:])
        raise StepError(f"{' '.join(command)}\n{said}\n    (ended with {done.returncode})")


def succeeds(command: list[str]) -> bool:
    """True where a command runs and ends well; its output is dropped."""
    try:
        return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
    except OSError:
        return False


def say(line: str) -> None:
    """Tells the person."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
