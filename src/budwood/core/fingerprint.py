"""Which base an adapter was made for: a few shapes and numbers of its weights, read in any dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.core.attach import base_state_dict
from budwood.errors import BadCheckpoint

_SAMPLES = 8
_SAME_DTYPE, _OTHER_DTYPE = 1e-5, 0.005
"""Tolerances relative to a tensor's largest sample: the digits kept, and rounding to 16 bits."""


def fingerprint(model: nn.Module, anatomy: Anatomy) -> dict[str, Any]:
    """Shapes and evenly spaced values of the embedding, the pooler, and the first and last linear of every stack.

    Heads are left out: they are new for every task. A pooler may be new as well, and then differs from
    load to load. Values are float32; tensors without plain floats (quantised, meta)
    give shapes only.
    """
    state = base_state_dict(model)
    return {name: _sample(state[name]) for name in _chosen(anatomy) if name in state}


def check_fingerprint(model: nn.Module, anatomy: Anatomy, expected: dict[str, Any], *, made_for: str) -> None:
    """Raises BadCheckpoint, naming the first difference, unless the model is the base `expected` was taken from."""
    state = base_state_dict(model)
    for name, sample in expected.items():
        if name not in state:
            raise BadCheckpoint(
                f"wrong base: the adapter was made for {made_for}, which has {name}; this model has no such tensor"
            )
        found = _sample(state[name])
        if found["shape"] != sample["shape"]:
            raise BadCheckpoint(
                f"wrong base: {name} is {found['shape']} here and was {sample['shape']} in {made_for}, "
                "for which the adapter was made; load it into that model"
            )
        tolerance = _SAME_DTYPE if found["dtype"] == sample["dtype"] else _OTHER_DTYPE
        if not _close(found["values"], sample["values"], tolerance):
            raise BadCheckpoint(
                f"wrong base: {name} has other values than in {made_for}, for which the adapter was made; "
                "load it into that model"
            )


def _chosen(anatomy: Anatomy) -> list[str]:
    linears = [s for s in anatomy.sites if s.is_linear and s.layer is not None]
    chosen = [s.path for s in anatomy.sites if s.role == "embed"][:1]
    chosen += [s.path for s in anatomy.sites if s.role == "pooler" and s.is_linear]
    for stack in dict.fromkeys(s.stack for s in linears):
        inside = [s.path for s in linears if s.stack == stack]
        chosen += [inside[0], inside[-1]]
    return [f"{path}.weight" for path in dict.fromkeys(chosen)]


def _sample(tensor: Tensor) -> dict[str, Any]:
    facts = {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
    if tensor.is_meta or not tensor.is_floating_point():
        return {**facts, "values": []}
    flat = tensor.detach().reshape(-1)
    where = torch.linspace(0, flat.numel() - 1, _SAMPLES, dtype=torch.float64).long().to(flat.device)
    return {**facts, "values": [float(f"{v:.6g}") for v in flat[where].float().tolist()]}


def _close(a: list[float], b: list[float], tolerance: float) -> bool:
    largest = max((abs(v) for v in b), default=0.0)
    return not a or not b or all(abs(x - y) <= tolerance * largest for x, y in zip(a, b, strict=True))
