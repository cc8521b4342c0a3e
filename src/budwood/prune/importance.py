"""Which units, blocks and channels matter: scores from a few forwards over text, and what stays by them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, discover
from budwood.data import Batch
from budwood.errors import BadConfig, BadData
from budwood.evaluate import evaluating
from budwood.evaluate.inputs import fitted
from budwood.prune.calibration import listening, logits_at, rows_of, summed_loss, text
from budwood.prune.kept import Kept, Sizes, Structure

Score = Literal["activation", "taylor", "random"]
"""How units are scored. The size of weights is no such score: it cuts what every text needs."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How much there is to lose: the higher, the more. Scores compare within one tensor only."""

    units: Mapping[str, Tensor]
    """`Units.path` to [count] float32."""
    layers: Mapping[str, Tensor]
    """Stack to [depth] float32: block influence, 1 - cos of what a block reads and returns (Men et al. 2024)."""
    channels: Tensor
    """[hidden] float32: the mean of |state| over the blocks, where every block counts the same."""


def importance(
    model: Any,
    batches: Iterable[Batch],
    *,
    structure: Structure,
    anatomy: Anatomy | None = None,
    score: Score = "activation",
    seed: int = 0,
) -> Scores:
    """Scores from text: every position that is not padding counts the same, prompts included.

    score: `activation`, mean |a| of what a unit hands on;  `taylor`, mean |a dL/da| with L the summed loss of the
           labels, for which one backward runs as well;  `random`, from the seed, to compare with
    Raises BadConfig for another score, BadData where there is no text, or for taylor no label.
    """
    if score not in get_args(Score):
        raise BadConfig(f"score is {score!r}; there are: {', '.join(get_args(Score))}")
    if score == "random":
        return _random(structure, seed)
    found = _Sums(structure, anatomy or discover(model), with_gradients=score == "taylor")
    with evaluating(model), torch.set_grad_enabled(score == "taylor"):
        for batch in batches:
            found.add(model, fitted(model, batch.to(model.device)))
    return found.scores()


class _Sums:
    """Sums over positions of text, by path."""

    def __init__(self, structure: Structure, anatomy: Anatomy, *, with_gradients: bool) -> None:
        self.structure, self.with_gradients = structure, with_gradients
        self.blocks = {s.path: s for s in anatomy.sites if s.role == "block" and s.layer is not None}
        self.sums: defaultdict[str, Tensor | float] = defaultdict(float)
        self.positions: defaultdict[str, int] = defaultdict(int)

    def add(self, model: Any, batch: Batch) -> None:
        """One batch's."""
        there = {stack: text(batch, stack) for stack in {b.stack for b in self.blocks.values()}}
        before = [(u.path, partial(self._unit, u.path, there[u.stack])) for u in self.structure.units]
        after = [(path, partial(self._block, path, there[site.stack])) for path, site in self.blocks.items()]
        with listening(model, before, after):
            if self.with_gradients:
                with _frozen(model):
                    summed_loss(model, batch).backward()
            else:
                first = torch.zeros(1, dtype=torch.int64, device=model.device)
                logits_at(model, batch, first, first)

    def _unit(self, path: str, there: Tensor, a: Tensor) -> Tensor | None:
        """a: [*, in], what the linear reads."""
        if not self.with_gradients:
            self._count(path, rows_of(a, there).float().abs())
            return None
        a = a if a.requires_grad else a.detach().requires_grad_()  # nothing before it is asked for its gradient
        a.register_hook(lambda gradient: self._count(path, rows_of((a * gradient).detach(), there).float().abs()))
        return a

    def _block(self, path: str, there: Tensor, x: Tensor, y: Tensor) -> None:
        """x, y: [*, d], what a block reads and returns."""
        x, y = rows_of(x.detach(), there).float(), rows_of(y.detach(), there).float()
        self._count(path, 1 - torch.cosine_similarity(x, y, dim=-1)[:, None])
        self._count(f"{path} channels", y.abs())

    def _count(self, path: str, values: Tensor) -> None:
        """values: [positions, *]"""
        self.sums[path] += values.sum(dim=0)
        self.positions[path] += len(values)

    def _mean(self, path: str) -> Tensor:
        total = self.sums[path]
        if not self.positions[path] or isinstance(total, float):
            raise BadData(f"no text went through {path}, so nothing can be said of it; give at least one row with text")
        return total / self.positions[path]

    def scores(self) -> Scores:
        """Means over positions; of units wider than one feature, over these as well."""
        units = {u.path: self._mean(u.path).view(u.count, u.width).mean(dim=1) for u in self.structure.units}
        stacks: defaultdict[str, list[Tensor]] = defaultdict(list)
        for path, site in sorted(self.blocks.items(), key=lambda item: item[1].layer or 0):
            stacks[site.stack].append(self._mean(path)[0])
        states = [self._mean(f"{path} channels") for path in self.blocks]
        return Scores(
            units=units,
            layers={stack: torch.stack(influences) for stack, influences in stacks.items()},
            channels=torch.stack([state / state.mean() for state in states]).mean(dim=0),
        )


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter is asked for its gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _random(structure: Structure, seed: int) -> Scores:
    dice = torch.Generator().manual_seed(seed)
    return Scores(
        units={units.path: torch.rand(units.count, generator=dice) for units in structure.units},
        layers={stack: torch.rand(depth, generator=dice) for stack, depth in structure.depths.items()},
        channels=torch.rand(structure.hidden, generator=dice),
    )


def keep(structure: Structure, scores: Scores, sizes: Sizes) -> Kept:
    """What scores highest stays, as many as the sizes say; of a stack, the first and the last block in any case.

    Raises BadConfig for a size that the model does not have, or in a dimension that it cannot be cut in.
    """
    for dimension in ("layers", "ffn", "heads", "hidden"):
        if getattr(sizes, dimension) is not None and dimension in structure.refused:
            raise BadConfig(f"{dimension} of this model cannot be cut: {structure.refused[dimension]}")
    wanted = {"ffn": sizes.ffn, "heads": sizes.heads}
    units = {}
    for part in structure.units:
        size = wanted[part.dimension]
        if size is not None:
            _check(size, 1, part.count, f"{part.dimension} of {part.path}")
            group = next((g for g in structure.together if part.path in g), (part.path,))
            units[part.path] = highest(
                torch.stack([scores.units[p] / scores.units[p].mean() for p in group]).sum(dim=0), size
            )
    layers = {}
    for stack, size in (sizes.layers or {}).items():
        if stack not in structure.depths:
            raise BadConfig(f"there is no stack {stack!r}; there are: {', '.join(structure.depths)}")
        depth = structure.depths[stack]
        _check(size, min(2, depth), depth, f"layers of {stack} (the first and last block always stay)")
        influence = scores.layers[stack].clone()
        influence[0] = influence[-1] = torch.inf
        layers[stack] = highest(influence, size)
    if sizes.hidden is not None:
        _check(sizes.hidden, 1, structure.hidden, "hidden")
    channels = None if sizes.hidden is None else highest(scores.channels, sizes.hidden)
    return Kept(layers=layers, units=units, channels=channels)


def highest(scores: Tensor, size: int) -> tuple[int, ...]:
    """Numbers of the highest scores, ascending; of equal ones, the first."""
    return tuple(sorted(scores.argsort(descending=True, stable=True)[:size].tolist()))


def _check(size: int, least: int, most: int, what: str) -> None:
    if not least <= size <= most:
        raise BadConfig(f"{what}: {size} are to stay; give a number from {least} to {most}")
