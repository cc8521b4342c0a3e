"""Prompt Tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021, arXiv:2104.08691).

    [P; E(x)]        P: [length, d], the only thing that is trained

The paper draws the random start from U(-0.5, 0.5) on T5's scale; here it is normal with the embedding table's own
standard deviation, because tables differ in it by a factor of a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core import Delta
from budwood.core.inputs import PromptDelta
from budwood.methods.words import InText, starting_rows


@dataclass(frozen=True, kw_only=True)
class PromptTuning(InText):
    """Trained embeddings in front of the text."""

    name = "prompt-tuning"
    paper = "Lester et al. 2021, arXiv:2104.08691"
    formula = "[P; E(x)]"
    learning_rate = 3e-2
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "prompt_length": "length", "prompt_tuning_init_text": "text",
        "modules_to_save": "trained",
    }  # fmt: skip

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The prompt."""
        return PromptRows(site, base, self)


class PromptRows(PromptDelta):
    """P: [length, d]."""

    def __init__(self, site: Site, base: nn.Module, method: PromptTuning) -> None:
        assert method.place is not None
        super().__init__(site, method.length, method.place)
        self.P = nn.Parameter(starting_rows(site, base, method))

    def table(self) -> Tensor:
        """[length, d]."""
        return self.P
