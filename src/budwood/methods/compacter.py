"""Compacter: adapters of sums of Kronecker products (Karimi Mahabadi et al. 2021, arXiv:2106.04647, eq. 7 and 9).

    W = sum_i R_i (x) (L_i T_i)        R: [n, n, n], one for all sites; L: [n, in/n, rank], T: [n, rank, out/n]
    A(z) = act(z W_d + b_d) W_u + b_u

The placement is AdapterH's, with `targets=mlp` Compacter++ (AdapterHub's has `placement=adapter-p` as well).

Differences: T of the up-projection starts at zero (the authors: Glorot), so that the adapter starts as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core import Delta, adapter_of, delta_at
from budwood.core.weights import check_whole
from budwood.errors import BadConfig
from budwood.methods.bottleneck import BottleneckDelta, Sequential
from budwood.methods.narrow import ACTIVATIONS, Activation


@dataclass(frozen=True, kw_only=True)
class Compacter(Sequential):
    """Bottlenecks whose weights are sums of Kronecker products."""

    name = "compacter"
    paper = "Karimi Mahabadi et al. 2021, arXiv:2106.04647"
    formula = "h + A(h), W = sum_i R_i (x) (L_i T_i)"
    sizes_to_try = ("reduction", (32, 8))
    learning_rate = 3e-3
    standard: ClassVar[Mapping[str, float]] = {"reduction": 32}
    aliases: ClassVar[Mapping[str, str]] = {
        **Sequential.aliases, "phm_dim": "n", "phm_rank": "rank", "phm_bias": "bias", "learn_phm": "learn_rule",
    }  # fmt: skip

    targets: tuple[str, ...] = ("attn", "mlp")
    reduction: float | None = None
    """Or the model's width divided by m. [32]"""
    activation: Activation = "gelu"
    placement: Literal["adapter-h", "adapter-p"] = "adapter-h"
    """Whose placement: behind the sub-layer, or behind the model's LayerNorm as well."""
    n: int = 4
    """Number of Kronecker products; divides the model's width and the bottleneck's."""
    rank: int = 1
    """Rank of L T."""
    shares_rule: bool = True
    """One R for all sites; otherwise two for each."""
    factorized_rule: bool = False
    """Make each R_i the product of a column and a row."""
    learn_rule: bool = True
    """Train R."""
    factorized: bool = True
    """L T instead of one matrix."""
    shares_weights: bool = False
    """One pair of weights for all sites, which then have to be equally wide."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, number in {"n": self.n, "rank": self.rank}.items():
            if number < 1:
                raise BadConfig(f"compacter: {what} is {number}; it must be at least 1")
        if self.init != "zero":
            raise BadConfig("compacter has an init of its own; leave init out")

    @property
    def reading(self) -> Literal["h", "total", "r"]:
        """By the placement."""
        return "h" if self.placement == "adapter-h" else "total"

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The adapter of a sub-layer, or one end of the invertible adapter."""
        return CompacterDelta(site, self) if site.kind == "sublayer" else super().build(site, base)

    def network(self, site: Site, d_in: int, d_out: int) -> nn.Module:
        """A(z) of Kronecker products. Raises BadConfig where n does not divide a width."""
        m = self.size_at(site)
        for what, width in {"model": d_in, "bottleneck": m}.items():
            if width % self.n:
                raise BadConfig(
                    f"compacter: n is {self.n}, which does not divide the {what}'s width {width} at {site.path}; "
                    "choose another n, or a size that n divides"
                )
        return KroneckerNarrow(d_in, m, self)


