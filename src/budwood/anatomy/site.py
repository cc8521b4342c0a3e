"""What a model is made of, as data: places (`Site`), sub-layers (`SubLayer`), and all of them (`Anatomy`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from budwood.errors import NoSuchSite, did_you_mean

Kind = Literal["linear", "conv1d", "embedding", "norm", "module", "parameter", "sublayer", "attention"]
"""How a site holds its weights: `nn.Linear` [out, in], transformers' `Conv1D` [in, out], `nn.Embedding`
[vocabulary, out], a normalisation, any other module (`attn`, `mlp`, `block`), or a bare parameter (3-D experts).
A `sublayer` is the place where an attention or feed-forward has done its work and is about to be added; an `attention`
the module that hands queries, keys and values to the attention function."""

ROLES: tuple[str, ...] = (
    "attn.q", "attn.k", "attn.v", "attn.qkv", "attn.o",
    "attn.q_a", "attn.q_b", "attn.kv_a", "attn.kv_b", "attn.pos_q", "attn.pos_k",
    "attn.gate",
    "cross.q", "cross.k", "cross.v", "cross.kv", "cross.o", "cross.gate",
    "mlp.gate", "mlp.up", "mlp.gate_up", "mlp.down", "mlp.router",
    "experts.gate_up", "experts.up", "experts.gate", "experts.down",
    "mixer.in", "mixer.x", "mixer.dt", "mixer.out", "mixer.k", "mixer.v", "mixer.r", "mixer.g",
    "norm.attn", "norm.cross", "norm.mlp", "norm.mixer", "norm.q", "norm.k", "norm.v", "norm.kv",
    "norm.embed", "norm.final", "norm.head",
    "attn", "cross", "mlp", "mixer", "block",
    "embed", "embed.position", "embed.type", "embed.project", "pooler", "head", "head.transform", "head.lm",
)  # fmt: skip
"""Every role a site can have.

`attn`, `cross`: the module that holds the query projection, hence the one that calls the attention function.
`attn.q_a` ... `attn.kv_b`: the low-rank pairs of multi-head latent attention. `attn.pos_*`: of relative positions.
`attn.gate`: scales the heads before `attn.o`.
`mixer.*`: what takes the place of attention in Mamba and RWKV.
`norm.attn`: before or after attention (before both, where attention and MLP share their input).
`embed.project`: between embeddings and blocks of different width. `pooler`: of the base model.
`head`: every linear of a task head. `head.lm`: the output embedding of a language model;
`head.transform`: the dense layer before it in masked-language models, which no method trains unasked.
"""

BLOCK_LINEARS = ("attn.*", "cross.*", "mlp.*", "mixer.*")
"""What the target `all` means: every linear inside the blocks that a forward runs, except routers."""


def is_called(path: str, name: str) -> bool:
    """True where `name` is a module's path or the end of it."""
    return path == name or path.endswith(f".{name}")


