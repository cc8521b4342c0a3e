"""Students made from their teacher: blocks kept and width cut by importance, the warm start of a smaller network."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from budwood.anatomy import discover
from budwood.assets.quiet import quiet
from budwood.core import Method
from budwood.data import collate
from budwood.distill.opening import identity_of, load_named, named
from budwood.errors import BadConfig, did_you_mean
from budwood.prune.cut import cut
from budwood.prune.importance import importance, keep
from budwood.prune.kept import Kept, Sizes, Structure
from budwood.prune.refit import refit
from budwood.prune.structure import structure_of
from budwood.records import count
from budwood.records.files import not_writable
from budwood.train.job import Job
from budwood.train.material import Material, gather, spread

FIELDS = ("layers", "ffn", "heads", "hidden")
SELF = "self"
"""What one writes for the teacher's own base."""
ROWS = 224
"""Training rows that importance is measured on."""
EVERY = "even"
"""layers=even0.5: evenly spaced blocks instead of the most important ones."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """What to make of a teacher: shares (0.5) or numbers (6) of each that are to stay."""

    layers: float | None = None
    ffn: float | None = None
    heads: float | None = None
    hidden: float | None = None
    is_even: bool = False
    """Keep evenly spaced blocks (DistilBERT) instead of those of most influence."""

    @classmethod
    def parse(cls, text: str) -> Made | None:
        """`layers=0.5,ffn=768`; None for what is no such thing. Raises BadConfig for a field that there is not."""
        if "=" not in text or Path(text).exists():
            return None
        values: dict[str, Any] = {}
        for part in text.split(","):
            name, _, value = (word.strip() for word in part.partition("="))
            if name not in FIELDS:
                raise BadConfig(f"a student is made by {', '.join(FIELDS)}, not {name!r}; {did_you_mean(name, FIELDS)}")
            if name in values:
                raise BadConfig(f"{name} is said twice in {text!r}; keep one")
            if name == "layers" and value.startswith(EVERY):
                values["is_even"], value = True, value.removeprefix(EVERY)
            values[name] = _size(name, value)
        return cls(**values)

    def sizes(self, structure: Structure) -> Sizes:
        """As numbers of this model."""
        counts = {units.dimension: units.count for units in structure.units}
        depths = {stack: _share(self.layers, depth, 2) for stack, depth in structure.depths.items()}
        return Sizes(
            layers=None if self.layers is None else depths,
            ffn=None if self.ffn is None else _share(self.ffn, counts.get("ffn", 1)),
            heads=None if self.heads is None else _share(self.heads, counts.get("heads", 1)),
            hidden=None if self.hidden is None else _share(self.hidden, structure.hidden),
        )


def prepared_student(
    teacher: str | Path, student: str | Path, settings: Mapping[str, Any], *, say: Callable[[str], None]
) -> str:
    """The student as a model's name or folder: made of the teacher where it says so, in `runs/students`.

    settings: of the job, by name (data, task, columns, template, seed, max_length, ...)
    Raises BadConfig for a teacher that cannot be cut so, and what reading the data does.
    """
    if str(student) == SELF:
        return str(named(teacher).base)
    made = Made.parse(str(student))
    if made is None:
        return str(student)
    known = set(Job.__dataclass_fields__) - {"config"}
    job = Job.from_dict({key: value for key, value in settings.items() if key not in known or key in _SAID} | {
        "model": str(named(teacher).base), "method": "full"
    })
    return str(make_student(teacher, made, job, say=say))
