"""What is known of each stage of a shrinking: plain data, one line of stages.jsonl each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from budwood.errors import BadCheckpoint
from budwood.records import Json, Score, Timing

BEGINNINGS = ("original", "tuned", "vocabulary")
"""Kinds of stages before anything but tokens is cut."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One model on the way, with what it costs and what it can."""

    number: int
    """Counted from 0, the model as it was given."""
    kind: str
    """original, tuned, vocabulary, or cut."""
    what: str
    """What was done, for people: "ffn 1536 -> 1280"."""
    sizes: Mapping[str, int]
    """Layers, ffn, heads, hidden and vocabulary by now."""
    parameters: int
    """Of the whole model, shared ones once."""
    share: float
    """Of the original's parameters."""
    scores: tuple[Score, ...]
    """On the held-out rows, with intervals."""
    quality: Score | None
    """As a share of the unshrunk model's, from the same rows, with a paired interval; None before there is one."""
    timing: Timing
    """Reading and writing."""
    speedup: float
    """How many times faster than the original it answers: 64 tokens read, 16 written."""
    cut_s: float = 0.0
    """Seconds spent scoring, choosing, cutting and refitting."""
    recover_s: float = 0.0
    """Seconds spent in training steps."""
    cut_loss: float | None = None
    """Loss on calibration rows after the refit, before recovery."""
    candidates: Mapping[str, float] = field(default_factory=dict)
    """What else could have been cut, by words, with its loss on the same rows."""
    accepted: bool = True
    """False for a stage that was undone."""
    folder: str | None = None
    """Where its model is, in the run folder; None of one that was undone."""

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> Stage:
        """The stage that a line says. Raises BadCheckpoint for one that is none."""
        try:
            plain = dict(values)
            plain["scores"] = tuple(Score(**score) for score in plain["scores"])
            plain["quality"] = None if plain["quality"] is None else Score(**plain["quality"])
            plain["timing"] = Timing(**plain["timing"])
            return cls(**plain)
        except (KeyError, TypeError) as error:
            raise BadCheckpoint(f"{where} holds a stage that cannot be read ({error}); start the run again") from error
