"""What a stage cuts: each candidate is scored, cut and refitted, and the one that costs least loss is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.data import Batch, Example, collate
from budwood.errors import BadConfig, BadData
from budwood.evaluate import evaluate_loss
from budwood.prune.cut import cut
from budwood.prune.importance import Scores, importance, keep
from budwood.prune.kept import Kept, Structure
from budwood.prune.refit import refit
from budwood.prune.search import search_layers
from budwood.prune.structure import structure_of
from budwood.shrink.config import FEWEST, Shrinking
from budwood.shrink.sizes import Shape, Sizing

TRIED = 64
"""Calibration rows that candidates are compared after; the one that is taken is refitted on all."""


@dataclass(frozen=True)
class Calibration:
    """Rows that scores and refits are made from, and rows that their outcome is judged on."""

    rows: tuple[Batch, ...]
    judged: tuple[Batch, ...]

    @classmethod
    def of(cls, train: Sequence[Example], held: Sequence[Example], pad_id: int, *, batch: int) -> Calibration:
        """Batches of rows of like length. Raises BadData for too few rows to tell anything."""
        check_rows(train)
        return cls(_batches(train, pad_id, batch), _batches(held or train, pad_id, batch))


def check_rows(train: Sequence[Example]) -> None:
    """Raise BadData for too few training rows to tell anything."""
    if len(train) < FEWEST:
        raise BadData(
            f"{len(train)} training rows are too few to find out what the model needs for them; give at least "
            f"{FEWEST}, better some hundred"
        )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The cut that was taken."""

    model: PreTrainedModel
    shape: Shape
    what: str
    loss: float
    """On the rows that candidates are judged on."""
    candidates: dict[str, float]
    """Every candidate with its loss after a refit on few rows; nothing where there was but one."""


def choose(
    model: PreTrainedModel,
    target: int,
    calibration: Calibration,
    settings: Shrinking,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Choice | None:
    """The best model of at most `target` parameters that is cut from this one; None where there is none."""
    anatomy = discover(model)
    structure = structure_of(model, anatomy)
    sizing = Sizing(model, structure, anatomy)
    maker = _Maker(model, structure, sizing, calibration, settings, seed)
    shapes = {shape: maker.kept(shape) for shape in sizing.candidates(target, settings.cut)}
    losses: dict[Shape, float] = {}
    for shape, kept in shapes.items() if len(shapes) > 1 else ():
        try:
            losses[shape] = maker.loss(maker.made(kept, few=True))
        except BadConfig as why:  # the blocks that the search would keep make no model of this class
            say(f"{sizing.now.change(shape)}: cannot be had: {why}")
            continue
        say(f"{sizing.now.change(shape)}: loss {losses[shape]:.4f}")
    if not losses and len(shapes) != 1:
        return None
    shape = min(losses or shapes, key=lambda one: losses.get(one, 0.0))
    made = maker.made(shapes[shape], few=False)
    return Choice(
        model=made,
        shape=shape,
        what=sizing.now.change(shape),
        loss=maker.loss(made),
        candidates={sizing.now.change(one): loss for one, loss in losses.items()},
    )


class _Maker:
    """Cuts one model to shapes."""

    def __init__(
        self,
        model: PreTrainedModel,
        structure: Structure,
        sizing: Sizing,
        calibration: Calibration,
        settings: Shrinking,
        seed: int,
    ) -> None:
        self.model, self.structure, self.sizing = model, structure, sizing
        self.calibration, self.settings = calibration, settings
        self.anatomy = sizing.subject.anatomy
        self.scores: Scores = importance(
            model,
            calibration.rows,
            structure=structure,
            anatomy=self.anatomy,
            score=settings.score,  # type: ignore[arg-type]  # Shrinking looks
            seed=seed,
        )

    def kept(self, shape: Shape) -> Kept:
        """What stays: by scores, and for blocks by a greedy search; where scores are random, by these alone."""
        sizes = self.sizing.sizes(shape)
        kept = keep(self.sizing.outline, self.scores, sizes)
        if not sizes.layers or self.settings.score == "random":
            return kept
        layers = {stack: self._blocks(stack, count) for stack, count in sizes.layers.items()}
        return replace(kept, layers=layers)

    def _blocks(self, stack: str, count: int) -> tuple[int, ...]:
        depth = self.structure.depths[stack]
        if count == depth:
            return tuple(range(depth))
        found = search_layers(
            self.model,
            self._few,
            stack=stack,
            count=count,
            structure=self.structure,
            anatomy=self.anatomy,
            ridge=max(self.settings.ridge, 1e-3),
        )
        return found.layers[stack]

    def made(self, kept: Kept, *, few: bool) -> PreTrainedModel:
        """The cut model, refitted."""
        weights = None
        if self.settings.ridge >= 0:
            rows = self._few if few else self.calibration.rows
            weights = refit(
                self.model, kept, rows, structure=self.structure, anatomy=self.anatomy, ridge=self.settings.ridge
            )
        return cut(self.model, kept, anatomy=self.anatomy, weights=weights)

    @property
    def _few(self) -> tuple[Batch, ...]:
        size = max(1, len(self.calibration.rows[0]))
        return self.calibration.rows[:: max(1, len(self.calibration.rows) * size // TRIED)]

    def loss(self, model: PreTrainedModel) -> float:
        """Mean loss on the rows that are judged on."""
        return evaluate_loss(model, self.calibration.judged).loss.value


def _batches(examples: Sequence[Example], pad_id: int, size: int) -> tuple[Batch, ...]:
    ordered = sorted(examples, key=lambda example: -example.size)
    return tuple(collate(ordered[at : at + size], pad_id) for at in range(0, len(ordered), size))
