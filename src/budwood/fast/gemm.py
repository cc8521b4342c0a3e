"""Which kernel multiplies float32 matrices on this CPU: torch's own choice, or a faster one that is as exact.

torch sends float32 products to oneDNN when told that bfloat16 would do. Where a CPU has no tile unit oneDNN has no
kernel that rounds, and computes them in float32: twice as fast as the default on AMD with AVX-512. With a tile unit
it does round. So nothing is assumed: products are timed, and compared with float64, in this process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Literal

import torch
from torch import Tensor

Product = Callable[[torch.dtype], Tensor]
"""A product in the numbers that are asked for."""

LEAST_GAIN = 1.2
"""How many times faster the other kernel has to be, to be taken."""

WORST_ERROR = 3.0
"""How many times the default's error the other kernel's may be; rounding to bfloat16 makes it thousands of times."""

REPEATS = 3
"""Times that each product is timed on each route."""

ROWS, INPUTS, OUTPUTS, RANK = 128, 512, 768, 8
"""Of the products that are tried: rows of a batch, sides of a weight, and the narrow side of a low-rank update."""


@dataclass(frozen=True, kw_only=True)
class GemmRoute:
    """How float32 products are computed on this CPU while `routed` is in force."""

    name: Literal["onednn", "default"]
    """Who computes them: oneDNN, or whom torch chooses by itself."""
    gain: float
    """How many times faster oneDNN was; 1.0 where it could not be tried."""
    errors: tuple[float, float]
    """The largest relative error against float64, by default and by oneDNN; (0, 0) where it could not be tried."""
    why: str
    """The reason, for people."""


class _Held:
    """How many `routed` are in force, in all threads together, and what to restore after the last one."""

    def __init__(self) -> None:
        self.lock, self.depth, self.before = Lock(), 0, "none"


_HELD = _Held()


@contextmanager
def routed(device: torch.device) -> Iterator[None]:
    """Float32 products inside take the route that was found; forward and backward alike. Nothing changes off the CPU.

    torch.get_float32_matmul_precision() raises inside: torch lets it speak only of what holds for every device.
    """
    if device.type != "cpu" or route().name == "default":
        yield
        return
    with _HELD.lock:
        if _HELD.depth == 0:
            _HELD.before = _setting()
            _set("bf16")
        _HELD.depth += 1
    try:
        yield
    finally:
        with _HELD.lock:
            _HELD.depth -= 1
            if _HELD.depth == 0:
                _set(_HELD.before)


@cache
def route() -> GemmRoute:
    """The route of this process: found at first use, in some 20 ms, or 50 ms where there are two kernels to time."""
    try:
        before = _setting()
    except AttributeError:
        return _untried(f"torch {torch.__version__} has no setting for it")
    if not torch.backends.mkldnn.is_available():
        return _untried("torch was built without oneDNN")
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return _tried()
    finally:
        _set(before)


def _untried(why: str) -> GemmRoute:
    return GemmRoute(name="default", gain=1.0, errors=(0.0, 0.0), why=why)


def _tried() -> GemmRoute:
    """Errors first: neither a route that rounds nor one that is no other is worth timing."""
    products = _products()
    exact = [product(torch.float64) for product in products]
    by_default, by_other = (_results(products, setting) for setting in ("ieee", "bf16"))
    errors = plain, other = _worst_error(by_default, exact), _worst_error(by_other, exact)
    if all(torch.equal(one, two) for one, two in zip(by_default, by_other, strict=True)):
        return GemmRoute(name="default", gain=1.0, errors=errors, why="there is one kernel for them on this CPU")
    if not other <= WORST_ERROR * plain:
        why = f"oneDNN rounds on this CPU: its error is {other:.1e}, the default's {plain:.1e}"
        return GemmRoute(name="default", gain=1.0, errors=errors, why=why)
    gain = _gain(products)
    name: Literal["onednn", "default"] = "onednn" if gain >= LEAST_GAIN else "default"
    return GemmRoute(name=name, gain=gain, errors=errors, why=f"oneDNN takes {1 / gain:.0%} of the default's time")


def _products() -> list[Product]:
    """Products as a step makes them: forward, both gradients, a low-rank pair, and attention."""
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device="cpu", dtype=torch.float32)

    x, W, g = numbers(ROWS, INPUTS), numbers(OUTPUTS, INPUTS), numbers(ROWS, OUTPUTS)
    A, B = numbers(RANK, INPUTS), numbers(OUTPUTS, RANK)
    q, k = numbers(RANK, 64, 64), numbers(RANK, 64, 64)
    pairs = [(x, W.T), (g, W), (g.T, x), (x, A.T), (x[:, :RANK], B.T), (g, B), (q, k.transpose(1, 2))]

    def product(left: Tensor, right: Tensor) -> Product:
        return lambda dtype: left.to(dtype) @ right.to(dtype)

    return [product(left, right) for left, right in pairs]


def _results(products: list[Product], setting: str) -> list[Tensor]:
    _set(setting)
    return [product(torch.float32) for product in products]


def _worst_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest |found - exact| / |exact| over the products."""
    return float(max((one - truth).norm() / truth.norm() for one, truth in zip(found, exact, strict=True)))


def _gain(products: list[Product]) -> float:
    """Seconds by default over seconds by oneDNN for all the products, the best of a few rounds by turns."""
    best = {"ieee": [float("inf")] * len(products), "bf16": [float("inf")] * len(products)}
    for _ in range(REPEATS):
        for setting, seconds in best.items():
            _set(setting)
            for number, product in enumerate(products):
                began = time.perf_counter()
                product(torch.float32)
                seconds[number] = min(seconds[number], time.perf_counter() - began)
    return sum(best["ieee"]) / sum(best["bf16"])


def _setting() -> str:
    """What to set to have what holds now: "none" where it follows from oneDNN's setting for everything."""
    now = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]  # stubs lack it
    return "none" if now == torch.backends.mkldnn.fp32_precision else str(now)


def _set(value: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = value  # type: ignore[attr-defined]
