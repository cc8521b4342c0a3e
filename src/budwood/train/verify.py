"""What was saved is what was trained, and what is merged is what was saved: checked on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from budwood.core import adapters, merge
from budwood.core.registry import registry_of
from budwood.data import IGNORE, Batch
from budwood.errors import VerificationFailed
from budwood.evaluate import evaluating, span_logits
from budwood.evaluate.inputs import class_logits, logits_at
from budwood.interop import load
from budwood.train.precision import arithmetic
from budwood.train.stacking import lay, stand

POSITIONS = 64
"""Most positions of a row whose logits are compared."""

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Largest difference between two loads of the same weights, as a share of the largest logit."""

MERGED = 1e-3
"""Largest difference that folding in float32 may make, as a share of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class Reload:
    """A fresh base with the saved adapter against the model that was trained."""

    rows: int
    """Held-out rows compared."""
    largest_difference: float
    """Between logits."""
    largest_logit: float
    """What the difference is to be seen against."""
    effect: float
    """Largest difference that the adapter makes to the logits of what it stands on; 0 for one without effect."""

    def __str__(self) -> str:
        return (
            f"a fresh base with the saved adapter gives the same logits on {self.rows} held-out rows: they differ by "
            f"{self.largest_difference:.2g} at most (logits go up to {self.largest_logit:.3g}, "
            f"the adapter moves them by up to {self.effect:.2g})"
        )


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """A merged model against the same model with the adapter attached."""

    rows: int
    """Held-out rows compared."""
    largest_difference: float
    """Between logits, merged in float32."""
    largest_logit: float
    """What the differences are to be seen against."""
    dtype: str
    """The type that the merged weights are to be stored in."""
    stored_difference: float
    """Between logits, with the merged weights rounded to `dtype`."""
    update_lost: float
    """Share of the weights' update that rounding to `dtype` loses: |stored update - update| / |update|."""
    same_choice: float
    """Share of positions where the most likely token or class stays the same after rounding to `dtype`."""

    def __str__(self) -> str:
        return (
            f"merged in float32, logits differ by {self.largest_difference:.2g} at most on {self.rows} held-out rows "
            f"(logits go up to {self.largest_logit:.3g}); stored as {self.dtype}, {self.update_lost:.1%} of the update "
            f"is lost to rounding, logits differ by {self.stored_difference:.2g} at most, and the most likely choice "
            f"stays the same at {self.same_choice:.1%} of positions"
        )


def verify_reload(
    model: Any, fresh: Any, folder: Path, *, name: str, on: Sequence[str] = (), batches: Sequence[Batch],
    compute: torch.dtype, allow_pickle: bool = False,
) -> Reload:  # fmt: skip
    """Load the saved adapter into `fresh` and compare logits with the trained model's.

    fresh    the base as it is loaded from disk, nothing attached; has the adapter afterwards
    on       folders of the adapters that it was trained on top of, loaded first
    batches  held-out rows
    Raises   VerificationFailed with the largest difference, or if the adapter has no effect at all
    """
    trained = sample_logits(model, batches, compute)
    registry = registry_of(model)
    anatomy = registry.anatomy if registry else None
    below = lay(fresh, on, top=name, anatomy=anatomy, allow_pickle=allow_pickle)
    base = sample_logits(fresh, batches, compute)
    load(fresh, folder, name=name, anatomy=anatomy)
    stand(fresh, below, name)
    loaded = sample_logits(fresh, batches, compute)
    report = Reload(
        rows=sum(len(batch) for batch in batches),
        largest_difference=_largest(trained, loaded),
        largest_logit=max(t.abs().max().item() for t in trained),
        effect=_largest(base, loaded),
    )
    if not report.largest_difference <= TOLERANCE[compute] * max(1.0, report.largest_logit):
        raise VerificationFailed(
            f"the adapter saved in {folder} is not what was trained: loaded into a fresh base, logits on "
            f"{report.rows} held-out rows differ by up to {report.largest_difference:.3g} "
            f"(logits go up to {report.largest_logit:.3g}). Keep the run's state folder and do not use this adapter"
        )
    if report.effect == 0.0:
        raise VerificationFailed(
            f"the adapter saved in {folder} has no effect: the base gives the same logits without it. Nothing was "
            "learned; raise learning_rate, or train longer"
        )
    return report


