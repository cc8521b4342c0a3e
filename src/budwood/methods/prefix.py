"""Prefix-Tuning (Li & Liang 2021, arXiv:2101.00190) and P-Tuning v2 (Liu et al. 2022, arXiv:2110.07602).

    softmax(q [P_K; k]^T) [P_V; v]        P_K, P_V: P rows for each head of each attention module

While it is trained, a prefix may come out of a network (section 4.3): P = W_2 tanh(W_1 E + b_1) + b_2, with one E, W_1
and b_1 for each kind of attention (encoder, decoder, cross) and a W_2 and b_2 for each module. E is [P, d], as in the
authors' code and not [P, k], as in the paper. What is saved is P_K and P_V alone.

A prefix starts as the keys and values that the model itself has for real words: without a network the model then
behaves exactly as if it had read them, and with one W_2 is the least-squares solution for them (the authors' code
fits it by 500 steps of Adam).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import budwood.core as core
from budwood.anatomy import Anatomy, AttentionCall, Site, probe
from budwood.core import Delta
from budwood.core.attention import AttentionDelta, attention_sites, ears
from budwood.core.cache_shim import CacheCall
from budwood.core.delta import Source
from budwood.core.entrance import input_site, positions_of, table_of
from budwood.core.inputs import ShiftDelta
from budwood.core.registry import Registry
from budwood.core.weights import check_whole
from budwood.errors import BadConfig, NoSuchSite
from budwood.methods.gate import Gated, GateOver
from budwood.methods.words import FromWords

NETWORK, PLAIN = (3e-4, 1e-3, 2e-3), (1e-2, 3e-2, 1e-1)
"""Rates worth trying with a network and for plain rows; the middle one is where to start."""


@dataclass(frozen=True, kw_only=True)
class Prefix(FromWords):
    """Trained keys and values in front of those of the text, in every layer."""

    rates_why = "plain rows want a rate that a network diverges at, and both depend on the scale of the model's keys"

    targets: tuple[str, ...] = ("attn", "cross?")
    """Which attention: attn, cross, or names of modules; a ? at the end means: where there is one."""
    stacks: tuple[str, ...] = ()
    """Only in these stacks (encoder, decoder); every one when empty."""
    width: int | None = None
    """Hidden width k of the network that the prefix comes out of while it is trained; none for plain rows."""
    std: float = 1.0
    """Standard deviation of plain rows that start random."""
    dropout: float = 0.0
    """Of keys and values, drawn for each row of a batch while training."""
    positions: Literal["kept", "shifted"] = "kept"
    """Where the text starts: at position 0, or `length` later (PEFT, THUDM). The rows themselves have no position."""
    bias: Literal["zero", "looked-up", "adapterhub"] = "zero"
    """Additive position bias of the rows (T5): none, that of positions -P to -1 (PEFT), or AdapterHub's, which moves
    the text's own by P."""

    gate: Literal["shared", "separate"] | None = None
    """Multiply the rows by a trained gate (UniPELT), one for keys and values or one for each."""
    gate_over: GateOver = "text"
    """What the gate is a mean over: the text (in decoders: each token by itself), or padding, too (AdapterHub)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == "labels":
            raise BadConfig(f"{self.name}: init=labels makes one row of each class; write them as init=text,text='...'")
        if self.width is not None and self.width < 1:
            raise BadConfig(f"{self.name}.width is {self.width}; it must be at least 1, or none for plain rows")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"{self.name}.dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def rate(self) -> float:
        """A network's weights learn at a thirtieth of the rate of plain rows."""
        return self.rates_to_try[1]

    @property
    def rates_to_try(self) -> tuple[float, ...]:
        """Around `rate`."""
        return NETWORK if self.width else PLAIN

    @property
    def positions_taken(self) -> int:
        """Only where the text starts later."""
        return self.length if self.positions == "shifted" else 0

    @property
    def deployed(self) -> Self:
        """Plain rows."""
        return self if self.width is None else replace(self, width=None, dropout=0.0)

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """Attention modules, and the input embeddings of stacks whose text starts later."""
        found = attention_sites(model, anatomy, self.targets, self.layers)
        there = list(dict.fromkeys(site.stack for site in found))
        strange = [stack for stack in self.stacks if stack not in there]
        if strange:
            raise NoSuchSite(f"{self.name}: stacks name {strange[0]!r}; stacks with attention here: {', '.join(there)}")
        kept = tuple(site for site in found if not self.stacks or site.stack in self.stacks)
        if self.positions == "kept":
            return kept
        stacks = dict.fromkeys(site.stack for site in kept if site.role != "cross")
        return kept + tuple(input_site(model, anatomy, stack) for stack in stacks)

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The rows of one attention module."""
        if site.call is None:
            return ShiftDelta(site, self.length)
        return Rows(site, site.call, self) if self.width is None else Reparametrised(site, site.call, self)


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Prefix):
    """Trained keys and values in front of the text's own, out of a network while they are trained."""

    name = "prefix-tuning"
    paper = "Li & Liang 2021, arXiv:2101.00190"
    formula = "softmax(q [P_K; k]^T) [P_V; v], P = W_2 tanh(W_1 E)"
    learning_rate = NETWORK[1]
    rates = NETWORK
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "prefix_length": "length", "preseqlen": "length",
        "encoder_hidden_size": "width", "bottleneck_size": "width", "mid_dim": "width", "modules_to_save": "trained",
    }  # fmt: skip

    width: int | None = 512
    """Hidden width k of the network that the prefix comes out of while it is trained; none for plain rows."""


