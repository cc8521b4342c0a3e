"""Prompt Tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester et al. 2021, arXiv:2104.08691).

    [P; E(x)]        P: [length, d], the only thing that is trained

The paper draws the random start from U(-0.5, 0.5) on T5's scale; here it is normal with the embedding table's own
standard deviation, because tables differ in it by a factor of a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Delta
from budwood.core.entrance import embeddings_site
from budwood.core.inputs import PromptDelta, StatesDelta
from budwood.errors import BadConfig
from budwood.methods.words import InText, starting_rows


@dataclass(frozen=True, kw_only=True)
class PromptTuning(InText):
    """Trained embeddings in front of the text."""

    name = "prompt-tuning"
    paper = "Lester et al. 2021, arXiv:2104.08691"
    formula = "[P; E(x)]"
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "prompt_length": "length", "prompt_tuning_init_text": "text",
        "modules_to_save": "trained",
    }  # fmt: skip

    level: Literal["words", "states"] = "words"
    """Where the rows enter an encoder: among the words, or behind the embeddings, without positions, types and norms
    (AdapterHub's)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.level == "states" and self.place == "inside":
            raise BadConfig("prompt-tuning: level=states has no pseudo tokens; use place=front or after-first")

    @property
    def positions_taken(self) -> int:
        """Only where the rows are words."""
        return 0 if self.level == "states" else super().positions_taken

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """The input embedding, or the module of all embeddings."""
        return super().sites(model, anatomy) if self.level == "words" else (embeddings_site(model, anatomy),)

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The prompt."""
        return PromptRows(site, base, self) if self.level == "words" else PromptStates(site, base, self)


class PromptRows(PromptDelta):
    """P: [length, d]."""

    def __init__(self, site: Site, base: nn.Module, method: PromptTuning) -> None:
        assert method.place is not None
        super().__init__(site, method.length, method.place)
        self.P = nn.Parameter(starting_rows(site, base, method))

    def table(self) -> Tensor:
        """[length, d]."""
        return self.P


class PromptStates(StatesDelta):
    """P: [length, d]."""

    def __init__(self, site: Site, base: nn.Module, method: PromptTuning) -> None:
        assert method.place is not None
        super().__init__(site, method.length, method.place)
        words = next(m for m in base.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == site.in_features)
        self.P = nn.Parameter(starting_rows(site, words, method))

    def rows(self) -> Tensor:
        """[length, d]."""
        return self.P
