"""How adapters are merged at one site: a checked description, and what it makes of their pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch

from budwood.combine.arithmetic import (
    Pair,
    Sign,
    concatenated,
    dare_linear,
    dare_ties,
    factored,
    magnitude_prune,
    ties,
    truncated,
)
from budwood.errors import BadConfig, did_you_mean

HOWS: dict[str, str] = {
    "linear": "the weighted sum, exactly (with a rank: as svd)",
    "cat": "the same sum; the pairs are put side by side",
    "svd": "the sum, cut to a rank",
    "ties": "largest values, one sign for each, mean of those that agree; cut to a rank",
    "dare-linear": "values dropped at random, the rest rescaled, summed; cut to a rank",
    "dare-ties": "values dropped at random, then as ties; cut to a rank",
    "prune": "the weighted sum of the largest values; cut to a rank",
}
"""Every way to merge, and what it does."""
SIGNS: tuple[Sign, ...] = ("total", "frequency")
_EXACT, _ELECTING = ("linear", "cat", "svd"), ("ties", "dare-ties")
_DENSITY = 0.5


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to merge. Raises BadConfig for settings that mean nothing, alone or together."""

    how: str = "linear"
    """One of `HOWS`."""
    density: float | None = None
    """Share of each update's values that is kept, in (0, 1]: for ties, dare-* and prune. [0.5]"""
    rank: int | None = None
    """Largest rank of the result. [cat, linear: what is exact; svd: the largest of theirs; others: their sum]"""
    sign: str | None = None
    """total (the sum of values has it) or frequency (most values have it): for ties and dare-ties. [total]"""
    seed: int = 0
    """What DARE drops."""

    def __post_init__(self) -> None:
        if self.how not in HOWS:
            raise BadConfig(f"how is {self.how!r}; {did_you_mean(str(self.how), HOWS)}")
        if self.density is not None and self.how in _EXACT:
            raise BadConfig(f"{self.how} keeps every value, so it has no density; leave it out, or use ties or dare-*")
        if self.density is not None and not 0 < self.density <= 1:
            raise BadConfig(f"density is {self.density}; it is the share of values to keep, in (0, 1], as 0.5")
        if self.sign is not None and self.how not in _ELECTING:
            raise BadConfig(f"{self.how} elects no signs; leave sign out, or use ties or dare-ties")
        if self.sign is not None and self.sign not in SIGNS:
            raise BadConfig(f"sign is {self.sign!r}; {did_you_mean(str(self.sign), SIGNS)}")
        if self.rank is not None and self.how == "cat":
            raise BadConfig("cat keeps the sum of the ranks; use svd to choose the rank")
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise BadConfig(f"rank is {self.rank!r}; it must be a whole number of at least 1")

    def possible(self, pairs: Sequence[Pair]) -> int:
        """The largest rank that the result can make use of at a site."""
        total, (A, B) = sum(A.shape[0] for A, _ in pairs), pairs[0]
        if self.how == "cat":
            return total
        fits = min(A.shape[1], B.shape[0])
        return min(fits, total) if self.how in _EXACT else fits

    def rank_of(self, pairs: Sequence[Pair]) -> int:
        """The rank of the result at a site."""
        ranks = [A.shape[0] for A, _ in pairs]
        return min(self.possible(pairs), self.rank or (max(ranks) if self.how == "svd" else sum(ranks)))

    def merge(self, pairs: Sequence[Pair], weights: Sequence[float], keys: Sequence[str]) -> tuple[Pair, float]:
        """The result at one site, and its error: |D - B A| / |D|, where D is what `how` asks for.

        keys: a word for each update; with the seed it decides what DARE drops, so order does not matter.
        """
        rank = self.rank_of(pairs)
        if self.how in _EXACT:
            whole = concatenated([(A.double().cpu(), B.double().cpu()) for A, B in pairs], weights)
            return (whole, 0.0) if rank == whole[0].shape[0] else truncated(whole, rank)
        deltas = [B.to(_home(B)) @ A.to(_home(A)) for A, B in pairs]
        density, sign = _DENSITY if self.density is None else self.density, self._sign
        match self.how:
            case "ties":
                merged = ties(deltas, weights, density, sign)
            case "prune":
                merged = magnitude_prune(deltas, weights, density)
            case "dare-linear":
                merged = dare_linear(deltas, weights, density, self._generators(keys))
            case _:
                merged = dare_ties(deltas, weights, density, self._generators(keys), sign)
        return factored(merged, rank)

    @property
    def _sign(self) -> Sign:
        return "frequency" if self.sign == "frequency" else "total"

    def _generators(self, keys: Sequence[str]) -> list[torch.Generator]:
        seeds = (sha256(f"{self.seed} {key}".encode()).digest()[:7] for key in keys)
        return [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]


def _home(tensor: torch.Tensor) -> torch.device:
    """Where singular values can be computed: the tensor's own device, except Apple's."""
    return torch.device("cpu") if tensor.device.type == "mps" else tensor.device


def check_weights(names: Sequence[str], weights: Sequence[float] | None) -> tuple[float, ...]:
    """One finite weight a name, 1 each by default. Raises BadConfig for others, or where all are zero."""
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise BadConfig(f"there are {len(names)} adapters and {len(weights)} weights; give one weight an adapter")
    if not all(math.isfinite(w) for w in weights) or not any(weights):
        raise BadConfig(f"weights are {list(weights)}; they must be finite numbers, not all of them zero")
    return tuple(float(w) for w in weights)
