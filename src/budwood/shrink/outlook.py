"""What a shrinking would do, before anything is trained or written: what can be cut, and the sizes on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.data import Template
from budwood.errors import BadConfig, WrongOrder
from budwood.prune.ids import ids_in
from budwood.prune.rows import parameters_with, rows_of
from budwood.prune.structure import structure_of
from budwood.prune.tokens import used
from budwood.records import Json, count
from budwood.shrink.beginning import check, material_of, opened
from budwood.shrink.config import Shrinking
from budwood.shrink.fewer import texts_of
from budwood.shrink.sizes import Sizing, least
from budwood.train.job import Job
from budwood.train.material import Material


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
    """Parameters that the dimensions asked for come to at the least."""
    trimmed: int | None
    """Parameters with the tokens that the data uses; None where the vocabulary cannot be cut."""
    tokens: tuple[int, int] | None
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
        if self.tokens is not None and self.trimmed is not None:
            lines.append(
                f"the data needs {self.tokens[1]:,} of {self.tokens[0]:,} tokens: without the others (cut: vocabulary) "
                f"{self.trimmed:,} parameters would be left, {self.trimmed / self.parameters:.0%}"
            )
        lines.append(f"the least that can be left: {self.fewest:,} parameters")
        if self.stages:
            lines.append("stages of " + ", ".join(f"{size:,}" for size in self.stages) + " parameters")
        return tuple(lines)

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return asdict(self)


def outlook(job: Job, shrinking: Shrinking) -> Outlook:
    """What `shrink` would do. Raises what it would before its first stage; nothing is written."""
    who, material = material_of(job)
    model, _ = opened(who, job, material)
    check(job, shrinking, who, material, model)
    return looked_ahead(job, shrinking, material, model)


def looked_ahead(job: Job, shrinking: Shrinking, material: Material, model: PreTrainedModel) -> Outlook:
    """What becomes of this model.

    Raises BadConfig for a target that no cut of these dimensions comes to, and where none of them can be cut.
    """
    anatomy = discover(model)
    structure = structure_of(model, anatomy)
    sizing = Sizing(model, structure, anatomy)
    parameters = count(model.parameters())[0]
    target, refused = shrinking.target(parameters), dict(structure.refused)
    trimmed = tokens = None
    try:
        tokens = _tokens(material, model, job.template)
        trimmed = parameters_with(model, tokens[1])
    except (BadConfig, WrongOrder) as why:
        if "vocabulary" in shrinking.cut:
            raise
        refused["vocabulary"] = str(why)
    fewest, sizes = least(sizing, shrinking.cut)
    standing, stages = parameters, []
    if trimmed is not None and "vocabulary" in shrinking.cut:
        fewest -= (parameters - trimmed) * sizes["hidden"] // sizing.now.hidden
        standing = trimmed
        stages.append(standing)
    found = Outlook(
        model=str(job.model),
        parameters=parameters,
        sizes=sizing.now.to_dict(),
        refused={dimension: why for dimension, why in refused.items() if not _is_cut(sizing, shrinking, dimension)},
        fewest=fewest,
        trimmed=trimmed,
        tokens=tokens,
        target=target,
        stages=(*stages, *_sizes_after(standing, target, int(shrinking.step * parameters))),
    )
    _check(found, shrinking, sizes)
    return found


def _check(found: Outlook, shrinking: Shrinking, sizes: Mapping[str, int]) -> None:
    asked = ", ".join(shrinking.cut)
    why = "".join(f"; {d} cannot be cut: {found.refused[d]}" for d in shrinking.cut if d in found.refused)
    if found.fewest >= found.parameters:
        raise BadConfig(f"of {found.model} nothing can be cut in {asked}{why}; allow more to be cut (cut)")
    if found.target and found.target < found.fewest:
        shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise BadConfig(
            f"{found.target:,} parameters are to stay, and cutting {asked} comes to no fewer than {found.fewest:,} "
            f"({shown}){why}; ask for more, or allow more to be cut (cut)"
        )


def _is_cut(sizing: Sizing, shrinking: Shrinking, dimension: str) -> bool:
    """Whether it is cut after all, together with what its class ties it to."""
    return any(dimension in way.split("+") for way in sizing.ladders(shrinking.cut))


def _tokens(material: Material, model: PreTrainedModel, template: Template) -> tuple[int, int]:
    """(tokens that the model has rows for, those of them that the data needs)."""
    rows = rows_of(model)
    return rows, len({*used(material.tokenizer, texts_of(material, template)).kept, *ids_in(model, rows)})


def _sizes_after(standing: int, target: int, step: int) -> Iterator[int]:
    """Parameters after each stage that only cuts."""
    while target and standing > target:
        standing = max(target, standing - step)
        yield standing
