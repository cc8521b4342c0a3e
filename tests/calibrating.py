"""Calibration text for tiny models, and a tiny model that has learned something."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from budwood.data import IGNORE, Batch
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


def trained(name: str = "llama", *, steps: int = 60) -> PreTrainedModel:
    """A tiny model that has learned to count, a little, so that its parts have something to lose."""
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
