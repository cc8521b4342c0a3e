"""Several methods under one name, a prefix among them, each at modules of its own: a part of methods, not a method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.errors import BadConfig
from budwood.methods.words import FromWords


@dataclass(frozen=True, kw_only=True)
class Union(FromWords):
    """A method made of others."""

    attention: tuple[str, ...] = ("attn", "cross?")
    """Which attention has a prefix: attn, cross, or names of modules; a ? at the end means: where there is one."""
    width: int | None = None
    """Hidden width of the network that the prefix comes out of while it is trained; none for plain rows."""
    dropout: float = 0.0
    """Of the prefix's keys and values, drawn for each row of a batch while training."""
    bias: Literal["zero", "looked-up", "adapterhub"] = "zero"
    """Additive position bias of the prefix (T5): none, that of positions -P to -1, or AdapterHub's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()  # which say what they refuse

    def parts(self) -> tuple[Method, ...]:
        """The methods it is made of."""
        raise NotImplementedError

    def part_at(self, site: Site) -> Method:
        """The one that acts at a site."""
        raise NotImplementedError

    @property
    def is_stackable(self) -> bool:
        """Where all of them are."""
        return all(part.is_stackable for part in self.parts())

    @property
    def rate(self) -> float:
        """What is not too much for any of them."""
        return min(part.rate for part in self.parts())

    @property
    def deployed(self) -> Self:
        """With plain rows."""
        return self if self.width is None else replace(self, width=None, dropout=0.0)

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """Those of all of them, in model order. Raises BadConfig where two act at one module."""
        order = {path: place for place, (path, _) in enumerate(model.named_modules())}
        found = [site for part in self.parts() for site in part.sites(model, anatomy)]
        owners: dict[nn.Module, Method] = {}
        for site in found:
            part = self.part_at(site)
            other = owners.setdefault(model.get_submodule(site.path), part)
            if other != part:
                raise BadConfig(
                    f"{self.name}: {part.name} and {other.name} both act at {site.path}, and one adapter can be there "
                    "once; choose other targets, or attach them as two adapters and activate Stack"
                )
        return tuple(sorted(found, key=lambda site: order[site.path]))

    def build(self, site: Site, base: nn.Module) -> Delta:
        """What the part does there."""
        return self.part_at(site).build(site, base)
