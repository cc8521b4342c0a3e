from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from budwood.records import Accelerator, machine
from budwood.records.machine import git_state, installed


def git(folder: Path, *words: str) -> None:
    command = ("git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@x", *words)
    subprocess.run(command, check=True, capture_output=True)


def test_what_it_knows() -> None:
    facts = machine(device="cuda:0", threads=2, accelerators=(Accelerator(name="H", memory_bytes=7),), gemm="onednn")
    assert facts.memory_bytes > 1 << 28 and facts.processor.usable_cores > 0 and facts.processor.model
    assert facts.versions["torch"] and facts.versions["transformers"] and facts.versions["budwood"]
    assert facts.python.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    data = json.loads(json.dumps(facts.to_dict()))
    assert (data["device"], data["threads"], data["gemm"]) == ("cuda:0", 2, "onednn")
    assert data["accelerators"][0]["name"] == "H"


def test_absent_packages_are_null() -> None:
    assert installed("no-such-package-of-ours") is None


def test_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init", "-q", "-b", "trunk")
    assert git_state(tmp_path) is None  # nothing committed yet
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    state = git_state(tmp_path)
    assert state is not None and len(state.commit) == 40
    assert (state.branch, state.dirty) == ("trunk", False)
    (tmp_path / "a").write_text("2")
    git(tmp_path, "checkout", "-q", "--detach")
    state = git_state(tmp_path)
    assert state is not None and (state.branch, state.dirty) == (None, True)


def test_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) is None
    assert machine().git is None


def test_records_import_neither_torch_nor_numpy() -> None:
    code = "import sys, budwood.records as r; r.machine(); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
