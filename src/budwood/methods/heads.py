"""Parallel adapters for attention, in front of the output projection (He et al. 2022, arXiv:2110.04366): a part of
methods, not a method.

    before:     o = W_o (concat(heads) + A(LN(x)))
    multihead:  o = W_o concat(head_i + ReLU(q_i P_k,i^T) P_v,i)

x is what attention reads, q_i = (W_q x)_i a head's query before any rotation, W_o and W_q stay frozen.
"""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Source, anatomy_of
from budwood.core.weights import rows_of
from budwood.errors import NoSuchSite
from budwood.methods.narrow import begin


def output_site(site: Site, anatomy: Anatomy) -> Site:
    """The output projection of an attention sub-layer, as a linear. Raises NoSuchSite where queries are not plain."""
    assert site.sublayer is not None
    query = query_site(site, anatomy)
    path, end = site.sublayer.r
    readers = {s.path for s in anatomy.sites if s.is_linear or s.kind == "norm"}
    if site.sublayer.norm is not None and end == "input" and path not in readers:  # Longformer: [tokens, batch, d]
        raise NoSuchSite(
            f"parallel: {query.path} does not read the stream as it is but rearranged, so what is made of it does not "
            f"fit the rows at {site.sublayer.linear}; use attention=after"
        )
    return replace(next(s for s in anatomy.sites if s.path == site.sublayer.linear), sublayer=site.sublayer)


def query_site(site: Site, anatomy: Anatomy) -> Site:
    """The projection that makes the queries of the same attention."""
    family = "cross" if site.role.startswith("cross") else "attn"
    wanted = (f"{family}.q", f"{family}.qkv")
    beside = [s for s in anatomy.sites if s.role in wanted and (s.stack, s.layer) == (site.stack, site.layer)]
    if not beside:
        raise NoSuchSite(f"parallel: {site.path} has no plain query projection; use attention=after")
    return beside[0]


class BeforeOutput(Delta):
    """A(LN(x)), added to the concatenated heads. x: [*, d] is what the query projection reads."""

    def __init__(self, site: Site, A: nn.Module) -> None:
        super().__init__()
        self.site, self.A = site, A
        self.ln = nn.LayerNorm(site.out_features)

    def settle(self, model: nn.Module, name: str) -> None:
        """Read what goes into the query projection."""
        self.sources = (Source(query_site(self.site, anatomy_of(model)).path, "input"),)

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, heads * d_h] -> the same."""
        (source,) = self.sources
        z = source.read().to(self.ln.weight.dtype)
        return x + self.A(self.ln(z)).to(x.dtype)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y


class MultiHead(Delta):
    """ReLU(q_i P_k,i^T) P_v,i, added to every head i.  P_k, P_v: [m, heads * d_h]; P_v starts at zero.

    With `has_norm`, q = W_q LN(x) as it is (the authors' BART); without, q = W_q x / sqrt(d_h) (their RoBERTa).
    """

    def __init__(self, site: Site, m: int, *, has_norm: bool) -> None:
        super().__init__()
        self.site, self.heads = site, 1
        self.P_k, self.P_v = (
            nn.Parameter(torch.empty(m, site.in_features)),
            nn.Parameter(torch.empty(m, site.in_features)),
        )
        begin(self.P_k, self.P_v, "zero")
        assert site.sublayer is not None
        self.ln = nn.LayerNorm(site.out_features) if has_norm else None
        self.queries: tuple[nn.Module, ...] = ()  # in a tuple: not ours to register
        self.register_buffer("rows", None, persistent=False)
        self.rows: Tensor | None

    def settle(self, model: nn.Module, name: str) -> None:
        """Find the query projection and how many heads there are. Raises NoSuchSite where they do not divide it."""
        query = query_site(self.site, anatomy_of(model))
        part = next((p for p in query.parts if p.role.endswith(".q")), None)
        width = query.out_features if part is None else part.size
        self.heads = _heads(model, self.site)
        if width != self.site.in_features or width % self.heads:
            raise NoSuchSite(
                f"parallel: the queries of {query.path} are {width} wide and {self.site.path} reads "
                f"{self.site.in_features} from {self.heads} heads; use attention=before or after"
            )
        if part is not None:
            self.rows = rows_of(part).to(self.P_k.device)
        self.queries = (model.get_submodule(query.path),)
        self.sources = (Source(query.path, "output" if self.ln is None else "input"),)

    def enter(self, x: Tensor) -> Tensor:
        """x: [*, heads * d_h] -> the same."""
        q = self._query()  # [*, heads * d_h]
        q = q.unflatten(-1, (self.heads, -1))  # [*, heads, d_h]
        P_k, P_v = (P.unflatten(-1, (self.heads, -1)) for P in (self.P_k, self.P_v))  # [m, heads, d_h]
        weights = F.relu(torch.einsum("...hd,mhd->...hm", q, P_k))
        return x + torch.einsum("...hm,mhd->...hd", weights, P_v).flatten(-2).to(x.dtype)

    def _query(self) -> Tensor:
        (source,), (projection,) = self.sources, self.queries
        read = source.read()
        if self.ln is not None:
            read = projection.forward(self.ln(read.to(self.P_k.dtype)).to(read.dtype))
        q = (read if self.rows is None else read[..., self.rows]).to(self.P_k.dtype)
        return q if self.ln is not None else q / sqrt(self.P_k.shape[1] // self.heads)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Leaves the output as it is."""
        return y


def _heads(model: nn.Module, site: Site) -> int:
    """Query heads at a site, as the configuration of the nearest part of the model says."""
    names = site.path.split(".")
    for count in range(len(names), -1, -1):
        config = vars(model.get_submodule(".".join(names[:count]))).get("config")
        if config is not None:
            fields = config.to_dict()
            usual = config.attribute_map.get("num_attention_heads", "num_attention_heads")
            heads = fields.get(f"{site.stack}_attention_heads", fields.get(usual))
            if heads is not None:
                return int(heads)
    raise NoSuchSite(
        "parallel: attention=multihead needs a transformers model, whose config says how many heads; use "
        "attention=before or after"
    )
