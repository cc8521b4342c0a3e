"""Small hand-made wheels, and assets that are made from them: everything the real ones have, but the size."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from budwood.assets.catalogue import Asset, ChatPairs, Recipe, Unpack

MEMBERS = {"tiny_things/a.txt": b"first\n", "tiny_things/b.bin": bytes(range(256)) * 20, "tiny_things/run.py": b"1/0\n"}
TAKEN = (("tiny_things/a.txt", "a.txt"), ("tiny_things/b.bin", "data.bin"))

YAML = """\
categories: [{topic}]
conversations:
{rows}"""


def record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def make_wheel(
    folder: Path,
    members: Mapping[str, bytes] = MEMBERS,
    *,
    stem: str = "tiny_things-1.0",
    record: str | None = None,
) -> Path:
    """Writes a wheel; `record` replaces the one that would be right."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{stem}.dist-info"
    project, version = stem.split("-")
    everything = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"Do as you like.\n",
    }
    right = "".join(record_line(name, content) for name, content in everything.items()) + f"{info}/RECORD,,\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in everything.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", right if record is None else record)
    return path


def make_asset(
    wheel: Path, recipe: Recipe | None = None, *, sha256: str | None = None, disk_bytes: int = 1000
) -> Asset:
    """An asset made from that wheel; its checksum is the wheel's unless told otherwise."""
    return Asset(
        name="demo-tiny",
        kind="data",
        about="for tests",
        licence="none needed",
        project="tiny-things",
        version="1.0",
        sha256=sha256 or hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        disk_bytes=disk_bytes,
        recipe=recipe or Unpack(members=TAKEN),
        licence_members=(("tiny_things-1.0.dist-info/LICENSE", "LICENSE.txt"),),
        licence_texts=("BSD-3-Clause.txt",),
    )


def chat_wheel(folder: Path, topics: Mapping[str, list[list[str]]]) -> Path:
    """A wheel of YAML conversations by topic."""
    members = {}
    for topic, conversations in topics.items():
        rows = "".join(
            "".join(f"{'- ' if n == 0 else '  '}- {turn!r}\n" for n, turn in enumerate(turns))
            for turns in conversations
        )
        members[f"talk/{topic}.yml"] = YAML.format(topic=topic, rows=rows).encode()
    return make_wheel(folder, members)


def chat_recipe(*topics: str) -> ChatPairs:
    return ChatPairs(folder="talk/", topics=topics)