@dataclass(frozen=True, kw_only=True)
class PTuningV2(Prefix):
    """Trained keys and values in front of the text's own, and the task head."""

    name = "p-tuning-v2"
    paper = "Liu et al. 2022, arXiv:2110.07602"
    formula = "softmax(q [P_K; k]^T) [P_V; v]"
    learning_rate = PLAIN[1]
    rates = PLAIN
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "pre_seq_len": "length", "prefix_hidden_size": "width",
        "modules_to_save": "trained",
    }  # fmt: skip

    std: float = 0.02
    """Standard deviation of rows that start random."""


class PrefixDelta(Gated, AttentionDelta):
    """What plain and reparametrised rows have in common. Its gates read what the attention module reads."""

    def __init__(self, site: Site, call: AttentionCall, method: Prefix) -> None:
        super().__init__(site)
        self.call, self.method = call, method
        self.group = (site.stack, site.role)
        self.tables: tuple[nn.Module, ...] = ()  # in a tuple: the base's modules are not ours to register
        self.read = Source(site.path, "input")
        self.open_gate(site, method.gate_over, {None: 0, "shared": 1, "separate": 2}[method.gate])
        self.sources = () if method.gate is None else (self.read,)

    def plain(self) -> tuple[Tensor, Tensor]:
        """P_K: [H, P, D_k] and P_V: [H, P, D_v]."""
        raise NotImplementedError

    def start(self, keys: Tensor, values: Tensor) -> None:
        """Begin with these: [H, P, D_k] and [H, P, D_v]."""
        raise NotImplementedError

    def rows(self, batch: int) -> tuple[Tensor, Tensor]:
        """[1 or B, H, P, D_k] and [1 or B, H, P, D_v]."""
        keys, values = (rows.unsqueeze(0) for rows in self.plain())
        if self.training and self.method.dropout:
            keys, values = (F.dropout(r.expand(batch, -1, -1, -1), self.method.dropout) for r in (keys, values))
        if self.W_g is not None and not self.is_causal:
            keys, values = (rows * gate for rows, gate in zip((keys, values), self._gates(), strict=True))
        return keys, values

    @property
    def mixes_tokens(self) -> bool:
        """A gate weighs what queries see, beside each other in their rows, even where every token has its own."""
        return self.W_g is not None

    def weights(self) -> tuple[Tensor, Tensor] | None:
        """Gates of each token, where it has its own: [B, 1, Q, 1] for keys and values."""
        return self._gates() if self.is_causal else None

    def _gates(self) -> tuple[Tensor, Tensor]:
        gates = self.gate(self.read.read()).unsqueeze(1)  # [B, 1, Q or 1, n]
        return gates[..., :1], gates[..., -1:]

    def bias(self, own: Tensor, queries: int, length: int) -> Tensor:
        """[*, heads, Q, K] -> [*, heads, Q, P + K]."""
        if not self.tables:
            return super().bias(own, queries, length)
        (table,), seen = self.tables, own.shape[-1] - queries
        moved = length if self.method.bias == "looked-up" else 0
        compute: Any = table.compute_bias
        looked: Tensor = compute(queries, length + own.shape[-1], own.device, past_seen_tokens=seen + moved)
        looked = looked.to(own.dtype)
        return torch.cat([looked[..., :length].expand(*own.shape[:-1], -1), own], dim=-1) if moved else looked

    def settle(self, model: nn.Module, name: str) -> None:
        """Open the attention, find the table of position biases; the first of the adapter starts them all."""
        super().settle(model, name)
        if isinstance(self.call, CacheCall) and self.method.gate is not None:
            raise BadConfig(f"{self.method.name}: {self.path} computes attention by itself; leave gate out")
        registry, adapter = core.adapter_of(model, name)
        deltas = {s: core.delta_at(model, s, name) for s in adapter.sites if s.call is not None}
        mine = {site: delta for site, delta in deltas.items() if isinstance(delta, PrefixDelta)}
        if self.method.bias != "zero" and self.group[1] == "attn":
            self.tables = _tables(model, registry, self)
            if isinstance(self.call, CacheCall) and self.method.bias == "looked-up":
                self.slopes = self.call.slopes
            if not self.tables and not self.slopes:
                raise BadConfig(f"{self.method.name}: {self.path} looks no position bias up; use bias=zero")
        leader = next(delta for delta in mine.values() if delta.group == self.group)
        if isinstance(self, Reparametrised) and isinstance(leader, Reparametrised) and leader is not self:
            self.borrow(leader)
        if self is list(mine.values())[-1] and self.method.init != "random":
            _start(model, registry, mine, self.method)


