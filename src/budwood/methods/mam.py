"""MAM, the mix-and-match adapter (He et al. 2022, arXiv:2110.04366): a short prefix and a scaled parallel adapter.

    softmax(q [P_K; k]^T) [P_V; v]    at attention;    h + s (W_u ReLU(W_d r + b_d) + b_u)    at the feed-forward

The prefix is that of `prefix-tuning`, out of a network while it is trained, and the adapter that of `parallel`, with
W_u starting at zero. Sizes are those of the paper's translation and summarisation; for classification it uses
length=16,size=16,scale=2. AdapterHub's default is reduction=2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from budwood.anatomy import Site
from budwood.core import Method
from budwood.methods.bottleneck import Parallel
from budwood.methods.narrow import Activation
from budwood.methods.prefix import PrefixTuning
from budwood.methods.union import Union


@dataclass(frozen=True, kw_only=True)
class MAM(Union):
    """A short prefix in attention and a scaled parallel adapter at the feed-forward."""

    name = "mam"
    paper = "He et al. 2022, arXiv:2110.04366"
    formula = "softmax(q [P_K; k]^T) [P_V; v]; h + s (W_u act(W_d r + b_d) + b_u)"
    sizes_to_try = ("length", (30, 10))
    learning_rate = 1e-3
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "prefix_length": "length", "bottleneck_size": "width", "mid_dim": "width",
        "reduction_factor": "reduction", "non_linearity": "activation", "scaling": "scale",
        "modules_to_save": "trained",
    }  # fmt: skip

    targets: tuple[str, ...] = ("mlp",)
    """Which sub-layers have an adapter: mlp, attn, cross, or names of their last linears."""
    length: int = 30
    """Rows in front of the keys and values."""
    width: int | None = 800
    """Hidden width of the network that the prefix comes out of while it is trained; none for plain rows."""
    size: int | None = None
    """Width m of the adapter's bottleneck. [512]"""
    reduction: float | None = None
    """Or the model's width divided by m."""
    scale: float = 4.0
    """Constant s that the adapter's output is multiplied by."""
    activation: Activation = "relu"
    """The adapter's non-linearity."""

    def parts(self) -> tuple[PrefixTuning, Parallel]:
        """The prefix and the adapter."""
        prefix = PrefixTuning(
            targets=self.attention, layers=self.layers, length=self.length, width=self.width, dropout=self.dropout,
            init=self.init, text=self.text, ids=self.ids, sizes=self.sizes, bias=self.bias,
        )  # fmt: skip
        adapter = Parallel(
            targets=self.targets, layers=self.layers, scale=self.scale, activation=self.activation,
            size=512 if self.size is None and self.reduction is None else self.size, reduction=self.reduction,
        )  # fmt: skip
        return prefix, adapter

    def part_at(self, site: Site) -> Method:
        """The prefix at attention, the adapter elsewhere."""
        prefix, adapter = self.parts()
        return prefix if site.kind == "attention" else adapter
