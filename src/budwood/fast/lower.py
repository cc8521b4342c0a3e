"""What frozen blocks make of each row, computed once: the lower part of a model of which only the upper one is trained.

Their output is kept row by row and given back in later epochs, and at other learning rates, instead of being computed
again. It is kept as it was computed, so gradients of a batch are bit for bit the same.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from budwood.errors import NotAvailable


class Lower:
    """States [n, d] of the tokens of each row, behind the blocks below `cut`."""

    def __init__(self, cut: int, lengths: Sequence[int], *, memory_bytes: int, disk_bytes: int) -> None:
        """Nothing is reserved before the first row is known.

        cut:      how many blocks are below
        lengths:  tokens of each row
        memory_bytes, disk_bytes:  what may be taken: memory, or else a file that is gone when the process is
        """
        self.cut, self.lengths = cut, tuple(lengths)
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self._ends = list(accumulate(self.lengths))
        self._known = [False] * len(self.lengths)
        self._states: Tensor | None = None

    @property
    def held_bytes(self) -> int:
        """What it takes of the memory once all rows are known; nothing before one is, and nothing in a file."""
        size = 0 if self._states is None else self._states.nbytes
        return size if size <= self.memory_bytes else 0

    def has(self, rows: Sequence[int]) -> bool:
        """Whether all of these rows are known."""
        return all(self._known[row] for row in rows)

    def get(self, rows: Sequence[int]) -> Tensor:
        """[tokens of all, d], one row after the other."""
        assert self._states is not None
        return torch.cat([self._states[self._place(row)] for row in rows])

    def put(self, rows: Sequence[int], states: Tensor) -> None:
        """states: [tokens of all, d]. Raises NotAvailable where there is no room for all rows."""
        if self._states is None:
            self._states = self._room(states.shape[1], states.dtype)
        for row, own in zip(rows, states.detach().split([self.lengths[row] for row in rows]), strict=True):
            self._states[self._place(row)] = own
            self._known[row] = True

    def forget(self) -> None:
        """Nothing is known any more."""
        self._known = [False] * len(self.lengths)

    def _place(self, row: int) -> slice:
        return slice(self._ends[row] - self.lengths[row], self._ends[row])

    def _room(self, width: int, dtype: torch.dtype) -> Tensor:
        tokens = sum(self.lengths)
        size = tokens * width * dtype.itemsize
        if size <= self.memory_bytes:
            return torch.empty(tokens, width, dtype=dtype)
        if size > self.disk_bytes:
            raise NotAvailable(
                f"the frozen blocks' output takes {size / 2**30:.1f} GiB for all rows, and there is room for "
                f"{max(self.memory_bytes, self.disk_bytes) / 2**30:.1f} GiB"
            )
        try:
            return _mapped(size, tokens * width, dtype).view(tokens, width)
        except (OSError, RuntimeError) as error:
            where = tempfile.gettempdir()
            raise NotAvailable(f"the frozen blocks' output could not be kept in {where}: {error}") from error


def _mapped(size: int, count: int, dtype: torch.dtype) -> Tensor:
    """A tensor in a file that has no name any more, so that it is gone when the process is."""
    handle, name = tempfile.mkstemp(prefix="budwood-lower-")
    try:
        if sys.platform == "linux":
            os.posix_fallocate(handle, 0, size)  # a disk that fills up later would end the process
        else:
            os.truncate(handle, size)
        return torch.from_file(name, shared=True, size=count, dtype=dtype)
    finally:
        os.close(handle)
        with suppress(OSError):  # where an open file cannot be removed, it stays until the temporary folder is cleared
            Path(name).unlink()
