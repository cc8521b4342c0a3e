"""What a cut model will compute, computed by the uncut one: units that are set to zero, blocks that are passed by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.core.attach import attach, detach
from budwood.errors import BadConfig
from budwood.prune.asked import check
from budwood.prune.fit import Subject
from budwood.prune.kept import Kept
from budwood.prune.structure import outline, subject_of

GATES = "closed-gates"


class Gate(Delta):
    """x * z at a linear that reads units."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.register_buffer("z", z)

    def enter(self, x: Tensor) -> Tensor:
        """x where the unit is kept, 0 where it is cut. x: [*, in]."""
        return x * self.get_buffer("z").to(x.dtype)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y, as it came."""
        return y


class Bypass(Delta):
    """A block that returns what it reads."""

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x in place of y. Both [batch, tokens, hidden]."""
        return x


@dataclass(frozen=True, kw_only=True)
class Closed(Method):
    """The gates of a `Kept` as a method, so that core attaches them and takes them off."""

    name: ClassVar[str] = "closed"
    paper: ClassVar[str] = "none: a part of pruning"
    formula: ClassVar[str] = "h = W (x * z); y = x for a block that is cut"
    learning_rate: ClassVar[float] = 0.0

    kept: tuple[tuple[str, tuple[int, ...]], ...] = field(default=())
    """Path of a linear to the input features that stay; of a block, nothing."""

    def __post_init__(self) -> None:
        """Nothing to translate: no person types these fields."""

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """The linears and blocks that are named."""
        paths = {path for path, _ in self.kept}
        return tuple(site for site in anatomy.sites if site.path in paths)

    def trained_sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """None: nothing is trained."""
        return ()

    def build(self, site: Site, base: nn.Module) -> Delta:
        """A bypass for a block, a gate for a linear."""
        chosen = dict(self.kept)[site.path]
        if site.role == "block":
            return Bypass()
        z = torch.zeros(site.in_features)
        z[list(chosen)] = 1
        return Gate(z)


@contextmanager
def closed(model: PreTrainedModel, kept: Kept, anatomy: Anatomy | None = None) -> Iterator[None]:
    """Inside, the model computes what `cut(model, kept)` will: the same forwards, at the cost of the whole model.

    Nothing requires a gradient inside but what the caller asks for. Raises BadConfig for channels: a norm over some of
    them has no such form.
    """
    subject = subject_of(model, anatomy)
    check(kept, outline(subject))
    if kept.channels is not None:
        raise BadConfig("channels cannot be shut off by gates, since norms take them all together; cut them")
    with shut(subject, kept):
        yield


@contextmanager
def shut(subject: Subject, kept: Kept) -> Iterator[None]:
    """`closed` for a model that is read, and a `Kept` that is checked."""
    chosen = _chosen(subject, kept)
    for stack, layers in kept.layers.items():
        chosen |= {path: () for layer, path in subject.blocks[stack].items() if layer not in layers}
    if not chosen:
        yield
        return
    attach(subject.model, Closed(kept=tuple(chosen.items())), name=GATES, anatomy=subject.anatomy)
    try:
        yield
    finally:
        detach(subject.model, GATES)


def _chosen(subject: Subject, kept: Kept) -> dict[str, tuple[int, ...]]:
    """Input features that stay, by linear."""
    widths = {group.units.path: group.units.width for group in subject.groups}
    return {
        path: tuple(unit * widths[path] + i for unit in chosen for i in range(widths[path]))
        for path, chosen in kept.units.items()
    }