class Rows(PrefixDelta):
    """P_K: [H, P, D_k], P_V: [H, P, D_v]."""

    def __init__(self, site: Site, call: AttentionCall, method: Prefix) -> None:
        super().__init__(site, call, method)
        self.PK = nn.Parameter(torch.randn(call.heads, method.length, call.key_size) * method.std)
        self.PV = nn.Parameter(torch.randn(call.heads, method.length, call.value_size) * method.std)

    def plain(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.PK, self.PV

    @torch.no_grad()
    def start(self, keys: Tensor, values: Tensor) -> None:
        """Begin with these: [H, P, D_k] and [H, P, D_v]."""
        self.PK.copy_(keys)
        self.PV.copy_(values)


class Network(nn.Module):
    """tanh(W_1 E + b_1): [P, k].  E: [P, d] N(0, 1);  W1: [k, d], b1: [k] as PyTorch starts a linear."""

    def __init__(self, length: int, d: int, k: int) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.randn(length, d))
        first = nn.Linear(d, k)
        self.W1, self.b1 = first.weight, first.bias

    def forward(self) -> Tensor:
        """[P, k]."""
        return torch.tanh(F.linear(self.E, self.W1, self.b1))


class Reparametrised(PrefixDelta):
    """W2: [H D_k + H D_v, k], b2: [H D_k + H D_v]; network: E, W1 and b1 of all modules of a kind, at the first."""

    def __init__(self, site: Site, call: AttentionCall, method: Prefix) -> None:
        super().__init__(site, call, method)
        assert method.width is not None
        second = nn.Linear(method.width, call.heads * (call.key_size + call.value_size))
        self.network: Network | None = Network(method.length, site.in_features, method.width)
        self.W2, self.b2 = second.weight, second.bias
        self.owner: tuple[Network, ...] = ()  # in a tuple: its parameters are registered with the first module

    def borrow(self, leader: Reparametrised) -> None:
        """Use the leader's network."""
        assert leader.network is not None
        self.network, self.owner = None, (leader.network,)

    def hidden(self) -> Tensor:
        """[P, k]."""
        network = self.owner[0] if self.network is None else self.network
        if self.network is None:
            check_whole(network.E, f"{self.method.name} with a network")
        states: Tensor = network()
        return states

    def plain(self) -> tuple[Tensor, Tensor]:
        """[H, P, D_k] and [H, P, D_v], keys first."""
        rows = F.linear(self.hidden(), self.W2, self.b2)  # [P, H D_k + H D_v]
        keys, values = rows.split([self.call.heads * self.call.key_size, self.call.heads * self.call.value_size], dim=1)
        heads = (self.call.heads, -1)
        return keys.unflatten(1, heads).transpose(0, 1), values.unflatten(1, heads).transpose(0, 1)

    def stored(self) -> dict[str, Tensor]:
        """The rows alone, with dropout off."""
        with torch.no_grad():
            keys, values = self.plain()
        gates = {key: p for key, p in (("W_g", self.W_g), ("b_g", self.b_g)) if p is not None}
        return {"PK": keys.contiguous(), "PV": values.contiguous(), **gates}

    @torch.no_grad()
    def start(self, keys: Tensor, values: Tensor) -> None:
        """W_2 of least squares for [H, P, D_k] and [H, P, D_v], exact where k >= P; b_2 = 0."""
        wanted = torch.cat([rows.transpose(0, 1).flatten(1) for rows in (keys, values)], dim=1)  # [P, H D_k + H D_v]
        states = self.hidden()
        self.W2.copy_((torch.linalg.pinv(states.double()) @ wanted.double()).T)
        self.b2.zero_()


