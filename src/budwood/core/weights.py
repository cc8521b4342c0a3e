"""Weights of linears as the papers write them, whatever way a module stores them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from budwood.anatomy import Part
from budwood.errors import WrongOrder


def weight_of(base: nn.Module) -> Tensor:
    """The weight as [out, in], without gradient; transformers' Conv1D stores it transposed."""
    weight = base.get_parameter("weight").detach()
    return weight if isinstance(base, nn.Linear) else weight.T


def stored_as(base: nn.Module, weight: Tensor) -> Tensor:
    """A weight [out, in] in the layout in which `base` stores it."""
    return weight if isinstance(base, nn.Linear) else weight.T


def rows_of(part: Part) -> Tensor:
    """Output rows of a part of a fused linear: [size] int64."""
    return torch.cat([torch.arange(start, stop) for start, stop in part.rows])


def check_whole(weight: Tensor, what: str) -> None:
    """Raises WrongOrder for a weight that one site reads of another, where that one is sharded by itself."""
    if isinstance(weight, DTensor):
        raise WrongOrder(
            f"{what} reads in one block the weights it holds in another, and the blocks are sharded one by one; shard "
            "the model as a whole (fully_shard(model) alone)"
        )
