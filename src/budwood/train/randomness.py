"""The state of every random generator a run may draw from, as tensors and plain numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Where the generators of Python, NumPy, torch and each accelerator stand."""

    tensors: Mapping[str, Tensor]
    """"torch", "cuda.0", ..., "mps": uint8; "numpy": [624] uint32 as int64."""
    plain: Mapping[str, Any]
    """"python" and "numpy": what is not a tensor, as JSON can hold it."""


def random_state() -> RandomState:
    """The state now."""
    version, numbers, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors |= {f"cuda.{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        tensors["mps"] = torch.mps.get_rng_state()
    plain = {
        "python": [version, list(numbers), gauss],
        "numpy": [int(place), int(has_gauss), float(cached)],
    }
    return RandomState(tensors, plain)


def restore_random_state(state: RandomState) -> None:
    """Go back to `state`."""
    version, numbers, gauss = state.plain["python"]
    random.setstate((version, tuple(numbers), gauss))
    place, has_gauss, cached = state.plain["numpy"]
    keys = state.tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, place, has_gauss, cached))
    torch.set_rng_state(state.tensors["torch"])
    for name, tensor in state.tensors.items():
        if name.startswith("cuda."):
            torch.cuda.set_rng_state(tensor, int(name.removeprefix("cuda.")))
    if "mps" in state.tensors:
        torch.mps.set_rng_state(state.tensors["mps"])


@contextmanager
def same_randomness() -> Iterator[None]:
    """Whatever is drawn inside, the generators stand afterwards where they stood before."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state(before)


def seed_everything(seed: int) -> None:
    """Start every generator from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)  # also every accelerator
