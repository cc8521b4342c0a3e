from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from asset_wheels import make_asset, make_wheel
from budwood.assets import fetch
from budwood.assets.fetch import fetch_wheel
from budwood.errors import BadConfig, NotAvailable

CARRY = r"pip download --no-deps --only-binary :all: tiny-things==1.0"


def silent(_: str) -> None:
    pass


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the user's package index, and nothing else that pip could ask."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_brings_the_wheel_and_nothing_is_installed(index: Path, tmp_path: Path) -> None:
    asset = make_asset(make_wheel(index))
    into = tmp_path / "into"
    into.mkdir()
    said: list[str] = []
    path = fetch_wheel(asset, into, offline=False, say=said.append)
    assert path.parent == into
    assert path.read_bytes() == (index / path.name).read_bytes()
    assert "tiny-things==1.0" in said[0]
    assert "none needed" in said[0]  # the licence, before anything is fetched


def test_settings_of_pip_that_would_get_in_the_way_do_not(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = make_asset(make_wheel(index))
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "missing.txt"))
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    assert fetch_wheel(asset, tmp_path, offline=False, say=silent).exists()


def test_other_bytes_from_the_index_are_refused(index: Path, tmp_path: Path) -> None:
    asset = make_asset(make_wheel(index), sha256="0" * 64)
    with pytest.raises(
        NotAvailable, match=r"what your package index serves is not the wheel(.|\n)*0{64}(.|\n)*not opened"
    ):
        fetch_wheel(asset, tmp_path, offline=False, say=silent)


def test_an_index_without_it_names_the_way_round(index: Path, tmp_path: Path) -> None:
    asset = make_asset(make_wheel(tmp_path / "elsewhere"))
    with pytest.raises(
        NotAvailable, match=rf"could not be fetched(.|\n)*pip said(.|\n)*{CARRY}(.|\n)*BUDWOOD_WHEELS=FOLDER"
    ):
        fetch_wheel(asset, tmp_path, offline=False, say=silent)


def test_no_network_is_said_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = make_asset(make_wheel(tmp_path / "elsewhere"))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    started = time.perf_counter()
    with pytest.raises(NotAvailable, match=rf"pip said: \[Errno \d+\] Connection refused\n(.|\n)*{CARRY}"):
        fetch_wheel(asset, tmp_path, offline=False, say=silent)
    assert time.perf_counter() - started < 15


def test_offline_never_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_from_index", None)
    asset = make_asset(make_wheel(tmp_path / "elsewhere"))
    with pytest.raises(NotAvailable, match=rf"forbidden \(offline\)(.|\n)*{CARRY}"):
        fetch_wheel(asset, tmp_path, offline=True, say=silent)


def test_carried_wheels_come_first_and_need_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "stick")
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("BUDWOOD_WHEELS", os.pathsep.join([str(tmp_path / "empty"), str(wheel.parent)]))
    assert fetch_wheel(make_asset(wheel), tmp_path, offline=True, say=silent) == wheel


def test_a_carried_wheel_with_other_bytes_is_named_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "stick")
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    with pytest.raises(NotAvailable, match=r"tiny_things-1.0-py3-none-any.whl is not the wheel that Budwood expects"):
        fetch_wheel(make_asset(wheel, sha256="1" * 64), tmp_path, offline=False, say=silent)


def test_a_folder_of_wheels_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUDWOOD_WHEELS", str(tmp_path / "nowhere"))
    with pytest.raises(BadConfig, match="nowhere.*no folder"):
        fetch_wheel(make_asset(make_wheel(tmp_path)), tmp_path, offline=True, say=silent)


def test_without_pip_the_one_that_python_carries_is_run(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asset = make_asset(make_wheel(index))
    monkeypatch.setattr(fetch, "_has_pip", lambda: False)
    command = fetch._pip(asset)
    assert command[0] == sys.executable
    assert "_bundled" in command[1]
    assert fetch_wheel(asset, tmp_path, offline=False, say=silent).exists()


def test_without_any_pip_the_way_round_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_has_pip", lambda: False)
    monkeypatch.setattr(fetch, "_bundled_pip", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotAvailable, match=rf"neither pip nor uv(.|\n)*{CARRY}"):
        fetch_wheel(make_asset(make_wheel(tmp_path)), tmp_path, offline=False, say=silent)
