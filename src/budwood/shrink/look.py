"""Everything that is measured of a model on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from budwood.evaluate import LossReport
from budwood.prune.structure import structure_of
from budwood.records import count
from budwood.shrink.measure import Held, answer_s, timed
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


def looked_at(model: Any, found: Found, held: Held, *, original: Stage | None, whole: LossReport | None) -> Stage:
    """The stage, with its size, quality and speed.

    original: the first stage, None for itself
    whole:    what the unshrunk model makes of the same rows, once there is one
    """
    own, timing, parameters = held.ask(model), timed(model), count(model.parameters())[0]
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
        speedup=1.0 if original is None else answer_s(original.timing) / answer_s(timing),
        cut_s=found.cut_s,
        recover_s=found.recover_s,
    )