def _tables(model: nn.Module, registry: Registry, delta: PrefixDelta) -> tuple[nn.Module, ...]:
    """The module that looks up position biases for a delta: its own, else the first of its stack; none at all."""
    paths = [delta.path, *(s.path for s in registry.anatomy.sites if (s.stack, s.role) == delta.group)]
    found = [module for path in paths if "relative_attention_bias" in (module := model.get_submodule(path))._modules]
    return tuple(found[:1])


@torch.no_grad()
def _start(model: nn.Module, registry: Registry, mine: Mapping[Site, PrefixDelta], method: Prefix) -> None:
    """Give every module the keys and values that the model has for the method's words."""
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    vocabulary = input_site(model, registry.anatomy).in_features
    device = next(model.parameters()).device
    ids = torch.tensor([[row[0] for row in method.row_ids(vocabulary)]], device=device)
    with core.using(model, None), ears(model, mine) as heard, probe.undisturbed(model), probe.mixed(model):
        model(**probe.without_cache(model, _batch(model, registry.anatomy, ids, method)))
    for site, delta in mine.items():
        keys, values = (torch.stack([pair[end][0] for pair in heard[site.path]]).mean(dim=0) for end in (0, 1))
        delta.start(keys.float(), values.float())


def _batch(model: nn.Module, anatomy: Anatomy, ids: Tensor, method: Prefix) -> dict[str, Any]:
    """The words [1, P] as input, at positions -P to -1 of a rotary model: there the text's own start at 0."""
    arguments = inspect.signature(model.forward).parameters
    batch: dict[str, Any] = {"input_ids": ids}
    tables = [s for s in anatomy.sites if s.role == "embed.position" and s.layer is None]
    limits = [positions_of(table_of(model, anatomy, site.stack))[0] for site in tables]
    most = min((limit for limit in limits if limit is not None), default=method.length)
    if method.length > most:
        raise BadConfig(
            f"{method.name} of {method.length} starts as words that the model reads, and it reads {most} at once; "
            f"choose length={most} at most, or init=random"
        )
    if "decoder_input_ids" in arguments:
        batch["decoder_input_ids"] = ids
    elif method.positions == "kept" and "position_ids" in arguments and not tables:
        batch["position_ids"] = torch.arange(-ids.shape[1], 0, device=ids.device).unsqueeze(0)
    return batch