def verify_merge(
    model: Any, *, names: Sequence[str], batches: Sequence[Batch], dtype: torch.dtype = torch.bfloat16
) -> MergeReport:
    """Merge adapters, the lowest of a stack first, into a float32 model; say what that and storing `dtype` changes.

    Afterwards the model is merged, its changed weights rounded to `dtype` and kept in float32, ready to be stored.
    Raises  CannotFold where a method or the model does not allow it (only adapters below that one are merged then);
            VerificationFailed with the largest difference
    """
    attached = sample_logits(model, batches, torch.float32)
    before = {key: p.detach().clone() for name in names for key, p in _touched(model, name).items()}
    for name in names:
        merge(model, name)
    merged = sample_logits(model, batches, torch.float32)
    own = dict(model.named_parameters())
    lost, size = 0.0, 0.0
    with torch.no_grad():
        for key, old in before.items():
            update = own[key] - old
            stored = own[key].to(dtype).to(old.dtype)
            lost += (stored - old.to(dtype).to(old.dtype) - update).double().square().sum().item()
            size += update.double().square().sum().item()
            own[key].copy_(stored)
    rounded = sample_logits(model, batches, torch.float32)
    report = MergeReport(
        rows=sum(len(batch) for batch in batches),
        largest_difference=_largest(attached, merged),
        largest_logit=max(t.abs().max().item() for t in attached),
        dtype=str(dtype).removeprefix("torch."),
        stored_difference=_largest(attached, rounded),
        update_lost=(lost / size) ** 0.5 if size else 0.0,
        same_choice=_same_choice(attached, rounded),
    )
    if not report.largest_difference <= MERGED * max(1.0, report.largest_logit):
        raise VerificationFailed(
            f"the merged model is not the adapted one: logits on {report.rows} held-out rows differ by up to "
            f"{report.largest_difference:.3g} (logits go up to {report.largest_logit:.3g}). Use the adapter unmerged"
        )
    return report


def sample_logits(model: Any, batches: Sequence[Batch], compute: torch.dtype) -> list[Tensor]:
    """For each row, float32 logits on the CPU where it is learned: [positions, vocabulary], [1, classes] or [2, T]."""
    found: list[Tensor] = []
    device = next(model.parameters()).device
    with evaluating(model), arithmetic(device, compute):
        for batch in batches:
            here = batch.to(device)
            if here.spans is not None:
                logits = span_logits(model, here)  # [B, 2, T]
                found += [row[:, :length].cpu() for row, length in zip(logits, here.lengths, strict=True)]
                continue
            if here.labels is None or here.labels.ndim == 1:
                found += [row[None].float().cpu() for row in class_logits(model, here)]
                continue
            learned = here.labels[:, int(here.shift) :] != IGNORE  # [B, T - 1], or [B, T]
            positions = learned.any(dim=0).nonzero().flatten()[:POSITIONS]  # [K]
            logits = logits_at(model, here, positions)  # [B, K, V]
            chosen = learned[:, positions]
            found += [row[keep].float().cpu() for row, keep in zip(logits, chosen, strict=True) if keep.any()]
    return found


def _touched(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The base's own parameters at the adapter's sites: what merging may write to."""
    own = dict(model.named_parameters())
    adapter = adapters(model)[name]
    keys = {f"{site.path}.{kind}" for site in adapter.sites for kind in ("weight", "bias")} | set(adapter.unfrozen)
    return {key: parameter for key, parameter in own.items() if key in keys}


def _largest(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The largest difference, infinite where one of the two is not a number."""
    differences = [(a - b).abs().max().item() for a, b in zip(left, right, strict=True)]
    return max((d if d == d else float("inf") for d in differences), default=0.0)


def _same_choice(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in zip(left, right, strict=True)])
    return same.float().mean().item()
