"""A teacher that was asked before: its likeliest choices, read from where `cache_teacher` put them."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from budwood.data import Batch
from budwood.distill.cache import MANIFEST, VERSION, is_intact, name_of
from budwood.distill.content import Origin, counts_of, keys_of
from budwood.distill.teacher import Said
from budwood.errors import BadCheckpoint, BadData, NotAvailable
from budwood.records.files import read_json

OPEN = 64
"""Shards that are kept open."""


class CachedTeacher:
    """Finds what the teacher said of each row of a batch by the row's content; only the rows asked for are read."""

    def __init__(self, folder: str | Path, *, origin: Origin | None = None) -> None:
        """origin: what it has to be made from; None takes what there is.

        Raises NotAvailable if there is no cache or it is not finished, BadCheckpoint if it is damaged or was made from
        something else, naming what.
        """
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            raise NotAvailable(f"{folder} holds no teacher cache; make one first, or give the teacher itself")
        self.manifest = read_json(self.folder / MANIFEST)
        self._check(origin)
        self._shard = lru_cache(maxsize=OPEN)(self._open)
        self._where: dict[bytes, tuple[int, int, int]] = {}
        for number in range(self.manifest["shards"]):
            self._index(number)

    @property
    def k(self) -> int:
        """Choices known at each position, unless there are fewer in all."""
        return int(self.manifest["k"])

    def say(self, batch: Batch) -> Said:
        """What was said, on the batch's device. Raises BadData naming a row that nothing was said about."""
        rows = [
            self._read(*self._found(key, row))
            for row, key, count in zip(batch.rows, keys_of(batch), counts_of(batch), strict=True)
            if count
        ]
        if not rows:
            raise BadData("no position counts in this batch; give rows in which something is learned")
        ids, log_probs = (torch.cat(part).to(batch.input_ids.device) for part in zip(*rows, strict=True))
        return Said(count=len(ids), ids=ids, log_probs=log_probs)

    def _found(self, key: bytes, row: int) -> tuple[int, int, int]:
        """(shard, first position, position after the last) of a row."""
        if key in self._where:
            return self._where[key]
        is_hidden = self.manifest["task"] == "masked-lm"
        raise BadData(
            f"row {row + 1} is not in the teacher cache {self.folder}: its tokens, or which of them are learned, are "
            f"not those of any of its {len(self._where)} rows"
            f"{' (each epoch hides other words, and each has to be cached)' if is_hidden else ''}; "
            "make the cache again from these rows, in a new folder"
        )

    def _read(self, number: int, start: int, end: int) -> tuple[Tensor, Tensor]:
        """[positions, k] ids, and log-probabilities that add up with the kept tail to 1 exactly."""
        shard = self._shard(number)
        ids, log_probs, tail = (shard.get_slice(name)[start:end] for name in ("ids", "log_probs", "tail"))
        whole = torch.cat([log_probs.float(), tail[:, None].float()], dim=-1).log_softmax(dim=-1)  # [positions, k + 1]
        return ids.long(), whole[:, :-1]

    def _index(self, number: int) -> None:
        shard = self._shard(number)
        offsets = shard.get_tensor("offsets").tolist()
        for key, (start, end) in zip(shard.get_tensor("keys").numpy(), pairwise(offsets), strict=True):
            self._where[key.tobytes()] = (number, start, end)

    def _open(self, number: int) -> Any:
        path = self.folder / name_of(number)
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise BadCheckpoint(f"{path} cannot be read: {error}; run the job that made it again") from error

    def _check(self, origin: Origin | None) -> None:
        """Raises for a cache that cannot be used, saying why."""
        if self.manifest.get("version") != VERSION:
            raise BadCheckpoint(
                f"{self.folder} is a teacher cache of version {self.manifest.get('version')}, and this Budwood reads "
                f"{VERSION}; make it again in a new folder"
            )
        other = [] if origin is None else origin.differences(self.manifest)
        if other:
            raise BadCheckpoint(
                f"the teacher cache {self.folder} was made for something else: {'; '.join(other)}; "
                "make one for this in a new folder"
            )
        done, shards = self.manifest["done"], self.manifest["shards"]
        if len(done) < shards:
            raise NotAvailable(
                f"the teacher cache {self.folder} is not finished: {len(done)} of {shards} shards; "
                "run the job that makes it again, it goes on there"
            )
        for number, sha256 in done.items():
            path = self.folder / name_of(int(number))
            if not path.is_file() or not is_intact(path, sha256):
                raise BadCheckpoint(
                    f"{path} is {'damaged' if path.is_file() else 'gone'}; delete it and run the job that made it "
                    "again, which makes this shard only"
                )
