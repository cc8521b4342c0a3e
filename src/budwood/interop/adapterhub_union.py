"""AdapterHub's unions of methods under one name, read: those that are MAM or UniPELT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from budwood.core import Method
from budwood.errors import BadCheckpoint
from budwood.interop.reading import Read
from budwood.methods import MAM, AdapterP, LoRA, Parallel, PrefixTuning, UniPELT
from budwood.methods.union import Union

KINDS = {
    "bottleneck": ("adapters", "shared_parameters", "invertible_adapters"),
    "lora": ("loras",),
    "prefix_tuning": ("prefix_tunings", "prefix_gates"),
}
"""Its kinds of tensors of the methods that unions are made of."""


def joined(parts: Sequence[Read]) -> Read:
    """What was read of each method, as one. Raises BadCheckpoint for a union that no method here is."""
    by_type = {type(part.method): part.method for part in parts}
    prefix, parallel = by_type.get(PrefixTuning), by_type.get(Parallel)
    adapter, lora = by_type.get(AdapterP), by_type.get(LoRA)
    method: Union | None = None
    if isinstance(prefix, PrefixTuning) and isinstance(parallel, Parallel) and len(parts) == 2:
        method = _mam(prefix, parallel)
    if isinstance(prefix, PrefixTuning) and isinstance(adapter, AdapterP) and isinstance(lora, LoRA):
        method = _unipelt(prefix, adapter, lora)
    said = [_said(part.method) for part in parts]
    if method is None or len(parts) != len(method.parts()) or any(part not in said for part in method.parts()):
        raise BadCheckpoint(
            f"this AdapterHub adapter is a union of {' and '.join(sorted(part.method.name for part in parts))} with "
            "options that no method here has together; read are MAM (a prefix and a parallel adapter) and UniPELT (a "
            "prefix, a sequential adapter and LoRA, all with gates)"
        )
    return Read(method, {key: tensor for part in parts for key, tensor in part.tensors.items()})


def _said(method: Method) -> Method:
    """A part as a union has it: without a head, and with no scale where it is the usual one."""
    if isinstance(method, AdapterP) and method.scale == 1.0:
        return replace(method, trained=None, scale=None)
    return replace(method, trained=None)


def _mam(prefix: PrefixTuning, adapter: Parallel) -> MAM:
    assert adapter.scale is not None  # the reader says it
    return MAM(
        attention=prefix.targets, length=prefix.length, width=None, dropout=prefix.dropout, bias=prefix.bias,
        init="random", targets=adapter.targets, size=adapter.size, reduction=adapter.reduction, scale=adapter.scale,
        activation=adapter.activation, trained=(),
    )  # fmt: skip


def _unipelt(prefix: PrefixTuning, adapter: AdapterP, lora: LoRA) -> UniPELT:
    return UniPELT(
        attention=prefix.targets, length=prefix.length, width=None, dropout=prefix.dropout, bias=prefix.bias,
        init="random", gate=prefix.gate or "shared", gate_over=prefix.gate_over, sublayers=adapter.targets,
        size=adapter.size, reduction=adapter.reduction, activation=adapter.activation, adapter_init=adapter.init,
        targets=lora.targets, rank=lora.rank, alpha=lora.alpha, trained=(),
    )  # fmt: skip
