"""Which blocks to cut: one after another, each time the one that costs least loss once the rest has been refitted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from budwood.anatomy import Anatomy, discover
from budwood.data import Batch
from budwood.errors import BadConfig, BadData
from budwood.prune.calibration import joined
from budwood.prune.importance import highest, importance
from budwood.prune.kept import Kept, Structure
from budwood.prune.refit import Fit

TOKENS = 4096
"""Calibration tokens of a search, padding included; rows beyond are left out."""


def search_layers(
    model: Any,
    batches: Iterable[Batch],
    *,
    stack: str,
    count: int,
    structure: Structure,
    anatomy: Anatomy | None = None,
    candidates: int = 4,
    ridge: float = 1e-2,
    told: Callable[[int, float], None] = lambda block, loss: None,
) -> Kept:
    """The `count` blocks of a stack that stay, the first and last among them.

    Every step tries the `candidates` blocks of least influence (1 - cos) that are left, and costs as many refits, each
    a forward over twice the calibration text with the systems of all linears behind the cut.
    batches: with labels;  told: is called with each block that goes and the mean loss without it
    Raises BadConfig for a stack or count that there is not, BadData for text without labels.
    """
    if stack not in structure.depths or not 2 <= count <= structure.depths[stack]:
        depths = ", ".join(f"{name} with 2 to {depth} blocks" for name, depth in structure.depths.items())
        raise BadConfig(f"{count} blocks of {stack} are to stay; there is {depths} (the first and last always stay)")
    if candidates < 1:
        raise BadConfig(f"candidates is {candidates}; at least one block must be tried")
    anatomy, batch = anatomy or discover(model), joined(model, batches, TOKENS)
    if not batch.num_targets:
        raise BadData("no position of the calibration text is labelled, so losses cannot be compared; give answers")
    influence = importance(model, [batch], structure=structure, anatomy=anatomy).layers[stack]
    blocks = list(range(structure.depths[stack]))
    while len(blocks) > count:
        inner = torch.tensor(blocks[1:-1])
        tried = inner[list(highest(-influence.cpu()[inner], candidates))].tolist()
        losses = {}
        for block in tried:
            kept = Kept(layers={stack: tuple(other for other in blocks if other != block)})
            fit = Fit(model, kept, batch, structure, anatomy=anatomy, ridge=ridge, target="global")
            losses[block] = fit.loss() / batch.num_targets
        block = min(losses, key=lambda number: losses[number])
        blocks.remove(block)
        told(block, losses[block])
    return Kept(layers={stack: tuple(blocks)})