@dataclass(frozen=True, slots=True)
class Part:
    """Some output rows of a fused linear: which role they play, as half-open row ranges in the fused output."""

    role: str
    rows: tuple[tuple[int, int], ...]

    @property
    def size(self) -> int:
        """Number of output features."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, slots=True)
class SubLayer:
    """Where a bottleneck method reads and writes: `y = LN(h + r)` (post-LN) or `y = h + r` (pre-LN).

    In full: `y = norm(r + scale * output_norm(h))`, where `norm` and `output_norm` are the identity when None.
    """

    role: Literal["attn", "cross", "mlp"]
    stack: str
    layer: int
    h: str
    """Path of the module whose output is `h`: the last linear, or the dropout module that follows it, or the
    whole mixture-of-experts module. Where dropout is a function call, or one module for several
    sub-layers, `h` is what goes into it."""
    linear: str
    """Path of the last linear itself (equal to `h` when no dropout module follows, and for experts)."""
    r: tuple[str, Literal["input", "output"]]
    """The module, and which end of it, where the residual `r` can be read before `h` is complete.

    "input" is its first positional argument (or the keyword `hidden_states`), "output" its (first) result.
    """
    norm: str | None
    """Path of the LayerNorm applied to `h + r` (post-LN); None for pre-LN."""
    is_parallel: bool = False
    """True when attention and MLP of the block are added to the same residual (GPT-J, phi, Cohere): `r` is that
    residual, and the model adds the other sub-layer's `h` as well."""
    output_norm: str | None = None
    """Path of a norm between `h` and the addition (Gemma 2, OLMo 2); None in nearly every other family."""
    scale: float = 1.0
    """Constant that `h` is multiplied by before the addition (Granite's residual multiplier)."""

    @property
    def path(self) -> str:
        """Where what is added can be replaced: the norm after `h`, where there is one, else `h`."""
        return self.output_norm or self.h

    def is_called(self, name: str) -> bool:
        """True for the name, whole or the end of it, of the last linear or of the place."""
        return any(is_called(path, name) for path in (self.path, self.h, self.linear))


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What an attention module hands to the attention function: keys [batch, heads, tokens, key_size] and values."""

    heads: int
    """Heads of keys and values (fewer than of queries in grouped-query attention)."""
    key_size: int
    value_size: int


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model where something can be attached."""

    path: str
    role: str
    stack: str
    layer: int | None
    in_features: int
    out_features: int
    kind: Kind = "linear"
    parts: tuple[Part, ...] = ()
    """For a fused projection (`attn.qkv`): its parts, found by probing. Empty for anything else."""
    chosen: tuple[str, ...] = ()
    """The roles of the parts a selection asked for; empty means the whole site."""
    sublayer: SubLayer | None = None
    """For the kind `sublayer`: the residual and the norms around it."""
    call: AttentionCall | None = None
    """For the kind `attention`: the shapes of its keys and values."""

    def matches(self, key: str) -> bool:
        """True for a role pattern, or a module's name, that means this site (with a ? at the end or not)."""
        key = key.removesuffix("?")
        roles = [self.role, *self.chosen]
        if self.sublayer is not None:
            roles.append(self.sublayer.role)
            if self.sublayer.is_called(key):
                return True
        return any(fnmatchcase(role, key) for role in roles) or is_called(self.path, key)

    @property
    def is_linear(self) -> bool:
        """True where the site computes `x W^T + b`."""
        return self.kind in ("linear", "conv1d")


