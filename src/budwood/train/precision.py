"""Where to compute and in which numbers: probed on this machine, not assumed."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from budwood.errors import BadConfig
from budwood.fast.gemm import routed

FAST_BF16 = 1.3
"""How many times faster than float32 a bfloat16 product has to be for precision=auto to choose it."""


@contextmanager
def arithmetic(device: torch.device, compute: torch.dtype) -> Iterator[None]:
    """bfloat16 products on `device` if `compute` says so, else float32 ones by the faster of the exact kernels."""
    with products(device, compute), torch.autocast(device.type, torch.bfloat16, enabled=compute == torch.bfloat16):
        yield


@contextmanager
def products(device: torch.device, compute: torch.dtype) -> Iterator[None]:
    """The part of `arithmetic` that a backward needs, too."""
    with nullcontext() if compute == torch.bfloat16 else routed(device):
        yield


def resolve_device(name: str) -> torch.device:
    """The device that a name means here; auto takes CUDA, then MPS, then the CPU. Raises BadConfig if it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadConfig(f"device is {name} but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadConfig("device is mps but torch does not see Apple's GPU here; use --device cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """float32 for exact, bfloat16 for bf16, and for auto whichever is faster here by a clear margin."""
    if name == "exact":
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and bf16_gain() >= FAST_BF16 else torch.float32


@cache
def bf16_gain() -> float:
    """How many times faster than float32 this CPU multiplies bfloat16 matrices; measured once, in some 30 ms."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(left, right)
            times.append(time.perf_counter() - began)
        return min(times)

    with routed(torch.device("cpu")):
        return seconds(torch.float32) / seconds(torch.bfloat16)


def master(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision that updates add up in: float32, or as it is if it has more."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def store_compactly(model: nn.Module, *, trained: Collection[str] = ()) -> None:
    """Keep the frozen weights of linears in bfloat16, where products are, and everything else in float32.

    Autocast rounds those weights to bfloat16 for each product anyway, so results do not change; they take half the
    memory and need no rounding each time. Weights shared with an embedding stay float32, as do those in `trained`.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    products: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D):
            products |= {id(p) for p in module.parameters(recurse=False)} - tables
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            is_compact = id(parameter) in products and name not in trained
            parameter.data = parameter.data.to(torch.bfloat16 if is_compact else torch.float32)
