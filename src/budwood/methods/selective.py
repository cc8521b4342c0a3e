"""Selective fine-tuning: some of the parameters that the model already has.

    bitfit        y + b at every linear and norm that has a bias (Ben Zaken et al. 2021, arXiv:2106.10199)
    norms         weights and biases of the normalisation layers, in place (Houlsby et al. 2019, section 3.4)
    last-layers   the last blocks, the final norm and the task head, in place (Houlsby et al. 2019, section 3.4)
    head          a copy of the task head, or of the output embedding of a language model, alone

BitFit here is an update added to each bias: the same function and number of parameters, with the base as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta, Method
from budwood.errors import BadConfig, NoSuchSite


@dataclass(frozen=True, kw_only=True)
class Selective(Method):
    """A subset of the existing parameters."""

    name = "selective"
    paper = "Ben Zaken et al. 2021, arXiv:2106.10199; Houlsby et al. 2019, arXiv:1902.00751, section 3.4"
    formula = "b, or norms, or W of the last blocks, or W of the head"
    learning_rate = 2e-3
    aliases: ClassVar[Mapping[str, str]] = {"modules_to_save": "trained", "num_layers": "last"}
    unused: ClassVar[tuple[str, ...]] = ("targets",)

    part: Literal["norms", "bitfit", "last-layers", "head"] = "norms"
    """What to train: norms, bitfit (all biases), last-layers, or head."""
    last: int = 2
    """How many of the last blocks `last-layers` trains."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets:
            raise BadConfig("selective has no targets; choose part=norms, bitfit, last-layers or head")
        if self.last < 1:
            raise BadConfig(f"selective: last is {self.last}; it must be at least 1")
        if self.layers is not None and self.part in ("last-layers", "head"):
            raise BadConfig(f"selective: part={self.part} has no layers; use last=N with last-layers")

    @property
    def rate(self) -> float:
        """Whole blocks want a full fine-tuning rate."""
        return 5e-5 if self.part == "last-layers" else self.learning_rate

    def trained_sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """For `head`, the task head or else the output embedding; otherwise as for any method."""
        if self.part == "head" and self.trained is None:
            return anatomy.select("head" if "head" in anatomy.roles else "head.lm")
        return super().trained_sites(anatomy)

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """For bitfit, every linear and norm outside the heads that has a bias; for head, none but the head."""
        if self.part == "head":
            return ()
        sites = tuple(
            site
            for site in anatomy.sites
            if site.kind in ("linear", "conv1d", "norm")
            and site.role not in ("head", "head.lm")
            and site.path not in anatomy.uncalled
            and (self.layers is None or site.layer in self.layers)
            and model.get_submodule(site.path)._parameters.get("bias") is not None
        )
        if not sites:
            raise NoSuchSite(
                "selective:part=bitfit found no bias in this model (Llama-type models have none); use part=norms"
            )
        return sites

    def build(self, site: Site, base: nn.Module) -> Delta:
        """An update of one bias."""
        return BiasDelta(base.get_parameter("bias").numel())

    def unfreeze(self, model: nn.Module, anatomy: Anatomy) -> tuple[str, ...]:
        """The base's own parameters for norms and last-layers."""
        if self.part == "norms":
            roots = [s for s in anatomy.sites if s.kind == "norm" and (self.layers is None or s.layer in self.layers)]
        elif self.part == "last-layers":
            roots = self._last(anatomy)
        else:
            return ()
        roots += self.trained_sites(anatomy)
        inside = tuple(f"{site.path}." for site in roots)
        names = tuple(n for n, p in model.named_parameters() if n.startswith(inside) and p.is_floating_point())
        if not names:
            raise NoSuchSite(
                f"selective:part={self.part} found nothing in this model; roles: {', '.join(anatomy.roles)}"
            )
        return names

    def _last(self, anatomy: Anatomy) -> list[Site]:
        blocks = [site for site in anatomy.sites if site.role == "block"]
        if not blocks:
            raise NoSuchSite("selective:part=last-layers found no stack of blocks in this model")
        stack = [site for site in blocks if site.stack == blocks[-1].stack]
        final = [s for s in anatomy.sites if s.role == "norm.final" and s.stack == stack[-1].stack]
        return stack[-self.last :] + final


class BiasDelta(Delta):
    """y + b.  b: [out], starts at zero."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.zeros(out_features))

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [*, out] -> [*, out]."""
        return y + self.b.to(y.dtype)

    def fold(self, base: nn.Module) -> dict[str, Tensor]:
        """The base's bias plus b."""
        return {"bias": base.get_parameter("bias").to(self.b.dtype) + self.b}
