"""Merging low-rank updates, as pure functions of tensors: sum, concatenation, SVD, TIES, DARE, magnitude pruning.

An update is D = B A [out, in], with its scale already in A; `weights` are w_1, ..., w_n, one an update.

    linear          D = sum_i w_i D_i
    concatenation   A = [w_1 A_1; ...; w_n A_n],  B = [B_1, ..., B_n]:  B A is that sum, exactly
    SVD             the best approximation of rank r (Eckart and Young 1936)
    TIES            Yadav et al. 2023, arXiv:2306.01708, section 4: trim, elect signs, mean of those that agree
    DARE            Yu et al. 2023, arXiv:2311.03099, eq. 3: drop at random, and rescale what stays

Differences: PEFT's `linear` (and its `ties`, `dare_linear`, ... without `_svd`) merges the A's among themselves and the
B's among themselves, so its product (sum_i A_i)(sum_j B_j) holds the cross terms B_j A_i as well; here everything acts
on the updates themselves. TIES and DARE treat one weight matrix at a time, as PEFT does (TIES as published trims the
whole model at once).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""A: [rank, in] and B: [out, rank]."""
Sign = Literal["total", "frequency"]
"""How signs are elected: by the sum of the values, or by their number."""


def concatenated(pairs: Sequence[Pair], weights: Sequence[float]) -> Pair:
    """One pair for sum_i w_i B_i A_i, exactly; its rank is the sum of theirs."""
    A = torch.cat([w * A for w, (A, _) in zip(weights, pairs, strict=True)])
    return A, torch.cat([B for _, B in pairs], dim=1)


def truncated(pair: Pair, rank: int) -> tuple[Pair, float]:
    """The best pair of at most this rank for B A, and how far off it is: |B A - B' A'| / |B A|.

    With B = Q R and A^T = P T (QR), B A = Q (R T^T) P^T, so the singular values of B A are those of the small R T^T.
    """
    A, B = pair
    Q, R = torch.linalg.qr(B)
    P, T = torch.linalg.qr(A.T)
    U, S, V = torch.linalg.svd(R @ T.T, full_matrices=False)
    return _leading(Q @ U, S, V @ P.T, rank)


def factored(delta: Tensor, rank: int) -> tuple[Pair, float]:
    """The best pair of at most this rank for delta [out, in], and how far off it is: |delta - B A| / |delta|."""
    U, S, V = torch.linalg.svd(delta, full_matrices=False)
    return _leading(U, S, V, rank)


def linear(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_i w_i D_i: [out, in] each -> [out, in]."""
    return torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)]).sum(0)


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The largest values by magnitude, zero elsewhere.

    density: the share that is kept of the values that are not zero already (rows that an adapter cannot reach, tokens
    that it never saw), at least one. Values as large as the smallest that is kept are kept, too.
    """
    sizes = delta.abs().flatten()
    changed = int(sizes.count_nonzero())
    if density >= 1 or not changed:
        return delta
    kept = max(1, round(density * changed))
    threshold = sizes.kthvalue(sizes.numel() - kept + 1).values
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """DARE: each value stays with probability `density` and is divided by it, else is zero; the expectation is delta.

    The paper's drop rate is p = 1 - density. The mask is drawn on the CPU, so that it is the same on every device.
    """
    if density >= 1:
        return delta
    mask = (torch.rand(delta.shape, generator=generator) < density).to(delta.device)
    return torch.where(mask, delta / density, torch.zeros_like(delta))


def elected(updates: Tensor, sign: Sign = "total") -> Tensor:
    """The sign of each value over all updates: [n, out, in] -> [out, in] in {-1, 0, 1}; 0 where they are even.

    total: the sign of the sum of values, as in the paper; frequency: the sign that most of them have.
    """
    return (updates if sign == "total" else updates.sign()).sum(0).sign()


def disjoint_mean(updates: Tensor, signs: Tensor) -> Tensor:
    """The mean over the updates that have the elected sign, zero where none has: [n, out, in] -> [out, in]."""
    agree = (updates.sign() == signs) & (signs != 0)
    return torch.where(agree, updates, torch.zeros_like(updates)).sum(0) / agree.sum(0).clamp(min=1)


def ties(deltas: Sequence[Tensor], weights: Sequence[float], density: float, sign: Sign = "total") -> Tensor:
    """TIES: trim each update, elect a sign for each value, take the mean of those that agree.

    The weights scale the updates before the vote; equal weights are the paper's lambda. A weight of zero is as if the
    update was not there, a negative one votes the other way. PEFT's `ties_svd` votes without the weights and takes an
    even vote as a plus; with equal positive weights and no even votes the two are the same.
    """
    return _agreed([trimmed(delta, density) for delta in deltas], weights, sign)


def dare_linear(
    deltas: Sequence[Tensor], weights: Sequence[float], density: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """The weighted sum of what DARE leaves of each update."""
    return linear(_all_dropped(deltas, density, generators), weights)


def dare_ties(
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    generators: Sequence[torch.Generator],
    sign: Sign = "total",
) -> Tensor:
    """TIES with DARE in the place of trimming."""
    return _agreed(_all_dropped(deltas, density, generators), weights, sign)


def magnitude_prune(deltas: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """The weighted sum of the trimmed updates: TIES without the vote."""
    return linear([trimmed(delta, density) for delta in deltas], weights)


def _agreed(deltas: Sequence[Tensor], weights: Sequence[float], sign: Sign) -> Tensor:
    updates = torch.stack([w * delta for w, delta in zip(weights, deltas, strict=True)])
    return disjoint_mean(updates, elected(updates, sign))


def _all_dropped(deltas: Sequence[Tensor], density: float, generators: Sequence[torch.Generator]) -> list[Tensor]:
    return [dropped(delta, density, generator) for delta, generator in zip(deltas, generators, strict=True)]


def _leading(U: Tensor, S: Tensor, V: Tensor, rank: int) -> tuple[Pair, float]:
    """The leading singular directions as a balanced pair, and the share of the norm that the others have."""
    root = S[:rank].sqrt()
    whole = float(S.norm())
    return (root.unsqueeze(1) * V[:rank], U[:, :rank] * root), float(S[rank:].norm()) / whole if whole else 0.0
