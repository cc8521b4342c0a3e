"""The door for jobs whose loss is more than that of their task: a distillation brings a teacher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import nn

from budwood.records import Json
from budwood.train.objective import Objective

if TYPE_CHECKING:
    from budwood.data import Corpus
    from budwood.train.job import Job
    from budwood.train.material import Material
    from budwood.train.setup import Prepared

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What a recipe makes of a job that is about to begin."""

    objective: Objective
    """What its steps minimise."""
    beside: dict[str, nn.Parameter] = field(default_factory=dict)
    """Parameters that the loss trains for itself, on the model's device, float32."""
    lines: tuple[str, ...] = ()
    """What a person should know before it starts."""
    identity: Mapping[str, str] = field(default_factory=dict)
    """What a resumed run must find unchanged."""
    before: Callable[[Say], None] | None = None
    """Called once the run folder is there, before anything is tried or trained; said with a line for people."""
    is_long: bool = False
    """Whether that takes so long that a run which is stopped in it should be able to go on."""


class Recipe(Protocol):
    """What is learned beside, or instead of, the data's own targets."""

    def rewrite(self, job: Job, corpus: Corpus, max_length: int, say: Say | None) -> Corpus:
        """The rows that are trained on, from those that were read; called before they are encoded.

        max_length: tokens a row keeps
        say:        called with a line for people; None where nothing must be computed or written (`--dry-run`)
        """

    def teach(self, job: Job, material: Material, prepared: Prepared) -> Lesson:
        """Called once the adapter is attached, before anything is measured."""

    def to_dict(self) -> dict[str, Json]:
        """What config.yaml says of it; one of the keys is `teacher`."""
