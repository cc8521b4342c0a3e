"""Invertible adapters (MAD-X, Pfeiffer et al. 2020, arXiv:2005.00052, section 3.3): a part of methods, not a method.

    x = [x1, x2]    y1 = x1 + F(x2)    y2 = x2 + G(y1)          (NICE)
    inverse:        x2 = y2 - G(y1)    x1 = y1 - F(x2)

F and G are bottlenecks. The first block of the model (of the encoder, where there are two stacks) reads y instead of x;
the output embedding of a language model reads the inverse (of an encoder-decoder, too, as with AdapterHub's own heads;
with transformers' heads that library leaves the inverse out, which is mended here).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, cat, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, anatomy_of, delta_at
from budwood.core.weights import check_whole
from budwood.errors import NoSuchSite
from budwood.methods.narrow import Init, Narrow


def invertible_sites(anatomy: Anatomy) -> tuple[Site, ...]:
    """The first block, and the output embedding of a language model."""
    blocks = [site for site in anatomy.sites if site.role == "block"]
    first = blocks[0]
    if first.path in anatomy.repeated:
        raise NoSuchSite(
            f"an invertible adapter acts once, and {first.path} runs several times in a forward (shared layers); "
            "leave invertible=true out"
        )
    heads = tuple(site for site in anatomy.sites if site.role == "head.lm")
    widths = {site.path: site.out_features for site in anatomy.sites if site.role == "embed"}
    widths |= {head.path: head.in_features for head in heads}
    other = next((path for path, width in widths.items() if width != first.in_features), None)
    if other is not None:
        raise NoSuchSite(
            f"an invertible adapter acts between embeddings and blocks, and here {other} is {widths[other]} wide and "
            f"{first.path} {first.in_features}; leave invertible=true out"
        )
    return (replace(first, layer=None), *heads)  # of no layer: to skip one half of it alone would be wrong


class Invertible(Delta):
    """What the first block reads: y of x.  F: [.., d - d//2] -> [.., d//2], G the other way."""

    def __init__(self, site: Site, reduction: float, activation: str, init: Init) -> None:
        super().__init__()
        d1 = site.in_features // 2
        d2 = site.in_features - d1
        self.split = (d1, d2)
        self.F = Narrow(d2, max(1, int(d2 / reduction)), d1, activation=activation, init=init)
        self.G = Narrow(d1, max(1, int(d1 / reduction)), d2, activation=activation, init=init)

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, d] -> [*, d]."""
        x1, x2 = x.to(self.F.W_d.dtype).split(self.split, dim=-1)
        y1 = x1 + self.F(x2)
        return cat([y1, x2 + self.G(y1)], dim=-1).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        """y: [*, d] -> [*, d], with enter(inverse(y)) = y."""
        y1, y2 = y.to(self.F.W_d.dtype).split(self.split, dim=-1)
        x2 = y2 - self.G(y1)
        return cat([y1 - self.F(x2), x2], dim=-1).to(y.dtype)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y


class Inverse(Delta):
    """What the output embedding reads: the inverse, with the parameters of the `Invertible` at the first block."""

    def __init__(self) -> None:
        super().__init__()
        self.partner: tuple[Invertible, ...] = ()  # in a tuple: its parameters are registered there

    def settle(self, model: nn.Module, name: str) -> None:
        """Find the other end."""
        delta = delta_at(model, invertible_sites(anatomy_of(model))[0], name)
        assert isinstance(delta, Invertible)
        self.partner = (delta,)

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, d] -> [*, d]."""
        (partner,) = self.partner
        check_whole(partner.F.W_d, "an invertible adapter")
        return partner.inverse(x)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y
