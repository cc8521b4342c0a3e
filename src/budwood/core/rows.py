"""Rows in front of an attention's keys and values: what they are, which of them act, and what the mask says of them.

Shapes: B batch, H heads of keys and values, Q and K their lengths in tokens, P rows in front, D a head's width.
"""

from __future__ import annotations

from threading import local

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.core.delta import Delta, acting_at, deltas_of
from budwood.core.plan import Part
from budwood.errors import WrongOrder


class _Met(local):
    """Whether the rows were put in front in this call of the module."""

    value = False

    def __reduce__(self) -> tuple[type[_Met], tuple[()]]:
        return _Met, ()


class FrontDelta(Delta):
    """A delta that puts trained rows in front of an attention's keys and values; what the module returns stays."""

    slopes: tuple[float, ...] = ()
    """For each head, what an additive bias grows by from key to key (ALiBi), where the rows have positions -P to -1."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self._met = _Met()

    def rows(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys [B or 1, H, P, D_k] and values [B or 1, H, P, D_v]."""
        raise NotImplementedError

    def weights(self) -> tuple[Tensor, Tensor] | None:
        """What every query multiplies the rows' keys and values by: [B, 1, Q, 1] each; None where nothing."""
        return None

    def bias(self, own: Tensor, queries: int, length: int) -> Tensor:
        """An additive position bias with the columns of P = length rows: [*, heads, Q, K] -> [*, heads, Q, P + K]."""
        if not self.slopes:
            return F.pad(own, (length, 0))
        places = torch.arange(-length, 0, device=own.device, dtype=own.dtype)
        columns = own.new_tensor(self.slopes)[:, None, None] * places  # [heads, 1, P]
        return torch.cat([own[..., :1] + columns, own], dim=-1)

    def note_met(self) -> None:
        """Called where the rows are put in front."""
        self._met.value = True

    def enter(self, x: Tensor) -> Tensor:
        """x as it is: this call of the module has not met the rows yet."""
        self._met.value = False
        return x

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y as it is. Raises WrongOrder where the rows were not put in front."""
        if not self._met.value:
            raise WrongOrder(
                f"{self.path} ran without its prefix: the attention implementation was changed after attaching; "
                "detach, change it with set_attn_implementation, then attach again"
            )
        return y


def acting(module: nn.Module, batch: int) -> list[tuple[Part, FrontDelta]]:
    """The plan's adapters that have rows here."""
    return acting_at(module, batch, FrontDelta)


def has_rows(module: nn.Module) -> bool:
    """Whether any adapter has rows at the module."""
    deltas = deltas_of(module)
    return deltas is not None and any(isinstance(delta, FrontDelta) for delta in deltas.children())


def in_front(rows: Tensor, own: Tensor) -> Tensor:
    """rows: [B or 1, H, P, D], own: [B, H, K, D] -> [B, H, P + K, D]."""
    return torch.cat([rows.to(own.dtype).expand(own.shape[0], -1, -1, -1), own], dim=2)


def with_columns(mask: Tensor, part: Part, length: int) -> Tensor:
    """The mask with columns for rows that every query sees, in the rows of the batch that the part is for.

    mask: [B or 1, heads or 1, Q or 1, K], bool (true is visible) or additive
    """
    if part.rows is None:
        return F.pad(mask, (length, 0), value=mask.dtype == torch.bool)
    visible = part.rows.to(mask.device)[:, None, None, None].expand(-1, *mask.shape[1:-1], length)
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, torch.finfo(mask.dtype).min)
    return torch.cat([visible, mask.expand(len(part.rows), -1, -1, -1)], dim=-1)
