"""Bottleneck adapters: AdapterH (Houlsby), AdapterP (Pfeiffer, MAD-X) and Parallel (He): one formula, three placements.

    A(z) = s (W_u act(W_d z + b_d) + b_u)          W_d: [m, d], W_u: [d, m] starts at zero
    h' = h + A(z)        AdapterH: z = h        AdapterP: z = LN(h + r)        Parallel: z = r

h is the output of a sub-layer before anything is added to it, r the residual, LN the LayerNorm that the model applies
after the addition; a pre-LN model has none, and then z = h + r is the un-normalised residual stream, as in the authors'
code. The model computes LN(h' + r) or h' + r as ever.

Differences: W_u starts at zero in all three (the papers of AdapterH and AdapterP start near the identity:
`init=houlsby`, `init=bert`). AdapterH uses the tanh GELU of its authors' code, `trained=norm.*+head?` also trains the
LayerNorms as that code does. Where a model applies dropout by a function call, h is what goes into it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method, SubLayerDelta
from budwood.core.sublayer import PassOver
from budwood.errors import BadConfig, NoSuchSite
from budwood.methods.gate import Gated, GateOver, check_rows
from budwood.methods.heads import BeforeOutput, MultiHead, output_site
from budwood.methods.invertible import Inverse, Invertible, invertible_sites
from budwood.methods.narrow import Activation, Init, Narrow

_USUAL_WIDTH = 768
"""A model's width, where only a reduction is known."""
_MOST_MOVED = 0.2
"""The rate to start from times s m: measured on demo-lm at widths of 32 and 64. For the sizes and scales of He et al.
it gives 1e-4; they train at 5e-5 to 1e-4."""


