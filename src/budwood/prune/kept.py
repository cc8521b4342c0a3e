"""What can be cut from a model, and what stays of it: plain data, by the paths and numbers of the uncut model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DIMENSIONS = ("layers", "ffn", "heads", "hidden", "vocabulary")
"""The words for what can be cut."""
CUT_HERE = DIMENSIONS[:-1]
"""Those that need nothing but the model; a vocabulary needs its tokenizer, too."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """The inputs of one linear as units that are kept or cut whole.

    Of a feed-forward's last linear a unit is a neuron; of an attention's, a group of query heads with the keys and
    values that they share.
    """

    path: str
    """Of the linear that reads them (`SubLayer.linear`): model.layers.3.mlp.down_proj."""
    dimension: Literal["ffn", "heads"]
    stack: str
    layer: int
    count: int
    width: int = 1
    """Consecutive input features of the linear that make up a unit."""


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a model offers to be cut."""

    depths: Mapping[str, int]
    """Blocks of each stack."""
    units: tuple[Units, ...]
    """Every feed-forward's and attention's, in the model's order."""
    hidden: int
    """Width of the residual stream."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Dimension to the reason why this model cannot be cut there."""
    together: tuple[tuple[str, ...], ...] = ()
    """`Units.path` of those that have to keep the same numbers, as heads that share a table of positions (T5)."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays. What is not named stays whole. Numbers are ascending and count from 0 in the uncut model."""

    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Stack to the numbers of the blocks that stay."""
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """`Units.path` to the numbers of the units that stay; those of cut blocks do not matter."""
    channels: tuple[int, ...] | None = None
    """Channels of the residual stream that stay."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is to stay; None keeps what there is."""

    layers: Mapping[str, int] | None = None
    """Stack to blocks."""
    ffn: int | None = None
    """Neurons of each feed-forward."""
    heads: int | None = None
    """Groups (of query heads with their keys and values) of each attention."""
    hidden: int | None = None
    """Channels of the residual stream."""
