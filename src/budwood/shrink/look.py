"""Everything that is measured of a model on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budwood.evaluate import LossReport
from budwood.prune.structure import structure_of
from budwood.records import count
from budwood.shrink.measure import Held, timed, timed_beside
from budwood.shrink.sizes import Shape
from budwood.shrink.stage import Stage


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is known of a stage before its model is looked at; fields as `Stage` has them."""

    kind: str
    what: str
    number: int
    cut_s: float
    recover_s: float


def looked_at(
    model: Any,
    found: Found,
    held: Held,
    *,
    original: Stage | None,
    whole: LossReport | None,
    is_whole: bool,
    beside: tuple[Any, float] | None,
) -> Stage:
    """The stage, with its size, quality and speed.

    original: the first stage, None for itself
    whole:    what the unshrunk model makes of the same rows, once there is one
    is_whole: whether this is the unshrunk model itself
    beside:   a model to compare its speed with, and how many times faster than the original that one is; None for a
              model of the original's shape
    """
    own, parameters = held.ask(model), count(model.parameters())[0]
    timing, times = (timed(model), 1.0) if beside is None else timed_beside(model, beside[0])
    whole = own if is_whole else whole
    vocabulary = model.get_input_embeddings().weight.shape[0]
    return Stage(
        number=found.number,
        kind=found.kind,
        what=found.what,
        sizes={**Shape.of(structure_of(model)).to_dict(), "vocabulary": vocabulary},
        parameters=parameters,
        share=1.0 if original is None else parameters / original.parameters,
        scores=held.scores(own),
        quality=None if whole is None else held.quality(own, whole),
        timing=timing,
        speedup=times * (1.0 if beside is None else beside[1]),
        cut_s=found.cut_s,
        recover_s=found.recover_s,
    )
