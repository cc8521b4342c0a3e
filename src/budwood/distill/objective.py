"""`Distill`: the loss of a batch against a teacher's word, beside the data's own targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.data import Batch
from budwood.distill.chunks import positions_within
from budwood.distill.coarse import coarsened
from budwood.distill.config import Distillation
from budwood.distill.supervised import Reader, Reading
from budwood.distill.teacher import Said, Teacher
from budwood.fast.loss import sliced
from budwood.train.objective import OBJECTIVES, Loss


class Insides(Protocol):
    """What compares hidden states or attention: it stands around the forwards of student and teacher."""

    def compared(self, model: nn.Module, batch: Batch, reader: Reader) -> tuple[Reading, Said, dict[str, Tensor]]:
        """One forward of each, and the losses by name, each [] a mean."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    """kd_weight * kd + ce_weight * ce + ...: each a mean over the supervised positions of the whole step.

    The logits of student and teacher exist for some positions at a time only.
    """

    task: str
    config: Distillation
    teacher: Teacher
    reader: Reader
    """How the student is read; as the teacher is."""
    insides: Insides | None = None
    """What compares hidden states and attention, if anything does."""
    write: Callable[[nn.Module, Batch], Batch] | None = None
    """Lets the student answer a batch's prompts, for a share of the batches (`on_policy`)."""

    def targets(self, batch: Batch) -> int:
        """As many as without a teacher: what the step is a mean over."""
        return OBJECTIVES[self.task]().targets(batch)

    def __call__(self, model: nn.Module, batch: Batch) -> Loss:
        """One forward of the student and one of the teacher."""
        count = self.targets(batch)
        own = self._own_answers(model, batch)
        is_own, batch = own is not None, own or batch
        said: Said | None
        insides: dict[str, Tensor] = {}
        if self.insides is None:
            reading = self.reader(model, batch)
            said = self.teacher.say(batch) if self.config.kd_weight else None
        else:
            reading, said, insides = self.insides.compared(model, batch, self.reader)
        parts: dict[str, float] = {}
        ce_weight = 0.0 if is_own else self.config.ce_weight  # what it says itself is no target
        total = self._predictions(reading, said, ce_weight, parts) / len(reading)
        for name, value in insides.items():
            total = total + getattr(self.config, f"{name}_weight") * value
            parts[name] = value.item() * len(reading)
        return Loss(total * count, count, {name: value / len(reading) * count for name, value in parts.items()})

    def _predictions(self, reading: Reading, said: Said | None, ce_weight: float, parts: dict[str, float]) -> Tensor:
        """kd_weight * kd + ce_weight * ce, summed over positions; `parts` gets both."""

        def loss(logits: Tensor, rows: slice) -> Tensor:
            ce = F.cross_entropy(logits, reading.labels[rows], reduction="sum")
            kd = self._kd(logits, said, rows) if said is not None and self.config.kd_weight else logits.new_zeros(())
            for name, value in (("kd", kd), ("ce", ce)):
                parts[name] = parts.get(name, 0.0) + value.item()
            return self.config.kd_weight * kd + ce_weight * ce

        if reading.is_plain:
            return loss(reading.at(slice(None)), slice(None))
        with torch.no_grad():
            width = reading.at(slice(0, 1)).shape[-1]
        return sliced(reading.states, reading.head, loss, size=positions_within(width))

    def _kd(self, logits: Tensor, said: Said, rows: slice) -> Tensor:
        """[] how far the logits of some positions are from the teacher's, summed."""
        compare, temperature = self.config.compare(self.task)
        if said.covered is not None:
            logits = logits[said.covered[rows]]
        if not len(logits):
            return logits.sum()
        mask = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        if said.ids is not None and said.log_probs is not None:
            ids, log_probs = said.ids[rows], said.log_probs[rows]
            ours, theirs = coarsened(logits, ids, log_probs, temperature=temperature, tail=self.config.tail)  # type: ignore[arg-type]
        else:
            ours, theirs = logits, said.at(rows)
        return compare(ours, theirs, mask, temperature=temperature) * len(logits) * said.scale

    def _own_answers(self, model: nn.Module, batch: Batch) -> Batch | None:
        """The batch with the student's own answers, for a share of the batches; drawn, so that a resumed run agrees."""
        if self.write is None or not self.config.on_policy or not model.training:
            return None
        return self.write(model, batch) if float(torch.rand(())) < self.config.on_policy else None
