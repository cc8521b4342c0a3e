"""Calibration text for tiny models, and what a cut does to them, computed the plain way: by zeros and by leaving out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.data import IGNORE, Batch
from budwood.prune.kept import Kept, Structure
from families import FAMILIES, PAD, VOCABULARY


def calibration(name: str, *, rows: int = 12, width: int = 9, seed: int = 0) -> Batch:
    """Labelled rows of the family's kind, of different lengths, padded on the right."""
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (rows, width), generator=dice)
    lengths = torch.randint(width // 2, width + 1, (rows,), generator=dice)
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = ids.where(mask != 0, PAD)
    batch = {"input_ids": ids, "attention_mask": mask, "rows": tuple(range(rows)), "lengths": tuple(lengths.tolist())}
    family = FAMILIES[name]
    if "classify" in name:
        return Batch(**batch, labels=torch.randint(0, 3, (rows,), generator=dice), shift=False)
    if family.kind == "encoder-decoder":
        ends = torch.randint(2, 6, (rows,), generator=dice)
        written = torch.randint(4, VOCABULARY, (rows, 6), generator=dice)
        labels = written.where(torch.arange(6) < ends[:, None], IGNORE)
        return Batch(**batch, labels=labels, target_lengths=tuple(ends.tolist()), shift=False)
    return Batch(**batch, labels=ids.where(mask != 0, IGNORE), shift=family.kind == "decoder")


def trained(name: str = "llama", *, steps: int = 60, **settings: int) -> PreTrainedModel:
    """A tiny model that has learned to say the next of three ids over and over, so that its parts have something to lose."""
    model = FAMILIES[name].build()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = counting(seed=step)
        logits = model(input_ids=batch.input_ids).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch.input_ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def counting(*, rows: int = 16, width: int = 12, seed: int = 0) -> Batch:
    """Rows that count on from a random id by a step that their first two ids tell."""
    dice = torch.Generator().manual_seed(1000 + seed)
    start = torch.randint(0, 90, (rows, 1), generator=dice)
    step = torch.randint(1, 6, (rows, 1), generator=dice)
    ids = 4 + (start + step * torch.arange(width)) % (VOCABULARY - 4)
    mask = torch.ones_like(ids)
    return Batch(input_ids=ids, attention_mask=mask, labels=ids, rows=tuple(range(rows)), lengths=(width,) * rows)


def without(model: PreTrainedModel, structure: Structure, kept: Kept, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy with the new weights and, in each linear that reads cut units, zeros for these; its blocks are all there."""
    model = copy.deepcopy(model)
    own = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
        for units in structure.units:
            gone = set(range(units.count)) - set(kept.units.get(units.path, range(units.count)))
            features = [unit * units.width + i for unit in sorted(gone) for i in range(units.width)]
            weight = own[f"{units.path}.weight"]
            (weight if isinstance(model.get_submodule(units.path), nn.Linear) else weight.T)[:, features] = 0
    return model


@contextmanager
def skipping(model: PreTrainedModel, kept: Kept) -> Iterator[None]:
    """Inside, blocks that are cut return what they read."""

    def skip(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return (args[0], *output[1:]) if isinstance(output, tuple) else args[0]

    sites = [s for s in discover(model).sites if s.role == "block" and s.layer is not None]
    gone = [s.path for s in sites if s.layer not in kept.layers.get(s.stack, (s.layer,))]
    handles = [model.get_submodule(path).register_forward_hook(skip) for path in gone]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
