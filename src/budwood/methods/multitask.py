"""Multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861).

    P_t = P * (U_t V_t)        P: [length, d] of all tasks, U_t: [length, rank] and V_t: [rank, d] of task t

`Tasks("name", rows)` says of which task each row of a batch is. U and V start as the paper's code has them, N(0, 0.02),
around a product of ones (the first column and row), so that every task starts as P; PEFT leaves the ones out, and
its prompts start near zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from budwood.anatomy import Site
from budwood.core import Delta
from budwood.core.inputs import PromptDelta
from budwood.errors import BadConfig
from budwood.methods.words import InText, starting_rows


@dataclass(frozen=True, kw_only=True)
class MultitaskPrompt(InText):
    """One prompt for several tasks, with a low-rank factor for each."""

    name = "multitask-prompt"
    paper = "Wang et al. 2023, arXiv:2303.02861"
    formula = "[P * (U_t V_t); E(x)]"
    aliases: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "length", "num_tasks": "tasks", "num_ranks": "rank", "modules_to_save": "trained",
    }  # fmt: skip

    tasks: int = 1
    """How many tasks there are."""
    rank: int = 1
    """Rank of each task's factor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what, number in {"tasks": self.tasks, "rank": self.rank}.items():
            if number < 1:
                raise BadConfig(f"multitask-prompt.{what} is {number}; it must be at least 1")

    @property
    def num_tasks(self) -> int:
        """As given."""
        return self.tasks

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The prompt and its factors."""
        return MultitaskRows(site, base, self)


class MultitaskRows(PromptDelta):
    """P: [length, d], U: [tasks, length, rank], V: [tasks, rank, d]."""

    def __init__(self, site: Site, base: nn.Module, method: MultitaskPrompt) -> None:
        assert method.place is not None
        super().__init__(site, method.length, method.place)
        self.P = nn.Parameter(starting_rows(site, base, method))
        self.U = nn.Parameter(torch.randn(method.tasks, method.length, method.rank) * 0.02)
        self.V = nn.Parameter(torch.randn(method.tasks, method.rank, site.out_features) * 0.02)
        with torch.no_grad():
            self.U[:, :, 0] += 1
            self.V[:, 0, :] += 1

    def table(self) -> Tensor:
        """[tasks * length, d]."""
        return (self.P * (self.U @ self.V)).flatten(0, 1)