@dataclass(frozen=True, kw_only=True)
class Bottleneck(Method):
    """What the three placements share."""

    learning_rate = 3e-3
    reads: ClassVar[Literal["h", "total", "r"]]
    """What the bottleneck reads: h, LN(h + r), or r."""
    standard: ClassVar[Mapping[str, float]]
    """Size or reduction, and scale, where none is given."""
    aliases: ClassVar[Mapping[str, str]] = {
        "bottleneck_size": "size", "reduction_factor": "reduction", "non_linearity": "activation",
        "adapter_dropout": "dropout", "modules_to_save": "trained", "use_gating": "gate", "target_modules": "targets",
        "init_weights": "init", "scaling": "scale", "inv_adapter_reduction_factor": "invertible_reduction",
    }  # fmt: skip

    targets: tuple[str, ...] = ("mlp",)
    """Which sub-layers: attn, cross, mlp, or names of their last linears; a ? at the end means: where there is one."""
    size: int | None = None
    """Width m of the bottleneck."""
    reduction: float | None = None
    """Or the model's width divided by m."""
    sizes: dict[str, int] = field(default_factory=dict, hash=False)
    """Sizes of their own by sub-layer or module name, as attn:8+mlp:32."""
    activation: Activation = "relu"
    """The non-linearity."""
    scale: float | None = None
    """Constant s that the output is multiplied by, or where a trained s starts."""
    learn_scale: Literal["no", "scalar", "channel"] = "no"
    """Train s: one number, or one for each feature. Starts at 1 unless scale says otherwise."""
    dropout: float = 0.0
    """Probability of zeroing a feature of the output, in [0, 1)."""
    inner_dropout: float = 0.0
    """Probability of zeroing a feature of the bottleneck, in [0, 1)."""
    init: Init = "zero"
    """How W_d, W_u start: Kaiming and zero; N(0, 0.02) both; N(0, 0.01) cut at two deviations, both."""
    bias: bool = True
    """Train b_d and b_u."""
    gate: bool = False
    """Multiply the output by a trained gate, one number in (0, 1) a row of the batch."""
    gate_over: GateOver = "text"
    """What the gate is a mean over: the text (in decoders: each token by itself), or padding, too (AdapterHub)."""
    ln_before: bool = False
    """A LayerNorm of its own on what the bottleneck reads."""
    ln_after: bool = False
    """A LayerNorm of its own on the output."""
    adds_residual: bool = True
    """False: the sub-layer returns h' as it is, and the model's own residual and LayerNorm are passed over."""
    leave_out: tuple[int, ...] = ()
    """Blocks without an adapter, counted from 0 (AdapterDrop)."""
    invertible: bool = False
    """Add an invertible adapter (NICE) around the embeddings, as language adapters have (MAD-X)."""
    invertible_reduction: float = 2.0
    """Half of the model's width divided by the size of the invertible adapter's bottlenecks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None and self.reduction is not None:
            raise BadConfig(f"{self.name}: size and reduction both say how wide the bottleneck is; give one")
        for what, size in {"size": self.size, **{f"sizes[{k}]": v for k, v in self.sizes.items()}}.items():
            if size is not None and size < 1:
                raise BadConfig(f"{self.name}: {what} is {size}; it must be at least 1")
        for what, ratio in {"reduction": self.reduction, "invertible_reduction": self.invertible_reduction}.items():
            if ratio is not None and ratio <= 0:
                raise BadConfig(f"{self.name}: {what} is {ratio}; it must be above 0")
        if self.scale is not None and (self.scale == 0 or not math.isfinite(self.scale)):
            raise BadConfig(f"{self.name}: scale is {self.scale}; it must be a number other than 0")
        for what, share in {"dropout": self.dropout, "inner_dropout": self.inner_dropout}.items():
            if not 0 <= share < 1:
                raise BadConfig(f"{self.name}: {what} is {share}; it must be in [0, 1)")

    @property
    def rate(self) -> float:
        """Falls with s m: W_u starts at zero, and an early step of Adam moves the output by its rate times s m."""
        moved = self._size_in(_USUAL_WIDTH) * abs(self.start)
        return min(self.learning_rate, float(f"{_MOST_MOVED / moved:.1g}"))

    @property
    def reading(self) -> Literal["h", "total", "r"]:
        """What the bottleneck reads."""
        return self.reads

    @property
    def is_additive(self) -> bool:
        """An invertible adapter replaces the embeddings, a sub-layer without its residual the stream."""
        return not self.invertible and self.adds_residual

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """The sub-layers, the two ends of an invertible adapter, and LayerNorms that are passed over."""
        sites = anatomy.select_sublayers(*self.targets, layers=self._kept(anatomy))
        for key in self.sizes:
            if not key.endswith("?") and not any(site.matches(key) for site in sites):
                raise NoSuchSite(f"{self.name}: sizes name {key!r}, which is none of the targets")
        return (*sites, *self._around(anatomy), *self._passed_over(sites, anatomy))

    def _around(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Where the invertible adapter acts."""
        if not self.invertible:
            return ()
        around = invertible_sites(anatomy)
        taken = {site.path for site in self.trained_sites(anatomy)}
        if any(site.path in taken for site in around):
            raise BadConfig(
                f"{self.name}: the invertible adapter acts at the output embedding, which `trained` names; choose one"
            )
        return around

    def _passed_over(self, sites: tuple[Site, ...], anatomy: Anatomy) -> tuple[Site, ...]:
        """The LayerNorms after the sub-layers, without the model's residual."""
        if self.adds_residual:
            return ()
        parallel = next((s for s in sites if s.sublayer is not None and s.sublayer.is_parallel), None)
        if parallel is not None:
            raise NoSuchSite(
                f"{self.name}: adds_residual=false at {parallel.path}, where attention and feed-forward are added to "
                "the same residual: it would drop the other one; leave adds_residual as it is"
            )
        norms = {site.path: site for site in anatomy.sites if site.kind == "norm"}
        inside = [s.sublayer for s in sites if s.sublayer is not None]
        return tuple(replace(norms[s.norm], sublayer=s) for s in inside if s.norm is not None)

    def _kept(self, anatomy: Anatomy) -> tuple[int, ...] | None:
        """The layers that get an adapter; None for all."""
        if not self.leave_out:
            return self.layers
        anatomy.select_sublayers(*self.targets, layers=self.layers)  # what is not there is said first
        depth = max(anatomy.num_layers(s.stack) for s in anatomy.sublayers)
        beyond = [layer for layer in self.leave_out if not 0 <= layer < depth]
        if beyond:
            raise BadConfig(f"{self.name}: leave_out names layer {beyond[0]}; this model has layers 0 to {depth - 1}")
        return tuple(n for n in (self.layers or range(depth)) if n not in self.leave_out)

    def size_at(self, site: Site) -> int:
        """The width m at a site of width d."""
        own = next((m for key, m in self.sizes.items() if site.matches(key)), None)
        return self._size_in(site.out_features) if own is None else own

    def _size_in(self, d: int) -> int:
        """The width m where the model is d wide and nothing else is said."""
        if self.size is not None:
            return self.size
        if self.reduction is None and "size" in self.standard:
            return int(self.standard["size"])
        return max(1, int(d // (self.reduction or self.standard["reduction"])))

    @property
    def start(self) -> float:
        """The constant s, or where it starts."""
        if self.scale is not None:
            return self.scale
        return self.standard.get("scale", 1.0) if self.learn_scale == "no" else 1.0

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The bottleneck of a sub-layer, one end of the invertible adapter, or what passes over a LayerNorm."""
        if site.kind == "norm":
            return PassOver(site)
        if site.kind == "sublayer":
            return BottleneckDelta(site, self)
        if site.role == "head.lm":
            return Inverse()
        return Invertible(site, self.invertible_reduction, self.activation, self.init)

    def network(self, site: Site, d_in: int, d_out: int) -> nn.Module:
        """A(z), without its scale."""
        return Narrow(
            d_in, self.size_at(site), d_out,
            activation=self.activation, init=self.init, bias=self.bias, dropout=self.inner_dropout,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sequential(Bottleneck):
    """Options of the adapters that act after the sub-layer."""

    residual: Literal["h", "input", "total"] = "h"
    """What the output is added to: h, what the bottleneck read, or h + r."""
    ln_after_residual: bool = False
    """Apply ln_after to the sum instead of the output alone."""
    stochastic_depth: float = 0.0
    """Probability of leaving the adapter out for a row of the batch while training, in [0, 1)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.stochastic_depth < 1:
            raise BadConfig(f"{self.name}: stochastic_depth is {self.stochastic_depth}; it must be in [0, 1)")
        if self.ln_after_residual and not self.ln_after:
            raise BadConfig(f"{self.name}: ln_after_residual says where ln_after acts; set ln_after=true too")


@dataclass(frozen=True, kw_only=True)
class AdapterH(Sequential):
    """A bottleneck after attention and after the feed-forward."""

    name = "adapter-h"
    paper = "Houlsby et al. 2019, arXiv:1902.00751"
    formula = "h + W_u act(W_d h + b_d) + b_u"
    sizes_to_try = ("size", (64, 16, 256))
    reads = "h"
    standard: ClassVar[Mapping[str, float]] = {"size": 64}

    targets: tuple[str, ...] = ("attn", "mlp")
    size: int | None = None
    """Width m of the bottleneck. [64]"""
    activation: Activation = "gelu_tanh"


@dataclass(frozen=True, kw_only=True)
class AdapterP(Sequential):
    """A bottleneck after the feed-forward, behind the model's own LayerNorm; with `invertible`, a language adapter."""

    name = "adapter-p"
    paper = "Pfeiffer et al. 2021, arXiv:2005.00247; MAD-X, Pfeiffer et al. 2020, arXiv:2005.00052"
    formula = "h + W_u act(W_d LN(h + r) + b_d) + b_u"
    sizes_to_try = ("reduction", (16, 4, 64))
    reads = "total"
    standard: ClassVar[Mapping[str, float]] = {"reduction": 16}

    reduction: float | None = None
    """Or the model's width divided by m. [16]"""


@dataclass(frozen=True, kw_only=True)
class Parallel(Bottleneck):
    """A bottleneck beside the feed-forward, that reads what it reads; for attention in three forms.

    `attention=after` adds s A(r) behind the output projection (AdapterHub); `before` adds A(LN(x)), with a LayerNorm of
    its own and s = 1, to the heads in front of it (He et al., table 5); `multihead` gives every head a bottleneck of
    its own, ReLU(q P_k^T) P_v with the frozen queries q (He et al., section 4.5), where `size` is the number of
    rows of P_k, P_v: [size, d]. There, `ln_before` makes the queries anew from LN(x), unscaled (the authors' BART);
    without it they are the model's own, divided by the root of the head's width (the authors' RoBERTa).
    """

    name = "parallel"
    paper = "He et al. 2022, arXiv:2110.04366"
    formula = "h + s (W_u act(W_d r + b_d) + b_u)"
    sizes_to_try = ("reduction", (2, 8, 32))
    reads = "r"
    standard: ClassVar[Mapping[str, float]] = {"reduction": 2, "scale": 4.0}

    reduction: float | None = None
    """Or the model's width divided by m. [2]"""
    scale: float | None = None
    """Constant s that the output is multiplied by, or where a trained s starts. [4; a trained one 1]"""
    attention: Literal["after", "before", "multihead"] = "after"
    """For the sub-layers attn and cross: behind the output projection, in front of it, or head by head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        behind = {
            "scale": self.scale is not None, "learn_scale": self.learn_scale != "no", "dropout": self.dropout > 0,
            "gate": self.gate, "ln_after": self.ln_after,
        }  # fmt: skip
        alone = all(target.removesuffix("?") in ("attn", "cross") for target in self.targets)
        unread = [key for key, is_set in behind.items() if is_set and alone]
        unread += [] if self.adds_residual else ["adds_residual"]
        if self.attention != "after" and unread:
            raise BadConfig(
                f"parallel: {unread[0]} acts behind the output projection, and attention={self.attention} in front of "
                f"it; leave {unread[0]} out, or use attention=after"
            )
        own = ("activation", "init", "bias", "inner_dropout")
        unread = [key for key in own if vars(self)[key] != vars(Bottleneck)[key] and alone]
        if self.attention == "multihead" and unread:
            raise BadConfig(
                f"parallel: attention=multihead is ReLU(q P_k^T) P_v for each head, whatever {unread[0]} says; leave "
                f"{unread[0]} out, or use attention=before"
            )

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """As for any bottleneck; in front of the output projection, that linear."""
        sites = super().sites(model, anatomy)
        if self.attention == "after":
            return sites
        if not any(site.role in ("attn", "cross") for site in sites):
            raise BadConfig(
                f"parallel: attention={self.attention} says how attention is adapted, and targets are "
                f"{'+'.join(self.targets)}; add attn to them, or leave attention out"
            )
        return tuple(output_site(s, anatomy) if s.role in ("attn", "cross") and s.sublayer else s for s in sites)

    def build(self, site: Site, base: nn.Module) -> Delta:
        """A bottleneck of one of the forms."""
        if site.role not in ("attn.o", "cross.o"):
            return super().build(site, base)
        if self.attention == "multihead":
            return MultiHead(site, self.size_at(site), has_norm=self.ln_before)
        return BeforeOutput(site, self.network(site, site.out_features, site.in_features))


class BottleneckDelta(Gated, SubLayerDelta):
    """h + s A(z), with the options of the method.  A: see `Narrow`; s: [1] or [d] where it is trained.

    Order (AdapterHub's, which He et al. agree with where they overlap): own LayerNorm, A, stochastic depth, s, dropout,
    gate (see `gate`), own LayerNorm, residual.
    """

    def __init__(self, site: Site, method: Bottleneck) -> None:
        assert site.sublayer is not None
        super().__init__(site.sublayer)
        d = site.out_features
        self.reads, self.dropout = method.reading, method.dropout
        self.A = method.network(site, d, d)
        self.ln_before = nn.LayerNorm(d) if method.ln_before else None
        self.ln_after = nn.LayerNorm(d) if method.ln_after else None
        trained = {"no": 0, "scalar": 1, "channel": d}[method.learn_scale]
        self.s = nn.Parameter(torch.full((trained,), method.start)) if trained else None
        self.constant = method.start
        self.open_gate(site, method.gate_over, int(method.gate))
        sequential = method if isinstance(method, Sequential) else None
        self.residual_of = sequential.residual if sequential else "h"
        self.ln_after_residual = sequential is not None and sequential.ln_after_residual
        self.adds_residual = method.adds_residual
        self.stochastic_depth = sequential.stochastic_depth if sequential else 0.0

    @property
    def mixes_tokens(self) -> bool:
        """As a gate does; stochastic depth leaves out whole rows."""
        return super().mixes_tokens or self.stochastic_depth > 0

    def query(self, norm: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        """z, what the bottleneck reads: [*, d]."""
        return h if self.reads == "h" else self.residual.read() if self.reads == "r" else self.normed(h)

    def change(self, base: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        """h' - h: [*, d]."""
        if self.residual_of != "h" or self.ln_after_residual or not self.adds_residual:
            return self(base, x, h) - h
        return self._update(self.query(base, x, h)).to(h.dtype)

    def forward(self, base: nn.Module, x: Tensor, h: Tensor) -> Tensor:
        """h: [*, d] -> h': [*, d]."""
        z = self.query(base, x, h)
        u = self._update(z)
        total = h if self.residual_of == "h" else z if self.residual_of == "input" else self.total(h)
        out = total + u.to(h.dtype)
        if self.ln_after is not None and self.ln_after_residual:
            out = self.ln_after(out.to(u.dtype)).to(h.dtype)
        return out if self.adds_residual else self._alone(out)

    def _update(self, z: Tensor) -> Tensor:
        """z: [*, d] -> what is added, [*, d], in the dtype of the parameters."""
        z = z.to(next(self.parameters()).dtype)
        u = self.A(z if self.ln_before is None else self.ln_before(z))
        if self.training and self.stochastic_depth:
            check_rows(u, "stochastic_depth", self.sublayer.path)
            kept = 1 - self.stochastic_depth
            u = u * (torch.rand(u.shape[0], *(1,) * (u.dim() - 1), device=u.device) < kept) / kept
        u = u * (self.constant if self.s is None else self.s)
        u = F.dropout(u, self.dropout, self.training)
        if self.W_g is not None:
            u = u * self.gate(z)
        return u if self.ln_after is None or self.ln_after_residual else self.ln_after(u)

    def _alone(self, out: Tensor) -> Tensor:
        """What to return so that the model goes on with `out` alone, although it adds the residual and a LayerNorm."""
        return out if self.norms else (out - self.residual.read()) / self.sublayer.scale
