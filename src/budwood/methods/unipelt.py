"""UniPELT (Mao et al. 2022, arXiv:2110.07577): a prefix, a sequential adapter and LoRA, each with gates.

    softmax(q [g P_K; k]^T) [g P_V; v]    h + g A(LN(h + r))    W x + g s B A x    g = mean sigmoid(h W_g^T + b_g)

The parts are `prefix-tuning`, `adapter-p` and `lora` with their option `gate`; every gated module has gates of its
own, which read what it reads. What the mean is over, and what decoders do instead, stands in methods/gate.py.

Differences: a gate at 0 multiplies the prefix's keys by it and so does not close the prefix, which takes a share of
the attention as ever (as in the authors' code and AdapterHub's). The adapter starts as the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from budwood.anatomy import Site
from budwood.core import Method
from budwood.methods.bottleneck import AdapterP
from budwood.methods.gate import GateOver
from budwood.methods.lora import LoRA
from budwood.methods.narrow import Activation, Init
from budwood.methods.prefix import PrefixTuning
from budwood.methods.union import Union


@dataclass(frozen=True, kw_only=True)
class UniPELT(Union):
    """A gated prefix, a gated adapter after the feed-forward and gated LoRA."""

    name = "unipelt"
    paper = "Mao et al. 2022, arXiv:2110.07577"
    formula = "prefix, adapter and LoRA, each times g = mean sigmoid(h W_g^T + b_g)"
    sizes_to_try = ("length", (10, 30))
    learning_rate = 1e-3
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "prefix_length": "length", "bottleneck_size": "width",
        "reduction_factor": "reduction", "non_linearity": "activation", "r": "rank", "lora_alpha": "alpha",
        "target_modules": "targets", "modules_to_save": "trained", "init_weights": "adapter_init",
    }  # fmt: skip

    targets: tuple[str, ...] = ("attn.q", "attn.v", "cross.q?", "cross.v?")
    """Where LoRA acts: roles (attn.q, attn.*), or names of modules; a ? at the end means: where there is one."""
    sublayers: tuple[str, ...] = ("mlp",)
    """Which sub-layers have an adapter: mlp, attn, cross, or names of their last linears."""
    length: int = 10
    """Rows in front of the keys and values."""
    width: int | None = 512
    """Hidden width of the network that the prefix comes out of while it is trained; none for plain rows."""
    size: int | None = None
    """Width of the adapter's bottleneck."""
    reduction: float | None = None
    """Or the model's width divided by it. [16]"""
    activation: Activation = "relu"
    """The adapter's non-linearity."""
    adapter_init: Init = "zero"
    """How the adapter's weights start: Kaiming and zero; N(0, 0.02) both; N(0, 0.01) cut at two deviations, both."""
    rank: int = 8
    """Rank of LoRA."""
    alpha: float = 2.0
    """Scale of LoRA: its update is multiplied by alpha / rank."""
    gate: Literal["shared", "separate"] = "shared"
    """One gate for the prefix's keys and values, or one for each."""
    gate_over: GateOver = "text"
    """What gates are a mean over: the text (in decoders: each token by itself), or padding, too (AdapterHub)."""

    def parts(self) -> tuple[PrefixTuning, AdapterP, LoRA]:
        """The prefix, the adapter and LoRA."""
        prefix = PrefixTuning(
            targets=self.attention, layers=self.layers, length=self.length, width=self.width, dropout=self.dropout,
            init=self.init, text=self.text, ids=self.ids, sizes=self.sizes, bias=self.bias, gate=self.gate,
            gate_over=self.gate_over,
        )  # fmt: skip
        adapter = AdapterP(
            targets=self.sublayers, layers=self.layers, size=self.size, reduction=self.reduction,
            activation=self.activation, init=self.adapter_init, gate=True, gate_over=self.gate_over,
        )  # fmt: skip
        lora = LoRA(
            targets=self.targets, layers=self.layers, rank=self.rank, alpha=self.alpha, gate=True,
            gate_over=self.gate_over,
        )  # fmt: skip
        return prefix, adapter, lora

    def part_at(self, site: Site) -> Method:
        """The prefix at attention, the adapter at sub-layers, LoRA at linears."""
        prefix, adapter, lora = self.parts()
        return {"attention": prefix, "sublayer": adapter}.get(site.kind, lora)
