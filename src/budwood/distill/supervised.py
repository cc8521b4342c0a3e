"""What a model says where a batch teaches something: one alignment for teachers and students alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from budwood.data import IGNORE, Batch
from budwood.errors import BadData
from budwood.evaluate import evaluating, span_logits
from budwood.evaluate.head import head_of, without_cache
from budwood.evaluate.inputs import bare, class_logits, fitted
from budwood.evaluate.loss import first_row
from budwood.train.probe import same_modes
from budwood.train.randomness import same_randomness

Columns: TypeAlias = int | tuple[int, ...] | None
"""Logits that count: so many from the first on, these in this order, or all."""
PADDING = -1e5
"""Logit of a padded token as the end of an answer: no probability, and still a number that can be subtracted."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One forward at the n supervised positions of a batch, row by row (row-major where label != IGNORE).

    Positions are tokens that are learned, rows for classes, and the two ends of each window for questions.
    """

    states: Tensor
    """[n, d] what the output embedding reads, or the logits themselves; with a gradient where there was one."""
    head: Callable[[Tensor], Tensor]
    """[m, d] states -> [m, width] float32 logits."""
    labels: Tensor
    """[n] int64, what is right there."""
    is_plain: bool
    """Whether `states` are the logits."""

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, positions: slice | Tensor) -> Tensor:
        """[m, width] float32 logits at some of the positions."""
        return self.head(self.states[positions])


class Reader:
    """Reads the batches of one task, of one model under one plan; the first batch shows how the model can be read.

    Of a language model only hidden states are kept, and its output embedding is applied where logits are wanted;
    models that do more than that after it, and all others, give plain logits.
    """

    def __init__(self, task: str, *, columns: Columns = None) -> None:
        """columns: which logits count: rows of padding are cut off, classes are put in order."""
        self.task, self.columns = task, columns
        self.by_head: bool | None = None if task in ("causal-lm", "seq2seq", "masked-lm") else False

    def __call__(self, model: Any, batch: Batch) -> Reading:
        """Raises BadData for a batch of another task."""
        if self.task == "question-answering":
            return self._plain(*_ends(model, batch))
        if self.task in ("classification", "cloze"):
            if batch.labels is None or batch.labels.ndim != 1:
                raise BadData(f"{self.task} needs one label for each row; read the data with task {self.task}")
            return self._plain(class_logits(model, batch), batch.labels)
        batch = fitted(model, batch)
        if self.by_head is None:
            self.by_head = bare(model) is model and self._agrees(model, first_row(batch))
        if self.by_head:
            found = self._by_head(model, batch)
            if found is not None:
                return found
            self.by_head = False  # as where its dropout is on: one forward for nothing is enough
        labels, learned = self._learned(batch)
        return self._plain(_logits(model, batch)[:, : labels.shape[1]][learned], labels[learned])

    def settle(self, model: Any, batch: Batch) -> None:
        """Find out how the model is read, by the first row, before anything watches its forwards: from then on, each
        batch is one forward. Modes and random state stay."""
        if self.by_head is None:
            with same_modes(bare(model)), same_randomness(), torch.no_grad():
                bare(model).train()
                self(model, first_row(batch))

    def _plain(self, logits: Tensor, labels: Tensor) -> Reading:
        return Reading(states=logits, head=self._counted, labels=labels, is_plain=True)

    def _by_head(self, model: Any, batch: Batch) -> Reading | None:
        """None where the model's head is missing, or does more than is known of it."""
        head = head_of(model)
        captured = None if head is None else head.capture(batch.inputs())
        if head is None or captured is None:
            return None
        labels, learned = self._learned(batch)
        states = captured.hidden[:, -_width(batch) :][:, : labels.shape[1]][learned]  # [n, d]
        return Reading(
            states=states,
            head=lambda some: self._counted(head.logits(captured, some)),
            labels=labels[learned],
            is_plain=False,
        )

    def _agrees(self, model: Any, row: Batch) -> bool:
        """Whether the head by itself gives the model's own logits at every position of a row."""
        labels, learned = self._learned(row)
        with same_randomness(), evaluating(model):
            found = self._by_head(model, row)
            if found is None:
                return False
            own, plain = found.at(slice(None)), self._counted(_logits(model, row)[:, : labels.shape[1]][learned])
        tolerance = 1e-4 if found.states.dtype == torch.float32 and not torch.is_autocast_enabled() else 2e-2
        return torch.allclose(own, plain, rtol=tolerance, atol=tolerance * float(plain.abs().amax()))

    def _learned(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """([B, T'] labels at the positions that predict them, [B, T'] whether they are learned)."""
        labels = batch.labels
        if labels is None or labels.ndim != 2 or _task_family(batch) != _FAMILIES[self.task]:
            raise BadData(f"this batch has no labels of the task {self.task}; read the data with task {self.task}")
        labels = labels[:, int(batch.shift) :]
        return labels, labels != IGNORE

    def _counted(self, logits: Tensor) -> Tensor:
        if isinstance(self.columns, tuple):
            return logits[..., list(self.columns)].float()
        return logits[..., : self.columns].float()


_Family: TypeAlias = tuple[bool, bool]
"""(whether position t predicts label t + 1, whether labels are what a decoder writes)."""
_FAMILIES: dict[str, _Family] = {
    "causal-lm": (True, False),
    "seq2seq": (False, True),
    "masked-lm": (False, False),
    "token-classification": (False, False),
}


def _task_family(batch: Batch) -> _Family:
    return (batch.shift, batch.target_lengths is not None)


def _ends(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """([2 * B, T] logits of where each answer begins and ends, [2 * B] where it does)."""
    if batch.spans is None:
        raise BadData("finding answers needs their places; read the data with task question-answering")
    logits = span_logits(model, batch).masked_fill(batch.attention_mask[:, None] == 0, PADDING)  # [B, 2, T]
    return logits.flatten(0, 1), batch.spans.flatten()


def _logits(model: Any, batch: Batch) -> Tensor:
    """[B, T, V], without what a soft prompt put in front."""
    logits: Tensor = model(**batch.inputs(), **without_cache(bare(model))).logits
    return logits[:, -_width(batch) :]


def _width(batch: Batch) -> int:
    return (batch.input_ids if batch.decoder_input_ids is None else batch.decoder_input_ids).shape[1]
