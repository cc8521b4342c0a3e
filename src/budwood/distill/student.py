"""Students made from their teacher: blocks kept and width cut by importance, the warm start of a smaller network."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budwood.anatomy import discover
from budwood.assets.quiet import quiet
from budwood.data import collate
from budwood.distill.opening import Named, identity_of, load_named, named
from budwood.errors import BadConfig, did_you_mean
from budwood.prune.cut import cut
from budwood.prune.importance import importance, keep
from budwood.prune.kept import Sizes, Structure
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
        depths = {stack: _share(self.layers or 1, depth, 2) for stack, depth in structure.depths.items()}
        return Sizes(
            layers=None if self.layers is None else depths,
            ffn=None if self.ffn is None else _share(self.ffn, counts.get("ffn", 1)),
            heads=None if self.heads is None else _share(self.heads, counts.get("heads", 1)),
            hidden=None if self.hidden is None else _share(self.hidden, structure.hidden),
        )


def with_student(
    job: Job, teacher: Any, *, say: Callable[[str], None] = lambda line: None, shelf: Path | None = None
) -> Job:
    """The job on a model that there is: `self` is the teacher's base, and what is to be made of the teacher is made.

    shelf: where made students are kept; None is `job.root`/students
    Raises BadConfig for a teacher that cannot be cut so, or one in memory where a student is to be made of it.
    """
    if not isinstance(job.model, str | Path):
        return job
    made = Made.parse(str(job.model))
    if made is None and str(job.model) != SELF:
        return job
    if not isinstance(teacher, str | Path):
        raise BadConfig(
            f"the student is {job.model!r}, which is made of a teacher that has a name; save the teacher, and name its "
            "folder, or give the student as a model"
        )
    who = named(teacher, root=job.root)
    if made is None:
        return replace(job, model=str(who.base))
    place = make_student(who, made, job, say=say, shelf=shelf or job.root / "students")
    return replace(job, model=str(place.absolute()))


def make_student(who: Named, made: Made, job: Job, *, say: Callable[[str], None], shelf: Path) -> Path:
    """A model folder on the shelf, cut from the teacher and refitted on the job's data; made once.

    Raises what `keep`, `cut` and reading the data do.
    """
    material = gather(replace(job, model=str(who.base), recipe=None))
    model, tokenizer = load_named(
        who,
        task=material.corpus.task,
        labels=material.corpus.labels,
        offline=job.offline,
        trust_remote_code=job.trust_remote_code,
        allow_pickle=job.allow_pickle,
    )
    key = hashlib.sha256(repr((identity_of(model, who), made, material.identity)).encode()).hexdigest()[:8]
    place = shelf / f"{_stem(who)}-{_stem_of(made)}-{key}"
    if place.is_dir():
        say(f"student: {place}, made before")
        return place
    student = _cut(model, made, material)
    shares = f"{count(student.parameters())[0]:,} of {count(model.parameters())[0]:,} parameters"
    say(f"student: {shares}, made of {who.shown} in {place}")
    _write(student, tokenizer, place)
    return place


def _cut(model: Any, made: Made, material: Material) -> Any:
    """The student: evenly spaced or most important blocks, the most important units, refitted."""
    examples = sorted(spread(material.train.examples, ROWS), key=lambda example: -example.size)
    batches = [collate(examples[at : at + 8], material.pad_id) for at in range(0, len(examples), 8)]
    anatomy = discover(model)
    structure = structure_of(model, anatomy)
    sizes = made.sizes(structure)
    kept = keep(structure, importance(model, batches, structure=structure, anatomy=anatomy), sizes)
    if made.is_even and sizes.layers:
        kept = replace(kept, layers={s: evenly(structure.depths[s], n) for s, n in sizes.layers.items()})
    weights = refit(model, kept, batches, structure=structure, anatomy=anatomy)
    return cut(model, kept, anatomy=anatomy, weights=weights)


def evenly(depth: int, count: int) -> tuple[int, ...]:
    """`count` block numbers of 0 to depth - 1, evenly spaced, the first and the last among them."""
    if count == 1:
        return (0,)
    return tuple(round(place * (depth - 1) / (count - 1)) for place in range(count))


def _write(model: Any, tokenizer: Any, place: Path) -> None:
    """The folder, whole or not there. Raises BadConfig where it cannot be written."""
    draft = place.with_name(f".{place.name}.draft")
    try:
        with quiet():
            model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        draft.replace(place)
    except OSError as error:
        raise not_writable(place, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _size(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value > 0 or (value > 1 and value % 1):
        raise BadConfig(f"{name} is {text!r}; write a share up to 1 (0.5) or how many are to stay (6)")
    return value


def _share(wanted: float, count: int, least: int = 1) -> int:
    """How many of `count` stay: a share up to 1, or a number above it."""
    return min(count, max(min(least, count), round(wanted if wanted > 1 else wanted * count)))


def _stem(who: Named) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", Path(who.shown).name)[:40]


def _stem_of(made: Made) -> str:
    said = {name: value for name, value in vars(made).items() if name in FIELDS and value is not None}
    return "-".join(f"{name}{value:g}" for name, value in said.items())
