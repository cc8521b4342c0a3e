"""AdapterFusion: attention over trained adapters (Pfeiffer et al. 2021, arXiv:2005.00247, section 3.2).

    p = softmax_i((W_Q z + b_Q) . (W_K u_i + b_K))        h' = h + sum_i p_i W_V u_i

u_i is what adapter i adds at a site, z what the last of them reads there. W_V starts as the identity with 1e-6 beside
the diagonal and is pulled towards it by `regularization` times its squared distance; there is no 1/sqrt(d).

Differences: u_i is what an adapter of any method adds to the output of a site, so LoRA can be fused too. The authors'
library drops scores before the softmax and so does this; it back-propagates the penalty one step late, and this does
not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Fuse, Method, Mixer, Plan, adapter_of, adapters, delta_at
from budwood.core.trained import Trained
from budwood.errors import BadConfig, NoSuchSite


@dataclass(frozen=True, kw_only=True)
class Fusion(Method):
    """Attention over adapters that are already trained."""

    name = "fusion"
    paper = "Pfeiffer et al. 2021, arXiv:2005.00247"
    formula = "h + sum_i softmax_i(W_Q z . W_K u_i) W_V u_i"
    learning_rate = 5e-5
    unused: ClassVar[tuple[str, ...]] = ("targets", "layers")

    of: tuple[str, ...] = ()
    """Names of the attached adapters that it mixes, at least two; all there are when empty."""
    query: bool = True
    """Train W_Q, b_Q; otherwise z asks as it is."""
    key: bool = True
    """Train W_K, b_K; otherwise u_i answers as it is."""
    value: bool = True
    """Train W_V; otherwise u_i is mixed as it is."""
    dropout: float = 0.0
    """Probability of zeroing a score before the softmax, in [0, 1)."""
    temperature: float = 1.0
    """What scores are divided by."""
    regularization: float = 0.01
    """Weight of the squared distance of W_V from the identity in the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets or self.layers:
            raise BadConfig("fusion acts where its adapters act; leave targets and layers out")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"fusion: dropout is {self.dropout}; it must be in [0, 1)")
        if self.temperature <= 0:
            raise BadConfig(f"fusion: temperature is {self.temperature}; it must be above 0")

    def resolved(self, model: nn.Module, anatomy: Anatomy) -> Self:
        """With the names of all attached adapters where none are given."""
        return self if self.of else replace(self, of=tuple(adapters(model)))

    def plan(self, name: str) -> Plan:
        """All of `of`, fused."""
        return Fuse(self.of, by=name)

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """Every site where two of them act: one alone has nothing to be weighed against, and adds what it adds.

        Raises BadConfig or NoSuchSite for adapters that cannot be fused.
        """
        if len(set(self.of)) < 2:
            raise BadConfig(
                f"fusion mixes at least two attached adapters, and here are {', '.join(self.of) or 'none'}: attach "
                "them first, on the command line with --on FOLDER --on FOLDER"
            )
        found: dict[str, Site] = {}
        shared: dict[str, Site] = {}
        heads = {site.path for site in self.trained_sites(anatomy)}
        for name in self.of:
            _, adapter = adapter_of(model, name)
            if adapter.unfrozen or not adapter.method.is_additive:
                raise BadConfig(f"fusion: {name!r} replaces what it acts on, so it cannot be mixed with others")
            for site in adapter.sites:
                delta = delta_at(model, site, name)
                if site.path in heads:
                    continue
                if isinstance(delta, Trained):
                    raise NoSuchSite(
                        f"fusion: {name!r} trains {site.path} itself, and a fusion can have only its own: "
                        "leave `trained` out, or load the adapters without their heads"
                    )
                if delta.enters or isinstance(delta, Mixer):
                    raise NoSuchSite(
                        f"fusion: {name!r} does not add to the output of {site.path} ({type(delta).__name__}), so "
                        "there is nothing to mix; leave it out"
                    )
                if site.path in found:
                    shared[site.path] = site
                found[site.path] = site
        if not shared:
            raise NoSuchSite(
                f"fusion: no two of {', '.join(self.of)} act at one site, so there is nothing to weigh; use Sum"
            )
        return tuple(shared.values())

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The attention of one site."""
        return FusionDelta(site.out_features, self)


class FusionDelta(Mixer):
    """The attention over adapters at one site.  W_Q, W_K, W_V: [d, d], b_Q, b_K: [d]."""

    def __init__(self, d: int, method: Fusion) -> None:
        super().__init__()
        self.dropout, self.temperature, self.regularization = method.dropout, method.temperature, method.regularization
        self.W_Q, self.b_Q = _linear(d, method.query)
        self.W_K, self.b_K = _linear(d, method.key)
        self.W_V = nn.Parameter(torch.eye(d) + 1e-6 * (1 - torch.eye(d))) if method.value else None

    def mix(self, query: Tensor, changes: list[Tensor], y: Tensor) -> Tensor:
        """query, y and each of changes: [*, d] -> [*, d]."""
        dtype = next(self.parameters()).dtype
        u = torch.stack(changes, dim=-2).to(dtype)  # [*, n, d]
        q = query.to(dtype) if self.W_Q is None else F.linear(query.to(dtype), self.W_Q, self.b_Q)  # [*, d]
        k = u if self.W_K is None else F.linear(u, self.W_K, self.b_K)  # [*, n, d]
        scores = (k @ q.unsqueeze(-1)).squeeze(-1)  # [*, n]
        p = torch.softmax(F.dropout(scores, self.dropout, self.training) / self.temperature, dim=-1)
        v = u if self.W_V is None else F.linear(u, self.W_V)
        return (p.unsqueeze(-2) @ v).squeeze(-2).to(y.dtype)

    def penalty(self) -> Tensor | None:
        """regularization ||I - W_V||^2: []."""
        if self.W_V is None or not self.regularization:
            return None
        identity = torch.eye(self.W_V.shape[0], dtype=self.W_V.dtype, device=self.W_V.device)
        return self.regularization * (identity - self.W_V).square().sum()


def _linear(d: int, is_trained: bool) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    if not is_trained:
        return None, None
    return nn.Parameter(torch.randn(d, d) * 0.02), nn.Parameter(torch.zeros(d))
