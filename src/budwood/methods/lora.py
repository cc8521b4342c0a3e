"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, arXiv:2106.09685, eq. 3), with its variants.

    y + s B A x          A: [rank, in], B: [out, rank] starts at zero, s = alpha / rank

rsLoRA (arXiv:2312.03732): s = alpha / sqrt(rank).  DoRA (arXiv:2402.09353): the rows of W + s B A keep their direction
and get a trained length m.  PiSSA (arXiv:2404.02948): A and B start as the leading singular directions of W.

Differences: A starts Kaiming-uniform as in the authors' code (the paper says Gaussian; `init="gaussian"`). PiSSA leaves
the base as it is and subtracts the starting product in the forward pass, which is the same function and the same
gradients without changing W. On a fused projection, `targets=("attn.q", "attn.v")` gives each part its own pair (the
authors' MergedLinear), `targets=("attn.qkv",)` one pair for the whole output (PEFT). The default targets are every
linear of the blocks, which learns better from little data than the paper's queries and values (`attn.q+attn.v`), and
is there in every family.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.core.weights import rows_of, stored_as, weight_of
from budwood.errors import BadConfig, CannotFold, NoSuchSite
from budwood.methods.gate import Gated, GateOver


@dataclass(frozen=True, kw_only=True)
class LoRA(Method):
    """Low-rank updates of linears and embeddings."""

    name = "lora"
    paper = "Hu et al. 2021, arXiv:2106.09685"
    formula = "y + (alpha/rank) B A x"
    sizes_to_try = ("rank", (8, 2, 32))
    learning_rate = 1e-3
    aliases: ClassVar[Mapping[str, str]] = {
        "r": "rank", "lora_rank": "rank", "lora_r": "rank",
        "lora_alpha": "alpha", "lora_dropout": "dropout",
        "target_modules": "targets", "lora_target": "targets", "layers_to_transform": "layers",
        "modules_to_save": "trained", "rank_pattern": "ranks", "alpha_pattern": "alphas",
        "use_rslora": "rslora", "use_dora": "dora", "lora_bias": "bias", "init_lora_weights": "init",
    }  # fmt: skip

    targets: tuple[str, ...] = ("all",)
    """Where it acts: roles (attn.q, mlp.*, embed), `all` (every linear of the blocks), or names of modules; a ? at the
    end means: where there is one."""
    rank: int = 8
    """Rank of the update."""
    alpha: float = 16.0
    """Scale: the update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability of zeroing a feature that the update reads, in [0, 1)."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead, which keeps large ranks learning."""
    dora: bool = False
    """Train the length of each row of the adapted weight as well (DoRA)."""
    bias: bool = False
    """Add a trained bias to B."""
    init: Literal["kaiming", "gaussian", "pissa"] = "kaiming"
    """How A (and for pissa B) starts."""
    gate: bool = False
    """Multiply the update by a trained gate, one number in (0, 1) a row of the batch (UniPELT)."""
    gate_over: GateOver = "text"
    """What the gate is a mean over: the text (in decoders: each token by itself), or padding, too (AdapterHub)."""
    ranks: dict[str, int] = field(default_factory=dict, hash=False)
    """Ranks of their own by role or module name, as attn.q:4+mlp.*:16."""
    alphas: dict[str, float] = field(default_factory=dict, hash=False)
    """Alphas of their own by role or module name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, rank in {"rank": self.rank, **{f"ranks[{k}]": v for k, v in self.ranks.items()}}.items():
            if rank < 1:
                raise BadConfig(f"lora: {what} is {rank}; it must be at least 1")
        if not all(math.isfinite(alpha) for alpha in (self.alpha, *self.alphas.values())):
            raise BadConfig(f"lora: alpha is {self.alpha}, alphas are {self.alphas}; they must be finite")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"lora: dropout is {self.dropout}; it must be in [0, 1)")
        if self.dora and self.init == "pissa":
            raise BadConfig("lora: dora and init=pissa change the same weight in two ways; choose one")
        if self.gate and (self.dora or self.init == "pissa"):
            raise BadConfig("lora: a gate weighs an update that starts at zero; leave dora and init=pissa out")

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """As for any method; every key of `ranks` and `alphas` has to match one of them."""
        sites = super().sites(model, anatomy)
        for key in (*self.ranks, *self.alphas):
            if not key.endswith("?") and not any(site.matches(key) for site in sites):
                raise NoSuchSite(f"lora: ranks or alphas name {key!r}, which is none of the targets; {roles_of(sites)}")
        return sites

    def rank_at(self, site: Site) -> int:
        """The rank used at a site."""
        return next((v for k, v in self.ranks.items() if site.matches(k)), self.rank)

    def scale_at(self, site: Site) -> float:
        """The scale s used at a site."""
        rank, alpha = (
            self.rank_at(site),
            next((v for k, v in self.alphas.items() if site.matches(k)), self.alpha),
        )
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def build(self, site: Site, base: nn.Module) -> Delta:
        """A delta for a linear, some parts of a fused one, or an embedding."""
        if site.kind == "embedding" and type(base) is not nn.Embedding:
            raise NoSuchSite(
                f"lora: {site.path} is a {type(base).__name__}, which does more than look up rows; leave it out"
            )
        if site.kind == "embedding":
            if self.dora or self.bias or self.gate or self.init == "pissa":
                raise BadConfig(
                    f"lora: {site.path} is an embedding, which has no dora, bias, gate or pissa variant; leave it out"
                )
            return LoRAEmbedding(site, base, self)
        if not site.is_linear:
            raise NoSuchSite(
                f"lora acts on linears and embeddings; {site.path} ({site.role}) is a {type(base).__name__}"
            )
        if (self.dora or self.init == "pissa") and not base.get_parameter("weight").is_floating_point():
            raise BadConfig(
                f"lora: dora and init=pissa read the weight, and {site.path} is stored as {type(base).__name__}; "
                "use plain lora on a quantised base"
            )
        if not site.chosen:
            return LoRADelta(site, base, self)
        if self.dora or self.bias:
            raise BadConfig(f"lora: dora and bias need the whole of {site.path}; use targets=({site.role!r},)")
        return LoRAParts(site, base, self)


class LoRADelta(Gated):
    """y + s B drop(A x).  A: [rank, in], B: [out, rank], m: [out] (DoRA), b: [out] (bias)."""

    def __init__(self, site: Site, base: nn.Module, method: LoRA) -> None:
        super().__init__()
        rank = method.rank_at(site)
        self.scale, self.dropout = method.scale_at(site), method.dropout
        self.A = nn.Parameter(torch.empty(rank, site.in_features))
        self.B = nn.Parameter(torch.zeros(site.out_features, rank))
        self.b = nn.Parameter(torch.zeros(site.out_features)) if method.bias else None
        self.m = nn.Parameter(weight_of(base).float().norm(dim=1)) if method.dora else None
        start(self.A, self.B, method, weight_of(base), self.scale)
        self.open_gate(site, method.gate_over, int(method.gate))
        pissa = method.init == "pissa"
        self.register_buffer("A0", self.A.detach().clone() if pissa else None)
        self.register_buffer("B0", self.B.detach().clone() if pissa else None)
        self.A0: Tensor | None
        self.B0: Tensor | None

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x: [*, in], y: [*, out] -> [*, out]."""
        dropped = F.dropout(x, self.dropout, self.training)
        if self.A0 is None and self.b is None and self.W_g is None and self.m is None:
            return added(y, dropped, self.A, self.B, self.scale)
        z = dropped.to(self.A.dtype)
        update = z @ self.A.T @ self.B.T  # [*, in] -> [*, rank] -> [*, out]
        if self.A0 is not None and self.B0 is not None:
            update = update - z @ self.A0.T @ self.B0.T
        if self.b is not None:
            update = update + self.b
        if self.W_g is not None:
            update = update * self.gate(x)
        if self.m is None:
            return y + (update * self.scale).to(y.dtype)
        return self._lengthen(base, x, dropped, y, update * self.scale)

    def _lengthen(self, base: nn.Module, x: Tensor, dropped: Tensor, y: Tensor, update: Tensor) -> Tensor:
        """DoRA, eq. 5: rows of length m. The norm is a constant for the gradient (section 4.3), the bias is not scaled.

        With dropout the base product is taken of the dropped input as well, as in PEFT.
        """
        assert self.m is not None
        weight = weight_of(base).to(self.A.dtype)
        ratio = self.m / (weight + self.update()).detach().norm(dim=1)  # [out]
        if dropped is x:
            bias = base._parameters.get("bias")
            product = (y if bias is None else y - bias).to(update.dtype)
        else:
            product = F.linear(dropped.to(weight.dtype), weight)
        return y + ((ratio - 1) * product + ratio * update).to(y.dtype)

    def update(self) -> Tensor:
        """s B A (PiSSA: less the starting product): [out, in]."""
        A, B = self.pair()
        return B @ A * self.scale

    def pair(self) -> tuple[Tensor, Tensor]:
        """The same update as one plain pair: A [rank, in], B [out, rank]; for PiSSA of twice the rank.

        Raises BadConfig where a gate weighs it.
        """
        self.check_open()
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat([self.A, self.A0]), torch.cat([self.B, -self.B0], dim=1)

    def fold(self, base: nn.Module) -> dict[str, Tensor] | None:
        """W + s B A, for DoRA with rows of length m; the bias of B goes into the base's. None with a gate."""
        if self.W_g is not None:
            return None
        weight = weight_of(base).to(self.A.dtype) + self.update()
        if self.m is not None:
            weight = weight * (self.m / weight.norm(dim=1)).unsqueeze(1)
        folded = {"weight": stored_as(base, weight)}
        if self.b is not None:
            bias = base._parameters.get("bias")
            if bias is None:
                raise CannotFold("lora with bias=true cannot be merged into a linear without a bias; keep it unmerged")
            folded["bias"] = bias.to(self.b.dtype) + self.b * self.scale
        return folded


class LoRAParts(Gated):
    """A pair for each chosen part of a fused linear.

    A: [parts * rank, in]; B: [sum of the parts' outputs, rank]; part j adds s B_j A_j x to its own output rows.
    """

    def __init__(self, site: Site, base: nn.Module, method: LoRA) -> None:
        super().__init__()
        parts = [part for part in site.parts if part.role in site.chosen]
        self.rank, self.scale, self.dropout = method.rank_at(site), method.scale_at(site), method.dropout
        self.sizes, self.out_features = [part.size for part in parts], site.out_features
        self.A = nn.Parameter(torch.empty(len(parts) * self.rank, site.in_features))
        self.B = nn.Parameter(torch.zeros(sum(self.sizes), self.rank))
        self.register_buffer("rows", torch.cat([rows_of(part) for part in parts]), persistent=False)
        self.rows: Tensor
        weight = weight_of(base)[self.rows.to(weight_of(base).device)]
        self.open_gate(site, method.gate_over, len(parts) * method.gate)
        for A, B, W in zip(self.A.chunk(len(parts)), self.B.split(self.sizes), weight.split(self.sizes), strict=True):
            start(A, B, method, W, self.scale)
        pissa = method.init == "pissa"
        self.register_buffer("A0", self.A.detach().clone() if pissa else None)
        self.register_buffer("B0", self.B.detach().clone() if pissa else None)
        self.A0: Tensor | None
        self.B0: Tensor | None

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x: [*, in], y: [*, out] -> [*, out]."""
        dropped = F.dropout(x, self.dropout, self.training)
        if self.A0 is None and self.W_g is None:
            return added(y, dropped, *self.whole(), self.scale)
        z = dropped.to(self.A.dtype)
        update = self._product(z @ self.A.T, self.B)
        if self.A0 is not None and self.B0 is not None:
            update = update - self._product(z @ self.A0.T, self.B0)
        if self.W_g is not None:
            gates = zip(self.gate(x).split(1, dim=-1), self.sizes, strict=True)
            update = update * torch.cat([gate.expand(*gate.shape[:-1], size) for gate, size in gates], dim=-1)
        spread = update.new_zeros(*update.shape[:-1], self.out_features).index_copy(-1, self.rows, update)
        return y + (spread * self.scale).to(y.dtype)

    def _product(self, u: Tensor, B: Tensor) -> Tensor:
        """u: [*, parts * rank], B: [sum of outputs, rank] -> [*, sum of outputs]."""
        pairs = zip(u.split(self.rank, dim=-1), B.split(self.sizes), strict=True)
        return torch.cat([u_j @ B_j.T for u_j, B_j in pairs], dim=-1)

    def whole(self) -> tuple[Tensor, Tensor]:
        """The same update as one pair over the fused output: A [parts * rank, in], B [out, parts * rank].

        Raises BadConfig where gates weigh it.
        """
        self.check_open()
        A: Tensor = self.A
        B = torch.block_diag(*self.B.split(self.sizes))  # [sum of outputs, parts * rank]
        if self.A0 is not None and self.B0 is not None:
            A, B = (
                torch.cat([A, self.A0]),
                torch.cat([B, -torch.block_diag(*self.B0.split(self.sizes))], dim=1),
            )
        return A, B.new_zeros(self.out_features, B.shape[1]).index_copy(0, self.rows, B)

    def fold(self, base: nn.Module) -> dict[str, Tensor] | None:
        """W with s B_j A_j added to the rows of part j. None with gates."""
        if self.W_g is not None:
            return None
        A, B = self.whole()
        return {"weight": stored_as(base, weight_of(base).to(A.dtype) + B @ A * self.scale)}


class LoRAEmbedding(Delta):
    """y + s (A[:, ids])^T B^T.  A: [rank, vocabulary] starts at zero, B: [out, rank] Gaussian: the other way round."""

    def __init__(self, site: Site, base: nn.Module, method: LoRA) -> None:
        super().__init__()
        assert isinstance(base, nn.Embedding)
        self.scale, self.padding_idx = method.scale_at(site), base.padding_idx
        self.A = nn.Parameter(torch.zeros(method.rank_at(site), base.num_embeddings))
        self.B = nn.Parameter(torch.randn(base.embedding_dim, method.rank_at(site)))

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x: [*] int64, y: [*, out] -> [*, out]. The padding token's column gets no gradient."""
        rows = F.embedding(x, self.A.T, self.padding_idx)  # [*, rank]
        return y + (rows @ self.B.T * self.scale).to(y.dtype)

    def fold(self, base: nn.Module) -> dict[str, Tensor]:
        """E + s (B A)^T."""
        assert isinstance(base, nn.Embedding)
        return {"weight": base.weight.to(self.A.dtype) + (self.B @ self.A).T * self.scale}


def added(y: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """y + s x A^T B^T, with one pass over y.  x: [*, in], y: [*, out], A: [rank, in], B: [out, rank] -> [*, out].

    In memory B^T lies row by row, so that its gradient comes as u^T g and not as g^T u, and u's as g (B^T)^T: on a
    CPU these take a quarter and a half of the time of the other ways round.
    """
    z = x if torch.is_autocast_enabled(x.device.type) else x.to(A.dtype)
    u = z @ A.T * scale  # [*, rank]
    wide = B.T.contiguous() if B.requires_grad and torch.is_grad_enabled() else B.T
    if u.dtype != y.dtype:
        return y + (u @ wide).to(y.dtype)
    rows = torch.addmm(y.reshape(-1, y.shape[-1]), u.reshape(-1, u.shape[-1]), wide)
    return rows.view(y.shape)


def start(A: Tensor, B: Tensor, method: LoRA, weight: Tensor, scale: float) -> None:
    """Set A: [rank, in] (and for PiSSA B: [out, rank]) to their starting values in place."""
    with torch.no_grad():
        if method.init == "gaussian":
            A.normal_(std=1 / A.shape[0])
        elif method.init == "kaiming":
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        elif not weight.is_meta:
            rank = A.shape[0]
            if rank > min(weight.shape):
                raise BadConfig(f"lora: pissa needs a rank of at most {min(weight.shape)} here; it is {rank}")
            U, S, V = torch.linalg.svd(weight.float(), full_matrices=False)
            root = (S[:rank] / scale).sqrt()
            A.copy_(root.unsqueeze(1) * V[:rank])
            B.copy_(U[:, :rank] * root)


def roles_of(sites: tuple[Site, ...]) -> str:
    """The end of a message: which roles there are among some sites."""
    return f"these act at: {', '.join(dict.fromkeys(role for s in sites for role in (s.chosen or (s.role,))))}"
