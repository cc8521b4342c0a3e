"""The bottleneck itself, W_u act(W_d z + b_d) + b_u, as the adapters use it: a part of methods, not a method."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal[
    "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "quick_gelu", "relu6", "relu2", "mish",
    "linear",
]  # fmt: skip
Init = Literal["zero", "bert", "houlsby"]


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _linear(x: Tensor) -> Tensor:
    return x


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
    "quick_gelu": _quick_gelu,
    "relu6": F.relu6,
    "relu2": _relu2,
    "mish": F.mish,
    "linear": _linear,
}
"""The non-linearities by name."""


class Narrow(nn.Module):
    """A(z) = W_u act(W_d z + b_d) + b_u.  W_d: [m, d_in], b_d: [m], W_u: [d_out, m], b_u: [d_out]."""

    def __init__(
        self, d_in: int, m: int, d_out: int, *, activation: str, init: Init, bias: bool = True, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.activation, self.dropout = activation, dropout
        self.W_d = nn.Parameter(torch.empty(m, d_in))
        self.b_d = nn.Parameter(torch.zeros(m)) if bias else None
        self.W_u = nn.Parameter(torch.empty(d_out, m))
        self.b_u = nn.Parameter(torch.zeros(d_out)) if bias else None
        begin(self.W_d, self.W_u, init)

    def forward(self, z: Tensor) -> Tensor:
        """z: [*, d_in] -> [*, d_out]. `dropout` acts on the bottleneck, as in He et al."""
        u = ACTIVATIONS[self.activation](F.linear(z, self.W_d, self.b_d))  # [*, m]
        return F.linear(F.dropout(u, self.dropout, self.training), self.W_u, self.b_u)


def begin(down: Tensor, up: Tensor, init: Init) -> None:
    """Set the two weights to their starting values in place.

    zero:    Kaiming-uniform and zero (He et al. 2022, as LoRA): the adapter starts as the identity
    bert:    N(0, 0.02) both (AdapterHub)
    houlsby: N(0, 0.01) cut at two deviations, both (Houlsby et al. 2019, section 3.6)
    """
    with torch.no_grad():
        if init == "zero":
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            nn.init.zeros_(up)
        for weight in (down, up):
            if init == "bert":
                nn.init.normal_(weight, std=0.02)
            elif init == "houlsby":
                nn.init.trunc_normal_(weight, std=1e-2, a=-2e-2, b=2e-2)