@dataclass(frozen=True)
class Anatomy:
    """The sites and sub-layers of one model.

    `unresolved`: paths of linears and norms inside the model that got no role.
    `uncalled`:   paths of linears that the probe's forward did not run (Mamba's `dt_proj`); `all` leaves them out.
    `unknown_sublayers`: a sentence for each sub-layer that could not be established: which, and why.
    `repeated`:   paths of blocks that one forward runs several times (ALBERT's shared layers).
    `is_probed`:  False when no forward could be run; then there are no sub-layers, parts or uncalled linears.
    """

    sites: tuple[Site, ...]
    hidden_size: int
    sublayers: tuple[SubLayer, ...] = ()
    unresolved: tuple[str, ...] = ()
    uncalled: tuple[str, ...] = ()
    unknown_sublayers: tuple[str, ...] = ()
    is_probed: bool = True
    repeated: tuple[str, ...] = ()

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles present in this model, in the order of `ROLES`; parts of fused sites included."""
        present = {s.role for s in self.sites} | {p.role for s in self.sites for p in s.parts}
        return tuple(role for role in ROLES if role in present)

    def num_layers(self, stack: str) -> int:
        """Number of blocks in a stack."""
        return 1 + max((s.layer for s in self.sites if s.stack == stack and s.layer is not None), default=-1)

    def select(
        self, *targets: str, layers: tuple[int, ...] | None = None, stack: str | None = None
    ) -> tuple[Site, ...]:
        """Sites that match any target, in model order, each at most once.

        A target is `all`, a role or role pattern (`attn.*`, `mlp.down`), or the name of a module, whole
        (`model.layers.3.mlp.up_proj`) or the end of it (`up_proj`). A role that exists only inside a fused
        projection selects that projection with `chosen` set. A target that ends in ? may match nothing.
        Raises NoSuchSite for a target that matches nothing, naming the roles this model does have.
        """
        self._check_layers(layers)
        found: dict[str, Site] = {}
        for target in targets:
            matched = self._match(target.removesuffix("?"))
            if not matched and not target.endswith("?"):
                raise NoSuchSite(self._explain(target))
            for site in matched:
                before = found.get(site.path)
                found[site.path] = site if before is None else _widen(before, site)
        kept = [
            found[s.path]
            for s in self.sites
            if s.path in found and (stack is None or s.stack == stack) and (layers is None or s.layer in layers)
        ]
        if not kept:
            raise NoSuchSite(
                f"targets {', '.join(targets)} match, but none in layers {layers} of stack {stack or 'any'}; "
                f"layers there are: {self._layers()}"
            )
        return tuple(kept)

    def select_sublayers(self, *targets: str, layers: tuple[int, ...] | None = None) -> tuple[Site, ...]:
        """Sub-layers that match any target, as sites at `SubLayer.path`, in model order.

        A target is `all`, a role (`attn`, `cross`, `mlp`), or the name, whole or the end of it, of the last linear or
        of the site; a ? at the end means: where there is one. Raises NoSuchSite where a target matches nothing, or a
        sub-layer whose residual and norm could not be established, with the reason.
        """
        self._check_layers(layers)
        for target in targets:
            key = target.removesuffix("?")
            unclear = [why for why in self.unknown_sublayers if key in ("all", why.split(": ")[0].rpartition(" ")[2])]
            if unclear:
                raise NoSuchSite(
                    f"where this sub-layer's output is added is not clear, so it is refused: {unclear[0]}; adapt its "
                    "linears instead, as lora and linear-adapter do"
                )
            if not target.endswith("?") and not any(_means(s, key) for s in self.sublayers):
                raise NoSuchSite(self._explain_sublayers(target))
        kept = [
            s
            for s in self.sublayers
            if any(_means(s, target.removesuffix("?")) for target in targets) and (layers is None or s.layer in layers)
        ]
        if not kept and layers is None:
            raise NoSuchSite(self._explain_sublayers(", ".join(targets)))
        if not kept:
            raise NoSuchSite(
                f"targets {', '.join(targets)} match no sub-layer in layers {layers}; layers there are: "
                f"{self._layers()}"
            )
        widths = {site.path: site.out_features for site in self.sites}
        return tuple(
            Site(s.path, s.role, s.stack, s.layer, widths[s.linear], widths[s.linear], "sublayer", sublayer=s)
            for s in kept
        )

    def _check_layers(self, layers: tuple[int, ...] | None) -> None:
        """Raises NoSuchSite for a block that no stack has."""
        depth = max((site.layer for site in self.sites if site.layer is not None), default=-1) + 1
        beyond = [layer for layer in layers or () if not 0 <= layer < depth]
        if beyond and depth:
            raise NoSuchSite(f"layers name block {beyond[0]}, and layers there are: {self._layers()}")

    def _explain_sublayers(self, target: str) -> str:
        roles = ", ".join(dict.fromkeys(s.role for s in self.sublayers))
        if not self.is_probed:
            return "no forward could be run, so this model's sub-layers are not known; pass discover(model, batch=...)"
        found = (
            f"no sub-layer matches {target!r}; sub-layers in this model: {roles or 'none'} (attention or feed-forward"
        )
        if not roles:
            return f"{found}, whose output is added to a residual); adapt its linears, as lora and linear-adapter do"
        optional = "" if target.endswith("?") else f", or write {target}? for: where there is one"
        return f"{found}, whose output is added to a residual); leave it out{optional}"

    def _match(self, target: str) -> list[Site]:
        patterns = BLOCK_LINEARS if target == "all" else (target,)
        whole = [s for s in self.sites if any(fnmatchcase(s.role, p) for p in patterns)]
        if target == "all":
            skipped = {s.path for s in whole if not s.is_linear or s.role == "mlp.router"} | {*self.uncalled}
            return [s for s in whole if s.path not in skipped]
        parts = [
            replace(s, chosen=tuple(p.role for p in s.parts if fnmatchcase(p.role, target)))
            for s in self.sites
            if s not in whole and any(fnmatchcase(p.role, target) for p in s.parts)
        ]
        if whole or parts:
            return whole + parts
        return [s for s in self.sites if is_called(s.path, target)]

    def _layers(self) -> str:
        stacks = dict.fromkeys(s.stack for s in self.sites if s.layer is not None)
        return ", ".join(f"{stack} 0 to {self.num_layers(stack) - 1}" for stack in stacks)

    def _explain(self, target: str) -> str:
        names = {leaf for s in self.sites if not (leaf := s.path.rpartition(".")[2]).isdigit()}
        hint = did_you_mean(target, {*self.roles, *names, "all"})
        roles = f"roles in this model: {', '.join(self.roles)}"
        return f"no site matches {target!r}; {roles}; {hint} ('all' is every linear of the blocks)"


def _means(sublayer: SubLayer, target: str) -> bool:
    """Whether a target (without ?) means this sub-layer."""
    return target in ("all", sublayer.role) or sublayer.is_called(target)


def _widen(a: Site, b: Site) -> Site:
    """The same site as asked for by two targets: a whole site wins over parts of it."""
    if not a.chosen or not b.chosen:
        return replace(a, chosen=())
    return replace(a, chosen=tuple(p.role for p in a.parts if p.role in (*a.chosen, *b.chosen)))
