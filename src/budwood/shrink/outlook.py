"""What a shrinking would do, before anything is trained or written: what can be cut, and the sizes on the way."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from budwood.anatomy import discover
from budwood.distill.opening import named
from budwood.prune.ids import ids_in
from budwood.prune.rows import parameters_with, rows_of
from budwood.prune.structure import structure_of
from budwood.prune.tokens import used
from budwood.records import Json
from budwood.shrink.config import Shrinking
from budwood.shrink.progress import texts_of
from budwood.shrink.sizes import Sizing, least
from budwood.train.job import Job
from budwood.train.material import gather


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The model as it is, and what becomes of its parameters."""

    model: str
    parameters: int
    """Of the model as it is given."""
    sizes: dict[str, int]
    refused: dict[str, str]
    """Dimensions that cannot be cut, with the reason."""
    fewest: int
    """Parameters that the dimensions asked for come to at the least, with the whole vocabulary."""
    trimmed: int
    """Parameters with the tokens that the data uses."""
    tokens: tuple[int, int]
    """Of the vocabulary, and those that the data needs."""
    target: int
    """Parameters that are to stay; 0 where something else says when to stop."""
    stages: tuple[int, ...]
    """Parameters after each stage, the vocabulary's cut first where it is asked for."""

    def lines(self) -> tuple[str, ...]:
        """What a person should know before starting."""
        shown = ", ".join(f"{name} {size}" for name, size in self.sizes.items())
        lines = [f"{self.model}: {self.parameters:,} parameters ({shown})"]
        lines += [f"{dimension} cannot be cut: {why}" for dimension, why in self.refused.items()]
        share = self.trimmed / self.parameters
        lines.append(
            f"the data needs {self.tokens[1]:,} of {self.tokens[0]:,} tokens: without the others (cut: vocabulary) "
            f"{self.trimmed:,} parameters would be left, {share:.0%}"
        )
        lines.append(f"the least that can be left of the whole vocabulary's model: {self.fewest:,} parameters")
        if self.stages:
            lines.append("stages of " + ", ".join(f"{size:,}" for size in self.stages) + " parameters")
        return tuple(lines)

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return asdict(self)


def outlook(job: Job, shrinking: Shrinking) -> Outlook:
    """What `shrink` would do. Raises what it would before its first stage; nothing is written."""
    who = named(job.model, root=job.root)
    material = gather(replace(job, model=str(who.base)))
    model = material.source.fresh(None, seed=job.config.seed)
    anatomy = discover(model)
    structure = structure_of(model, anatomy)
    sizing = Sizing(model, structure, anatomy)
    parameters, rows = model.num_parameters(), rows_of(model)
    needed = len({*used(material.tokenizer, texts_of(material)).kept, *ids_in(model, rows)})
    trimmed = parameters_with(model, needed)
    target = shrinking.target(parameters)
    standing = trimmed if "vocabulary" in shrinking.cut else parameters
    stages = [standing] if "vocabulary" in shrinking.cut else []
    while target and standing > target:
        standing = max(target, standing - int(shrinking.step * parameters))
        stages.append(standing)
    return Outlook(
        model=str(job.model),
        parameters=parameters,
        sizes=sizing.now.to_dict(),
        refused=dict(structure.refused),
        fewest=least(sizing, shrinking.cut)[0],
        trimmed=trimmed,
        tokens=(rows, needed),
        target=target,
        stages=tuple(stages),
    )
