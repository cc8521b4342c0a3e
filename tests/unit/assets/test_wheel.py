from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from asset_wheels import MEMBERS, make_wheel, record_line
from budwood.assets.wheel import Wheel, sha256_of
from budwood.errors import NotAvailable

STEM = "tiny_things-1.0"


def test_members_come_out_as_they_went_in(tmp_path: Path) -> None:
    with Wheel(make_wheel(tmp_path), stem=STEM) as wheel:
        assert wheel.text("tiny_things/a.txt") == "first\n"
        copied = wheel.copy("tiny_things/b.bin", tmp_path / "mine")
    assert copied.read_bytes() == MEMBERS["tiny_things/b.bin"]


@pytest.mark.parametrize(
    "change", [lambda text: text.replace("sha256=", "sha256=A", 1), lambda text: text.replace(",6\n", ",7\n")]
)
def test_a_member_that_is_not_what_record_says_is_refused(tmp_path: Path, change) -> None:
    right = "".join(record_line(name, content) for name, content in MEMBERS.items())
    path = make_wheel(tmp_path, record=change(right))
    with (
        Wheel(path, stem=STEM) as wheel,
        pytest.raises(NotAvailable, match=r"damaged: tiny_things/a.txt .*RECORD.*Delete"),
    ):
        wheel.text("tiny_things/a.txt")


def test_no_more_is_written_than_record_says(tmp_path: Path) -> None:
    bomb = {"tiny_things/b.bin": b"\0" * 5_000_000}
    path = make_wheel(tmp_path, bomb, record=record_line("tiny_things/b.bin", b"\0" * 100))
    with Wheel(path, stem=STEM) as wheel, pytest.raises(NotAvailable, match="RECORD"):
        wheel.copy("tiny_things/b.bin", tmp_path / "mine")
    assert (tmp_path / "mine").stat().st_size == 0


def test_an_unlisted_member_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, record=record_line("tiny_things/a.txt", b"first\n"))
    with Wheel(path, stem=STEM) as wheel, pytest.raises(NotAvailable, match="b.bin is not listed"):
        wheel.copy("tiny_things/b.bin", tmp_path / "mine")


def test_a_listed_member_that_is_missing_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, {}, record=record_line("tiny_things/a.txt", b"first\n"))
    with Wheel(path, stem=STEM) as wheel, pytest.raises(NotAvailable, match="cannot be unpacked"):
        wheel.text("tiny_things/a.txt")


def test_bytes_changed_inside_the_archive_are_noticed(tmp_path: Path) -> None:
    path = make_wheel(tmp_path)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("tiny_things/b.bin").header_offset + 60
    content = bytearray(path.read_bytes())
    content[start : start + 8] = b"\xff" * 8
    path.write_bytes(content)
    with Wheel(path, stem=STEM) as wheel, pytest.raises(NotAvailable, match="damaged"):
        wheel.copy("tiny_things/b.bin", tmp_path / "mine")


@pytest.mark.parametrize("record", ["", "tiny_things/a.txt,sha256=x,many\n"])
def test_a_useless_record_is_refused(tmp_path: Path, record: str) -> None:
    path = make_wheel(tmp_path, record=record)
    with pytest.raises(NotAvailable, match="RECORD"), Wheel(path, stem=STEM) as wheel:
        wheel.text("tiny_things/a.txt")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / f"{STEM}-py3-none-any.whl"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(NotAvailable, match=r"no zip archive.*Delete"):
        Wheel(path, stem=STEM)


def test_another_projects_wheel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="RECORD cannot be read"):
        Wheel(make_wheel(tmp_path), stem="other-1.0")


def test_checksum_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_of(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
