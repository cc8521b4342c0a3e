"""Full fine-tuning: every parameter of the model, in place.

The original values are kept beside the model, so `detach` gives the base back bit for bit, and `merge` drops them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from budwood.anatomy import Anatomy
from budwood.core import Method
from budwood.errors import BadConfig


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """All of the model's own parameters."""

    name = "full"
    paper = "Devlin et al. 2018, arXiv:1810.04805, section 4"
    formula = "W"
    learning_rate = 5e-5
    unused: ClassVar[tuple[str, ...]] = ("targets", "layers", "trained")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets or self.layers or self.trained:
            raise BadConfig(
                "full trains every parameter; for some of them use selective, as selective:part=last-layers"
            )

    def unfreeze(self, model: nn.Module, anatomy: Anatomy) -> tuple[str, ...]:
        """Every floating-point parameter, tied ones once."""
        return tuple(name for name, p in model.named_parameters() if p.is_floating_point())
