"""P-Tuning: GPT Understands, Too (Liu et al. 2021, arXiv:2103.10385).

    P = MLP(BiLSTM(E))        E, P: [length, d], wherever the text has pseudo tokens, or in front of it

The LSTM is the authors' (LAMA code) where `width` is d/2: Linear(2h, 2h), ReLU, Linear(2h, d) behind two layers in both
directions. The mlp is PEFT's: Linear(d, h), ReLU, Linear(h, h), ReLU, Linear(h, d). What is saved is P alone.
The last layer starts as the least-squares solution for the embeddings of words; `init=random` leaves that out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core import Delta
from budwood.core.inputs import PromptDelta
from budwood.errors import BadConfig
from budwood.methods.words import InText, starting_rows


@dataclass(frozen=True, kw_only=True)
class PTuning(InText):
    """Trained pseudo tokens in the text, out of a recurrent network while they are trained."""

    name = "p-tuning"
    paper = "Liu et al. 2021, arXiv:2103.10385"
    formula = "E(x) with P = MLP(BiLSTM(E)) at the pseudo tokens"
    learning_rate = 5e-3
    rates = (2e-3, 5e-3, 1e-2)
    rates_why = "a prompt's rate goes with the scale of the model's embeddings, and its network diverges soon above it"
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "encoder_reparameterization_type": "encoder", "encoder_hidden_size": "width",
        "encoder_num_layers": "depth", "encoder_dropout": "dropout", "modules_to_save": "trained",
    }  # fmt: skip

    encoder: Literal["lstm", "mlp"] | None = "lstm"
    """The network that the pseudo tokens come out of while they are trained; none for plain rows."""
    width: int | None = None
    """Hidden width h of the network; none for half the model's."""
    depth: int = 2
    """Layers of the LSTM."""
    dropout: float = 0.0
    """Between the layers of the LSTM, while training."""

    def __post_init__(self) -> None:
        if isinstance(self.encoder, str):
            object.__setattr__(self, "encoder", self.encoder.lower())
        super().__post_init__()
        for what, number in {"width": 1 if self.width is None else self.width, "depth": self.depth}.items():
            if number < 1:
                raise BadConfig(f"p-tuning.{what} is {number}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise BadConfig(f"p-tuning.dropout is {self.dropout}; it must be in [0, 1)")

    @property
    def deployed(self) -> Self:
        """Plain rows."""
        return replace(self, encoder=None)

    @property
    def rate(self) -> float:
        """Plain rows learn at ten times the network's rate."""
        return self.learning_rate if self.encoder else 10 * self.learning_rate

    @property
    def rates_to_try(self) -> tuple[float, ...]:
        """As `rate`."""
        return self.rates if self.encoder else tuple(10 * rate for rate in self.rates)

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The pseudo tokens."""
        return PseudoTokens(site, base, self)


class PseudoTokens(PromptDelta):
    """P: [length, d] where there is no network; else E: [length, d] N(0, 1) and the network."""

    def __init__(self, site: Site, base: nn.Module, method: PTuning) -> None:
        assert method.place is not None
        super().__init__(site, method.length, method.place)
        start = starting_rows(site, base, method)
        self.network: nn.Module | None = None
        if method.encoder is None:
            self.P = nn.Parameter(start)
            return
        d = site.out_features
        h = method.width or max(1, d // 2)
        self.E = nn.Parameter(torch.randn(method.length, d))
        self.network = Recurrent(d, h, method) if method.encoder == "lstm" else _mlp(d, h)
        if method.init != "random" and not start.is_meta:
            _fit(self.network, self.E, start.to(self.E))

    def table(self) -> Tensor:
        """[length, d]. In mixed precision the network stays in its own: LSTMs have no other everywhere."""
        if self.network is None:
            return self.P
        with torch.autocast(self.E.device.type, enabled=False):
            rows: Tensor = self.network(self.E)
        return rows

    def stored(self) -> dict[str, Tensor]:
        """The rows alone, with dropout off."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                return {"P": self.table().clone()}
        finally:
            self.train(training)


class Recurrent(nn.Module):
    """Linear(2h, d) ReLU Linear(2h, 2h) LSTM(d, h), both directions."""

    def __init__(self, d: int, h: int, method: PTuning) -> None:
        super().__init__()
        dropout = method.dropout if method.depth > 1 else 0.0
        self.lstm = nn.LSTM(d, h, num_layers=method.depth, bidirectional=True, batch_first=True, dropout=dropout)
        self.mlp = nn.Sequential(nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, d))

    def forward(self, rows: Tensor) -> Tensor:
        """[length, d] -> [length, d]."""
        out: Tensor = self.mlp(self.lstm(rows.unsqueeze(0))[0].squeeze(0))
        return out


def _mlp(d: int, h: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, d))


@torch.no_grad()
def _fit(network: nn.Module, E: Tensor, wanted: Tensor) -> None:
    """The last layer's W by least squares, so that the network gives `wanted` [length, d] for E; its b is zero."""
    last = (network.mlp if isinstance(network, Recurrent) else network)[-1]  # type: ignore[index]
    read: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    try:
        network(E)
    finally:
        handle.remove()
    last.weight.copy_((torch.linalg.pinv(read[0].double()) @ wanted.double()).T)
    last.bias.zero_()