class KroneckerNarrow(nn.Module):
    """A(z).  R_d, R_u: [n, n, n] (None where another site's is used; R_u also where R_d serves both);
    W_d, W_u: see `Kronecker`;  b_d: [m], b_u: [d]."""

    def __init__(self, d: int, m: int, method: Compacter) -> None:
        super().__init__()
        self.activation, self.dropout = method.activation, method.inner_dropout
        self.shares_rule, self.shares_weights = method.shares_rule, method.shares_weights
        self.R_d: Rule | None = Rule(method)
        self.R_u: Rule | None = None if method.shares_rule else Rule(method)
        self.W_d: Kronecker | None = Kronecker(d, m, method)
        self.W_u: Kronecker | None = Kronecker(m, d, method)
        self.W_u.silence()
        self.b_d = nn.Parameter(torch.zeros(m)) if method.bias else None
        self.b_u = nn.Parameter(torch.zeros(d)) if method.bias else None
        self.size = (d, m)
        self.owner: tuple[KroneckerNarrow, ...] = ()  # in a tuple: its parameters are registered there

    def borrow(self, owner: KroneckerNarrow) -> None:
        """Use what is shared of the first site's, and hold none of it."""
        self.owner = (owner,)
        if self.shares_rule:
            self.R_d = None
        if self.shares_weights:
            self.W_d = self.W_u = None

    def forward(self, z: Tensor) -> Tensor:
        """z: [*, d] -> [*, d]."""
        source = self.owner[0] if self.owner else self
        rule = source if self.shares_rule else self
        weights = source if self.shares_weights else self
        assert rule.R_d is not None and weights.W_d is not None and weights.W_u is not None
        if source is not self:
            check_whole(next(source.parameters()), "compacter with what its sites share")
        R_d: Tensor = rule.R_d()
        R_u: Tensor = R_d if rule.R_u is None else rule.R_u()
        W_d: Tensor = weights.W_d(R_d)
        W_u: Tensor = weights.W_u(R_u)
        u = ACTIVATIONS[self.activation](F.linear(z, W_d.T, self.b_d))  # [*, m]
        return F.linear(F.dropout(u, self.dropout, self.training), W_u.T, self.b_u)


class Rule(nn.Module):
    """R: [n, n, n], N(0, 0.0001); or the product of `left` [n, n, 1] and `right` [n, 1, n]."""

    def __init__(self, method: Compacter) -> None:
        super().__init__()
        n, learns = method.n, method.learn_rule
        factors = {"left": (n, n, 1), "right": (n, 1, n)} if method.factorized_rule else {"R": (n, n, n)}
        for name, shape in factors.items():
            value = torch.randn(shape) * 1e-4
            if learns:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)
        self.is_factorized = method.factorized_rule

    def forward(self) -> Tensor:
        """[n, n, n]."""
        own = {**self._parameters, **self._buffers}
        return _product(own["left"], own["right"]) if self.is_factorized else _one(own["R"])


class Kronecker(nn.Module):
    """sum_i R_i (x) M_i: [in, out], with M_i = L_i T_i or M itself.  L: [n, in/n, rank], T: [n, rank, out/n]."""

    def __init__(self, d_in: int, d_out: int, method: Compacter) -> None:
        super().__init__()
        n, rows, columns = method.n, d_in // method.n, d_out // method.n
        shapes = (
            {"L": (n, rows, method.rank), "T": (n, method.rank, columns)}
            if method.factorized
            else {"M": (n, rows, columns)}
        )
        for name, shape in shapes.items():
            weight = nn.Parameter(torch.empty(shape))
            for matrix in weight.data:
                nn.init.xavier_normal_(matrix)
            self.register_parameter(name, weight)
        self.is_factorized = method.factorized

    def silence(self) -> None:
        """Start at zero."""
        nn.init.zeros_(self.get_parameter("T" if self.is_factorized else "M"))

    def forward(self, R: Tensor) -> Tensor:
        """R: [n, n, n] -> [in, out]."""
        own = self._parameters
        M = _product(own["L"], own["T"]) if self.is_factorized else _one(own["M"])  # [n, in/n, out/n]
        return torch.einsum("iab,icd->acbd", R, M).flatten(2, 3).flatten(0, 1)


class CompacterDelta(BottleneckDelta):
    """A bottleneck of Kronecker products that shares with the adapter's first site."""

    def settle(self, model: nn.Module, name: str) -> None:
        """Find the norm, and the first site's weights. Raises BadConfig where these do not fit."""
        super().settle(model, name)
        _, adapter = adapter_of(model, name)
        first = delta_at(model, next(site for site in adapter.sites if site.kind == "sublayer"), name)
        assert isinstance(first, CompacterDelta)
        if first is not self:
            ours, theirs = self.A, first.A
            assert isinstance(ours, KroneckerNarrow) and isinstance(theirs, KroneckerNarrow)
            if ours.shares_weights and ours.size != theirs.size:
                raise BadConfig(
                    f"compacter: shares_weights needs bottlenecks of one width; {self.sublayer.path} is {ours.size[0]} "
                    f"wide with {ours.size[1]}, {first.sublayer.path} {theirs.size[0]} with {theirs.size[1]}"
                )
            ours.borrow(theirs)


def _one(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight


def _product(a: Tensor | None, b: Tensor | None) -> Tensor:
    return _one(a) @ _one(b)
