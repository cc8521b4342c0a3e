"""Modules trained in full beside a method: a task head, an output embedding, norms (PEFT's `modules_to_save`)."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core.delta import Delta
from budwood.errors import NoSuchSite


class Trained(Delta):
    """A copy of the site's weights, trained in the base's place: y = copy(x).

    weight: as the base's, [out, in] (Conv1D: [in, out]; embedding: [vocabulary, out]; norm: [d]);  bias: [out] or None.
    """

    def __init__(self, site: Site, base: nn.Module) -> None:
        super().__init__()
        weight, bias = base._parameters.get("weight"), base._parameters.get("bias")
        plain = type(base) is nn.Embedding if site.kind == "embedding" else site.is_linear or site.kind == "norm"
        if not plain or weight is None:
            raise NoSuchSite(
                f"{site.path} is a {type(base).__name__}; only linears, norms and plain embeddings can be trained "
                "in full beside a method"
            )
        if site.kind == "norm" and len(inspect.signature(base.forward).parameters) != 1:
            raise NoSuchSite(
                f"{site.path} is a {type(base).__name__}, which reads more than hidden states (a gate), so a copy "
                f"of it cannot be trained beside a method; leave {site.role} out of `trained`"
            )
        self.kind = site.kind
        self.padding_idx = base.padding_idx if isinstance(base, nn.Embedding) else None
        dtype = trainable_dtype(weight)
        self.weight = nn.Parameter(weight.detach().to(dtype, copy=True))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().to(dtype, copy=True)))
        self.bias: nn.Parameter | None
        self.norms: tuple[nn.Module, ...] = (self._copy_of(base),) if site.kind == "norm" else ()
        """In a tuple: its parameters are registered here."""

    def _copy_of(self, norm: nn.Module) -> nn.Module:
        """A norm of the same class and settings whose parameters are this delta's."""
        copied = object.__new__(type(norm))
        copied.__dict__.update(vars(norm), _parameters=self._parameters, _modules={})
        return copied

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Replaces y. x: [*, in], or [*] int64 at an embedding."""
        if self.norms:
            return self.norms[0].forward(x.to(self.weight.dtype)).to(y.dtype)
        if self.kind == "embedding":
            return F.embedding(x, self.weight, self.padding_idx).to(y.dtype)
        weight = self.weight if self.kind == "linear" else self.weight.T
        return F.linear(x.to(weight.dtype), weight, self.bias).to(y.dtype)

    def fold(self, base: nn.Module) -> dict[str, Tensor]:
        """The copy takes the base's place."""
        return {"weight": self.weight} if self.bias is None else {"weight": self.weight, "bias": self.bias}


def trainable_dtype(weight: Tensor) -> torch.dtype:
    """float32, or float64 on a float64 base: small updates are lost in 16 bits."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32
