"""Deltas of sub-layers: what the attention or feed-forward adds to the residual stream, with that stream at hand."""

from __future__ import annotations

from torch import Tensor, nn

from budwood.anatomy import Site, SubLayer
from budwood.core.delta import Delta, Source, deltas_of
from budwood.core.trained import Trained


class SubLayerDelta(Delta):
    """A delta that replaces the output h of a sub-layer, y = norm(r + scale h), and can read r and the norm.

    h, r: [*, d].  `norm` is the LayerNorm that the model applies after the addition (post-LN), None in pre-LN models.
    """

    def __init__(self, sublayer: SubLayer) -> None:
        super().__init__()
        self.sublayer = sublayer
        self.residual = Source(*sublayer.r)
        self.sources = (self.residual,)
        self.norms: tuple[nn.Module, ...] = ()  # in a tuple: the base's modules are not ours to register

    def settle(self, model: nn.Module, name: str) -> None:
        """Find the norm: the adapter's own where it trains that, so that one norm is used twice."""
        path = self.sublayer.norm
        self.norms = () if path is None else (model.get_submodule(path),)
        for norm in self.norms:
            deltas = deltas_of(norm)
            if deltas is not None and name in deltas and isinstance(deltas[name], Trained):
                self.norms = (deltas[name],)

    def total(self, h: Tensor) -> Tensor:
        """r + scale h: [*, d]."""
        r = self.residual.read()
        return r + h if self.sublayer.scale == 1 else r + self.sublayer.scale * h

    def normed(self, h: Tensor) -> Tensor:
        """norm(r + scale h), what the model makes of h: [*, d], by the base's norm or the adapter's copy of it."""
        total = self.total(h)
        for norm in self.norms:
            total = norm(norm, total, total) if isinstance(norm, Trained) else norm.forward(total)
        return total


class PassOver(Delta):
    """At a LayerNorm after a sub-layer with adds_residual=false: returns h' in the place of LN(h' + r)."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        assert site.sublayer is not None
        self.left = Source(site.sublayer.path, "output")  # with what adapters further up in a Stack made of it
        self.sources = (self.left,)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [*, d] -> [*, d]."""
        return self.left.read()
