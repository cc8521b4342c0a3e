"""A teacher's likeliest choices on disk: asked once, kept shard by shard, gone on with where a job stopped.

FOLDER/manifest.json             what it was made from, and each shard that is whole
FOLDER/shard-00000.safetensors   keys [rows, 16], offsets [rows + 1], ids [n, k], log_probs [n, k], tail [n]

Log-probabilities are at temperature 1, in float16, which rounds those of a language model eight times finer than
bfloat16. The mass of all other choices is kept beside them: as 1 less a sum of rounded numbers it would be lost.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from budwood.data import Example, collate
from budwood.distill.content import Origin, keys_of
from budwood.distill.teacher import LiveTeacher
from budwood.errors import BadCheckpoint, BadConfig, BadData, WrongOrder
from budwood.records.files import Json, not_writable, read_json, write_bytes, write_json

VERSION = 1
"""Of the layout."""
MANIFEST = "manifest.json"
SHARD_TOKENS = 1 << 15
"""Supervised positions of a shard: what a killed job has to do again, at most."""
SLICE = 128
"""Positions whose logits are held at a time."""
LOWEST = -6e4
"""Stands for log 0, which float16 could not tell from an overflow."""
ROW_BYTES = 24
"""Of each row, its key and where it begins."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cache takes on disk."""

    bytes_per_token: int
    """For each supervised position."""
    total: int
    """All together."""
    tokens: int
    """Supervised positions."""

    def __str__(self) -> str:
        return f"{self.bytes_per_token} bytes a token, {self.tokens:,} tokens: {_size(self.total)}"


def cost(k: int, tokens: int, rows: int = 0) -> Cost:
    """What the k likeliest choices at so many supervised positions take: k (4 + 2) + 2 bytes each."""
    each = k * (4 + 2) + 2
    return Cost(bytes_per_token=each, total=each * tokens + ROW_BYTES * rows, tokens=tokens)


