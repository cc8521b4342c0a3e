"""LLM-Adapters' bottlenecks (Hu et al. 2023, arXiv:2304.01933): one for each linear, without biases.

    adapter-h    gate, up: W (x + A(x))        down: o + A(o)        (each linear its own adapter, none at attention)
    adapter-p    down: o + A(o)
    parallel     W x + s A(x) at queries, keys and values, or anywhere

A(z) = W_u tanh(W_d z). These are not the adapters of the papers whose names they bear: see `adapter-h`, `adapter-p` and
`parallel` for those. W_u starts at zero (the authors: N(0, 0.02)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.errors import BadConfig, NoSuchSite
from budwood.methods.narrow import Activation, Init, Narrow

STANDARD = {
    "adapter-h": ("mlp.gate?", "mlp.up?", "mlp.gate_up?", "mlp.down"),
    "adapter-p": ("mlp.down",),
    "parallel": ("attn.q", "attn.k", "attn.v"),
}
"""Where the authors put each form."""


@dataclass(frozen=True, kw_only=True)
class LinearAdapter(Method):
    """A bottleneck at each of some linears, as in LLM-Adapters."""

    name = "linear-adapter"
    paper = "Hu et al. 2023, arXiv:2304.01933"
    formula = "o + W_u act(W_d o), W (x + W_u act(W_d x)), or W x + s W_u act(W_d x)"
    sizes_to_try = ("size", (256, 64))
    learning_rate = 5e-4
    aliases: ClassVar[Mapping[str, str]] = {
        "bottleneck_size": "size", "non_linearity": "activation", "adapter_dropout": "dropout", "scaling": "scale",
        "target_modules": "targets", "modules_to_save": "trained",
    }  # fmt: skip

    form: Literal["adapter-h", "adapter-p", "parallel"] = "adapter-h"
    """Which of the three; says where it acts when targets are left out."""
    size: int = 256
    """Width m of the bottleneck; never more than the linear's."""
    activation: Activation = "tanh"
    """The non-linearity."""
    scale: float = 1.0
    """Constant s that the output is multiplied by."""
    dropout: float = 0.0
    """Probability of zeroing a feature that the adapter reads, in [0, 1)."""
    bias: bool = False
    """Train b_d and b_u."""
    init: Init = "zero"
    """How W_d, W_u start: Kaiming and zero; N(0, 0.02) both; N(0, 0.01) cut at two deviations, both."""
    before: tuple[str, ...] = ("mlp.gate?", "mlp.up?", "mlp.gate_up?")
    """Which of the targets of the form adapter-h are adapted at their input instead of their output."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets:
            object.__setattr__(self, "targets", STANDARD[self.form])
        if self.size < 1:
            raise BadConfig(f"linear-adapter: size is {self.size}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"linear-adapter: dropout is {self.dropout}; it must be in [0, 1)")
        if self.form != "adapter-h" and self.before != LinearAdapter.before:
            raise BadConfig(
                f"linear-adapter: before says which linears the form adapter-h adapts at their input, and form is "
                f"{self.form}; leave before out"
            )

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """As for any method; parts of fused projections are refused."""
        sites = super().sites(model, anatomy)
        part = next((site for site in sites if site.chosen), None)
        if part is not None:
            raise NoSuchSite(
                f"linear-adapter acts on whole linears, and {', '.join(part.chosen)} is a part of {part.path}; "
                f"use targets={part.role}"
            )
        for key in self.before:
            if not key.endswith("?") and not any(site.matches(key) for site in sites):
                raise NoSuchSite(f"linear-adapter: before names {key!r}, which is none of the targets")
        return sites

    def build(self, site: Site, base: nn.Module) -> Delta:
        """A bottleneck for one linear."""
        if not site.is_linear:
            raise NoSuchSite(f"linear-adapter acts on linears; {site.path} ({site.role}) is a {type(base).__name__}")
        if self.form == "parallel":
            return BesideLinear(site, self)
        return BeforeLinear(site, self) if self.is_before(site) else AfterLinear(site, self)

    def is_before(self, site: Site) -> bool:
        """True where the form adapter-h changes what the linear reads."""
        return self.form == "adapter-h" and any(site.matches(key) for key in self.before)

    def network(self, d_in: int, d_out: int) -> Narrow:
        """The bottleneck of one linear."""
        return Narrow(d_in, min(self.size, d_in), d_out, activation=self.activation, init=self.init, bias=self.bias)


class _Linear(Delta):
    """What the three forms share: s A(drop(z))."""

    def __init__(self, method: LinearAdapter, d_in: int, d_out: int) -> None:
        super().__init__()
        self.scale, self.dropout = method.scale, method.dropout
        self.A = method.network(d_in, d_out)

    def update(self, z: Tensor) -> Tensor:
        """z: [*, d_in] -> [*, d_out]."""
        return self.scale * self.A(F.dropout(z, self.dropout, self.training).to(self.A.W_d.dtype)).to(z.dtype)


class BeforeLinear(_Linear):
    """W (x + s A(x)) + b."""

    def __init__(self, site: Site, method: LinearAdapter) -> None:
        super().__init__(method, site.in_features, site.in_features)

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, in] -> [*, in]."""
        return x + self.update(x)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y


class AfterLinear(_Linear):
    """o + s A(o)."""

    def __init__(self, site: Site, method: LinearAdapter) -> None:
        super().__init__(method, site.out_features, site.out_features)

    def change(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [*, out] -> [*, out]."""
        return self.update(y)


class BesideLinear(_Linear):
    """W x + b + s A(x)."""

    def __init__(self, site: Site, method: LinearAdapter) -> None:
        super().__init__(method, site.in_features, site.out_features)

    def change(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x: [*, in], y: [*, out] -> [*, out]."""
        return self.update(x).to(y.dtype)
