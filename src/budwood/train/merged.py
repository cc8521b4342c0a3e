"""A model folder out of a model and what is attached to it, checked before and after it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from budwood.assets import ModelRef
from budwood.assets.quiet import quiet
from budwood.core import adapters
from budwood.data import Batch
from budwood.errors import VerificationFailed
from budwood.train.verify import MergeReport, sample_logits, verify_merge

SAME = 1e-4
"""Largest difference between the merged model and its folder read again, relative to the largest logit."""
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def write_merged(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    batches: Sequence[Batch],
    stored: torch.dtype,
    again: Callable[[Path], Any],
) -> MergeReport:
    """Fold all adapters in, store the weights as `stored`, write model and tokenizer, and read them again.

    model:   float32, changed by this
    batches: what the logits are compared on;  again: loads the written folder, to compute in float32
    Raises CannotFold for an adapter that has no weights to fold into, VerificationFailed where merged is not attached.
    """
    report = verify_merge(model, names=tuple(adapters(model)), batches=batches, dtype=stored)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(stored).float()
    expected = sample_logits(model, batches, torch.float32)
    with quiet():
        model.to(stored).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    found = sample_logits(again(folder), batches, torch.float32)
    largest = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    if not largest <= SAME * max(1.0, report.largest_logit):
        raise VerificationFailed(
            f"the merged model, written and read again, gives logits that differ by {largest:.3g} (they go up to "
            f"{report.largest_logit:.3g}); nothing was kept. Use the adapter unmerged, and please report this"
        )
    return report


def stored_dtype(ref: ModelRef) -> torch.dtype:
    """The type that a model's own files have; float32 for GGUF, which has none of torch's."""
    for path in sorted(ref.path.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        return next((DTYPES[word] for word in ("BF16", "F16") if word in kinds), torch.float32)
    return torch.float32