def cache_teacher(
    teacher: LiveTeacher,
    examples: Sequence[Example],
    folder: str | Path,
    *,
    origin: Origin,
    pad_id: int,
    k: int = 64,
    batch_size: int = 8,
    shard_tokens: int = SHARD_TOKENS,
    redo: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Cost:
    """Ask the teacher about every row and keep its k likeliest choices in `folder`; shards that are there stay.

    Rows that repeat are asked about once. For hidden words, give the rows of each epoch (`Masking.for_epoch`).
    origin  tokenizer and template of the rows; task and fingerprint are taken from the teacher
    redo    make damaged shards again
    say     called with a line for people: what it will cost, then each shard
    Raises  BadConfig for a folder with another cache, no room, or a full disk; BadCheckpoint naming a damaged shard;
            WrongOrder while another process is writing it.
    """
    if k < 1 or batch_size < 1 or shard_tokens < 1:
        raise BadConfig(f"k is {k}, batch_size {batch_size}, shard_tokens {shard_tokens}; each must be at least 1")
    if teacher.reader.task == "question-answering":
        raise BadConfig("what a teacher says of questions is about places in a window; give the teacher itself")
    origin = replace(origin, task=teacher.reader.task, teacher=teacher.fingerprint())
    folder = Path(folder)
    with locked(folder, "the teacher cache"):
        shards, keys = _planned(examples, pad_id, shard_tokens)
        made_of: dict[str, Any] = {
            "version": VERSION,
            **asdict(origin),
            "k": k,
            "arithmetic": arithmetic_of(teacher.model.device),
            "data": hashlib.sha256(b"".join(keys)).hexdigest(),
            "rows": len(keys),
            "tokens": sum(examples[place].num_targets for shard in shards for place in shard),
            "batch_size": batch_size,
            "shard_tokens": shard_tokens,
            "shards": len(shards),
        }
        done = _standing(folder, made_of, redo=redo)
        price = cost(k, made_of["tokens"], len(keys))
        say(f"teacher cache in {folder}: {price}; {len(done)} of {len(shards)} shards are there")
        left = [number for number in range(len(shards)) if str(number) not in done]
        _check_room(folder, price, len(left) / len(shards))
        for number in left:
            chosen = [examples[place] for place in shards[number]]
            tensors = _asked(teacher, chosen, pad_id, k, batch_size)
            with _full_disk_told(folder, len(done), len(shards), price):
                done[str(number)] = _write(folder / name_of(number), tensors)
                write_json(folder / MANIFEST, {**made_of, "done": {n: done[n] for n in sorted(done, key=int)}})
            say(f"shard {number + 1} of {len(shards)}: {len(chosen)} rows, {len(tensors['ids'])} tokens")
    return price


def name_of(number: int) -> str:
    """The file of a shard."""
    return f"shard-{number:05d}.safetensors"


def is_intact(path: Path, sha256: Json) -> bool:
    """Whether a shard is what was written."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _planned(examples: Sequence[Example], pad_id: int, most: int) -> tuple[list[list[int]], list[bytes]]:
    """Which examples go into each shard, the longest first, each content once; and the keys of all."""
    if not any(example.num_targets for example in examples):
        raise BadData(f"none of {len(examples)} rows has a position to learn at; give rows with answers or labels")
    found: dict[bytes, int] = {}
    for place, example in enumerate(examples):
        if example.num_targets:
            found.setdefault(keys_of(collate([example], pad_id))[0], place)
    shards: list[list[int]] = []
    room = 0
    for _, _, place in sorted((-examples[place].size, key, place) for key, place in found.items()):
        if examples[place].num_targets > room or not shards:
            shards.append([])
            room = most
        shards[-1].append(place)
        room -= examples[place].num_targets
    return shards, sorted(found)


def _asked(teacher: LiveTeacher, rows: Sequence[Example], pad_id: int, k: int, size: int) -> dict[str, Tensor]:
    """The tensors of a shard."""
    keys: list[bytes] = []
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(rows), size):
        batch = collate(rows[start : start + size], pad_id)
        keys += keys_of(batch)
        said = teacher.say(batch.to(teacher.model.device))
        parts += [_likeliest(said.at(slice(a, a + SLICE)), k) for a in range(0, len(said), SLICE)]
    with torch.autocast("cpu", enabled=False):  # which knows no float16
        ids, log_probs, tail = (torch.cat(part) for part in zip(*parts, strict=True))
    offsets = torch.tensor([0, *(row.num_targets for row in rows)]).cumsum(0)
    assert int(offsets[-1]) == len(ids)
    return {
        "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(-1, 16),
        "offsets": offsets,
        "ids": ids,
        "log_probs": log_probs,
        "tail": tail,
    }


def _likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """logits: [m, width] -> ids [m, k] int32, log-probabilities [m, k] and of all others [m], float16."""
    if not bool(logits.isfinite().all()):
        raise BadData("the teacher says NaN or infinity; load an undamaged copy, or use precision: exact")
    total = logits.logsumexp(dim=-1, keepdim=True)  # [m, 1]
    best = logits.topk(min(k, logits.shape[-1]), dim=-1)
    others = logits.scatter(-1, best.indices, -torch.inf).logsumexp(dim=-1)  # [m]

    def kept(log_probs: Tensor) -> Tensor:
        return log_probs.clamp(min=LOWEST).half().cpu()

    return best.indices.int().cpu(), kept(best.values - total), kept(others - total[:, 0])


def _standing(folder: Path, made_of: dict[str, Any], *, redo: bool) -> dict[str, Json]:
    """The shards that are whole, by number; what a killed job left half-made is cleared away."""
    for draft in (*folder.glob(".shard-*"), *folder.glob(f".{MANIFEST}-*")):
        draft.unlink()
    if not (folder / MANIFEST).exists():
        return {}
    found = read_json(folder / MANIFEST)
    other = [
        f"{key} {str(found.get(key))[:12]} instead of {str(value)[:12]}"
        for key, value in made_of.items()
        if found.get(key) != value
    ]
    if other:
        raise BadConfig(
            f"{folder} holds another teacher cache, with {'; '.join(other)}; choose a new folder, or delete that one"
        )
    done = {number: sha256 for number, sha256 in found["done"].items() if (folder / name_of(int(number))).exists()}
    damaged = [number for number, sha256 in done.items() if not is_intact(folder / name_of(int(number)), sha256)]
    if damaged and not redo:
        raise BadCheckpoint(
            f"{folder / name_of(int(damaged[0]))} is damaged ({len(damaged)} of {len(done)} shards are): its content "
            "is not what was written; delete it, or have damaged shards made again with redo"
        )
    return {number: sha256 for number, sha256 in done.items() if number not in damaged}


def _write(path: Path, tensors: dict[str, Tensor]) -> str:
    """A whole file in one step; the sha256 of its content."""
    content = safetensors.torch.save(tensors)
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def _check_room(folder: Path, price: Cost, share: float) -> None:
    free, needed = shutil.disk_usage(folder).free, int(price.total * share)
    if free < needed:
        raise BadConfig(
            f"the teacher cache needs {_size(needed)} in {folder} ({price}), and {_size(free)} are free; make room, "
            f"choose a folder on another disk, or a smaller k (half of it takes half the room)"
        )


@contextmanager
def _full_disk_told(folder: Path, done: int, shards: int, price: Cost) -> Iterator[None]:
    try:
        yield
    except BadConfig as error:
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        left = int(price.total * (shards - done) / shards)
        raise BadConfig(
            f"the disk is full: {done} of {shards} shards are kept in {folder}; make {_size(left)} of room and run the "
            f"same again, it goes on with shard {done + 1}"
        ) from error


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """One writer at a time; the system drops the lock of a process that died."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(blocking=False)
    except Timeout as problem:
        raise WrongOrder(
            f"another process is writing {what} in {folder}; wait for it, or choose another folder"
        ) from problem
    except OSError as error:
        raise not_writable(folder, error) from error
    try:
        yield
    finally:
        lock.release()


def arithmetic_of(device: torch.device) -> str:
    """Whether products are in less than the weights' precision."""
    kind = device.type
    return str(torch.get_autocast_dtype(kind)).removeprefix("torch.") if torch.is_autocast_enabled(kind) else "exact"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
