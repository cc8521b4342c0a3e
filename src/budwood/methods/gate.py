"""UniPELT's gates (Mao et al. 2022): how much of what an adapter does a text gets; a part of methods, not a method.

    g = mean over tokens of sigmoid(h W_g^T + b_g)          W_g: [n, d] N(0, 0.02), b_g: [n] zero; h: [B, T, d]

h is what the gated module reads. `gate_over=text` takes the mean over the tokens that the attention_mask shows, so
that padding changes nothing; `all` takes it over padding, too, as AdapterHub does. The paper says neither.

Difference: where a token sees only those before it (a decoder, and what it reads of an encoder), a mean over the text
would show it what comes later, and would differ from step to step of a generation. There, `gate_over=text` gives every
token the gate of its own, sigmoid(h_t W_g^T + b_g); `all` takes the mean over what one call is given, as AdapterHub.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core.visible import ReadsText
from budwood.errors import BadConfig

GateOver = Literal["text", "all"]


class Gated(ReadsText):
    """A delta with n gates or none.  W_g: [n, d], b_g: [n]."""

    W_g: nn.Parameter | None
    b_g: nn.Parameter | None
    is_causal = False
    """Whether every token has a gate of its own."""

    def open_gate(self, site: Site, over: GateOver, count: int) -> None:
        """Make the gates of a delta at a site: n = count, none for 0."""
        self.register_parameter("W_g", nn.Parameter(torch.randn(count, site.in_features) * 0.02) if count else None)
        self.register_parameter("b_g", nn.Parameter(torch.zeros(count)) if count else None)
        self.gated_at = site.path
        if not count:
            return
        self.is_causal = over == "text" and site.stack != "encoder"
        self.reading = site.stack if over == "text" and not self.is_causal else None

    @property
    def mixes_tokens(self) -> bool:
        """A gate is a mean over a row, unless every token has its own."""
        return self.W_g is not None and not self.is_causal

    def check_open(self) -> None:
        """Raises BadConfig where there is a gate: what it weighs depends on the text, and is no plain update."""
        if self.W_g is not None:
            raise BadConfig(
                f"the update at {self.gated_at} has a gate, so it is no sum of weights; keep the adapter in Budwood's "
                "own format, beside the base"
            )

    def gate(self, h: Tensor) -> Tensor:
        """h: [B, T, d] -> [B, 1, n], or [B, T, n] where every token has a gate of its own."""
        assert self.W_g is not None
        gates = torch.sigmoid(F.linear(h.to(self.W_g.dtype), self.W_g, self.b_g))
        if self.is_causal:
            return gates
        check_rows(h, "gate", self.gated_at)
        text = None if self.reading is None else self.text(h)
        if text is None:
            return gates.mean(dim=1, keepdim=True)
        weights = text.unsqueeze(-1).to(gates.dtype)
        return (gates * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True).clamp(min=1)


def check_rows(z: Tensor, option: str, path: str) -> None:
    """Raises BadConfig where the rows of the batch are not apart."""
    if z.dim() != 3:
        raise BadConfig(
            f"{option} needs [batch, tokens, d] at {path}, where this model has {list(z.shape)}; "
            f"leave {option} or this sub-layer out"
        )
