"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper (Liu et al. 2022, arXiv:2205.05638, 3.3).

    k: l * K    v: l * V    feed-forward: W_2 (l * act(W_1 x))        l starts at one

On keys and values `l` scales the outputs; at a feed-forward site it scales what the last linear reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.core.weights import rows_of, stored_as, weight_of
from budwood.errors import NoSuchSite


@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """Learned vectors that rescale keys, values and feed-forward activations."""

    name = "ia3"
    paper = "Liu et al. 2022, arXiv:2205.05638"
    formula = "l * K, l * V, W_2 (l * act(W_1 x))"
    learning_rate = 1e-2
    aliases: ClassVar[Mapping[str, str]] = {
        "target_modules": "targets", "feedforward_modules": "feedforward", "modules_to_save": "trained",
    }  # fmt: skip

    targets: tuple[str, ...] = ("attn.k", "attn.v", "cross.k?", "cross.v?", "mlp.down")
    """Where it acts: roles, or names of modules; a ? at the end means: where there is one."""
    feedforward: tuple[str, ...] = ("mlp.*?",)
    """Which of the targets are scaled at their input instead of their output."""

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """As for any method; every name in `feedforward` has to match one of them."""
        sites = super().sites(model, anatomy)
        for key in self.feedforward:
            if not key.endswith("?") and not any(site.matches(key) for site in sites):
                raise NoSuchSite(f"ia3: feedforward names {key!r}, which is none of the targets")
        return sites

    def build(self, site: Site, base: nn.Module) -> Delta:
        """A vector for one linear."""
        if not site.is_linear:
            raise NoSuchSite(f"ia3 acts on linears; {site.path} ({site.role}) is a {type(base).__name__}")
        return IA3Input(site) if self.scales_input(site) else IA3Output(site)

    def scales_input(self, site: Site) -> bool:
        """True where the vector scales what the site reads."""
        return any(site.matches(key) for key in self.feedforward)


class IA3Output(Delta):
    """l * y.  l: [out], or the chosen parts' outputs of a fused linear."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        parts = [part for part in site.parts if part.role in site.chosen]
        self.register_buffer("rows", torch.cat([rows_of(p) for p in parts]) if parts else None, persistent=False)
        self.rows: Tensor | None
        self.out_features = site.out_features
        self.l = nn.Parameter(torch.ones(site.out_features if self.rows is None else len(self.rows)))

    def whole(self) -> Tensor:
        """The vector for the whole output: [out], one outside the chosen parts."""
        if self.rows is None:
            return self.l
        return self.l.new_ones(self.out_features).index_copy(0, self.rows, self.l)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [*, out] -> [*, out]."""
        return (y * self.whole()).to(y.dtype)

    def fold(self, base: nn.Module) -> dict[str, Tensor]:
        """Rows of W, and b, times l."""
        scale = self.whole()
        folded = {"weight": stored_as(base, weight_of(base).to(scale.dtype) * scale.unsqueeze(1))}
        bias = base._parameters.get("bias")
        return folded if bias is None else {**folded, "bias": bias.to(scale.dtype) * scale}


class IA3Input(Delta):
    """W (l * x) + b.  l: [in]."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.ones(site.in_features))

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, in] -> [*, in]."""
        return (x * self.l).to(x.dtype)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y

    def fold(self, base: nn.Module) -> dict[str, Tensor]:
        """Columns of W times l."""
        return {"weight": stored_as(base, weight_of(base).to(self.l.dtype) * self.l)}
