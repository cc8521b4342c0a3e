"""Hidden states, attention and relations of a student beside its teacher's, in the one forward that each makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.data import IGNORE, Batch
from budwood.distill.config import Distillation
from budwood.distill.relations import minilm
from budwood.distill.states import StateMatch, attention_error, last, uniform
from budwood.distill.supervised import Reader, Reading
from budwood.distill.teacher import LiveTeacher, Said
from budwood.distill.watch import QKV, Seen, Wanted, watching
from budwood.errors import BadConfig
from budwood.evaluate.inputs import bare

MEASURES = {"mse": "squared", "cosine": "cosine"}
"""`Distillation.hidden` to the measure of a `StateMatch`."""
RELATIONS = 48
"""Most relation heads (MiniLMv2, arXiv:2012.15828: more than a model has of attention do well)."""
NARROWEST = 8
"""Channels that a relation head has at least."""


@dataclass(frozen=True, kw_only=True)
class _Stack:
    """What is compared of one stack of blocks."""

    name: str
    """The student's."""
    other: str
    """The teacher's."""
    states: StateMatch | None
    attentions: Mapping[int, int]
    """Layer of the student to layer of the teacher."""
    ends: tuple[int, int] | None
    """The last layers, whose relations are compared."""

    @property
    def own(self) -> Wanted:
        """What is kept of the student."""
        states = () if self.states is None else tuple(self.states.pairs)
        ends = () if self.ends is None else self.ends[:1]
        return Wanted(states=states, projections=ends, attentions=tuple(self.attentions), stack=self.name)

    @property
    def others(self) -> Wanted:
        """What is kept of the teacher."""
        states = () if self.states is None else tuple(dict.fromkeys(self.states.pairs.values()))
        ends = () if self.ends is None else self.ends[1:]
        attentions = tuple(dict.fromkeys(self.attentions.values()))
        return Wanted(states=states, projections=ends, attentions=attentions, stack=self.other)

    def losses(self, own: Seen, other: Seen, mask: Tensor) -> dict[str, Tensor]:
        """By name."""
        found: dict[str, Tensor] = {}
        if self.states is not None:
            found["hidden"] = self.states(own, other, mask)
        if self.attentions:
            errors = [attention_error(own.attentions[a], other.attentions[b], mask) for a, b in self.attentions.items()]
            found["attention"] = torch.stack(errors).mean()
        if self.ends is not None:
            ours, theirs = own.projections[self.ends[0]], other.projections[self.ends[1]]
            found["relation"] = minilm(ours, theirs, mask, heads=relation_heads(ours, theirs))
        return found


class LiveInsides:
    """Compares a student's insides with those of a teacher that is asked in every step."""

    def __init__(
        self, config: Distillation, student: Any, anatomy: Anatomy, teacher: LiveTeacher, other: Anatomy
    ) -> None:
        """anatomy, other: of the student and of the teacher.

        Where attention is compared, both compute it eagerly from here on: no other implementation shows it.
        Raises BadConfig for stacks without a counterpart, and maps that there are not.
        """
        self.teacher, self.anatomy, self.other = teacher, anatomy, other
        if config.attention_weight:
            for model in (student, teacher.model):
                model.set_attn_implementation("eager")
        self.stacks = [_stack(config, anatomy, other, *pair) for pair in _pairs(anatomy, other)]
        for one in self.stacks:
            if one.states is not None:
                one.states.to(student.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The projections between widths that differ, by name."""
        return {
            f"projection/{stack.name}/{place}": parameter
            for stack in self.stacks
            if stack.states is not None
            for place, parameter in stack.states.W.items()
        }

    def compared(self, model: nn.Module, batch: Batch, reader: Reader) -> tuple[Reading, Said, dict[str, Tensor]]:
        """One forward of each, and the losses by name: means over layers, and over stacks."""
        reader.settle(model, batch)
        with self.teacher.speaking():
            self.teacher.reader.settle(self.teacher.model, batch)
        with ExitStack() as stack:
            own = [stack.enter_context(watching(bare(model), self.anatomy, one.own)) for one in self.stacks]
            reading = reader(model, batch)
        with ExitStack() as stack, torch.no_grad():
            seen = [stack.enter_context(watching(self.teacher.model, self.other, one.others)) for one in self.stacks]
            said = self.teacher.say(batch)
        found: dict[str, list[Tensor]] = {}
        for one, ours, theirs in zip(self.stacks, own, seen, strict=True):
            for name, value in one.losses(ours, theirs, _real(batch, one.name)).items():
                found.setdefault(name, []).append(value)
        return reading, said, {name: torch.stack(values).mean() for name, values in found.items()}


def relation_heads(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> int:
    """Relation heads that divide all queries, keys and values of both evenly: the most that are not too narrow."""
    width = math.gcd(*(side[role].shape[-1] for side in (own, other) for role in QKV))
    fitting = (heads for heads in range(1, RELATIONS + 1) if width % heads == 0 and width // heads >= NARROWEST)
    return max(fitting, default=1)


def _real(batch: Batch, stack: str) -> Tensor:
    """[B, S] bool: where a stack has read text."""
    if batch.target_lengths is None or stack != "decoder":
        return batch.attention_mask.bool()
    assert batch.labels is not None
    return batch.labels != IGNORE


def _pairs(own: Anatomy, other: Anatomy) -> list[tuple[str, str]]:
    ours, theirs = (
        list(dict.fromkeys(site.stack for site in anatomy.sites if site.layer is not None)) for anatomy in (own, other)
    )
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    if ours != theirs:
        raise BadConfig(
            f"the student has the stacks {', '.join(ours)} and the teacher {', '.join(theirs)}, so their layers have "
            "no pairs; leave hidden_weight, attention_weight and relation_weight at 0"
        )
    return list(zip(ours, theirs, strict=True))


def _stack(config: Distillation, own: Anatomy, other: Anatomy, name: str, counterpart: str) -> _Stack:
    depths = own.num_layers(name), other.num_layers(counterpart)
    pairs = uniform(*depths) if config.layer_map == "uniform" else last(*depths, min(depths))
    measure: Any = MEASURES[config.hidden]
    return _Stack(
        name=name,
        other=counterpart,
        states=StateMatch(pairs, own.hidden_size, other.hidden_size, measure) if config.hidden_weight else None,
        attentions={a: b for a, b in pairs.items() if a} if config.attention_weight else {},
        ends=depths if config.relation_weight else None,
    )
