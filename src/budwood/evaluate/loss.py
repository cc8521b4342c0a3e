"""Loss at labelled positions only, row by row; the logits of a whole batch are never held.

Two routes give the same numbers.  "chunked head" applies the output embedding to labelled positions, some at a
time.  "plain forward" lets the model make all logits of one row at a time; it serves models whose head does
something that the first does not know, which the first batch shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from budwood.data import IGNORE, Batch
from budwood.errors import BadData, Diverged
from budwood.evaluate import metrics
from budwood.evaluate.ensemble import Ensemble, combined, log_mean
from budwood.evaluate.head import Captured, Head, head_of, without_cache
from budwood.evaluate.inputs import class_logits, fitted
from budwood.evaluate.mode import evaluating
from budwood.intervals import Integers
from budwood.records import Score

CHUNK_BYTES = 1 << 25
"""Float32 logits held at a time, unless the caller says how many positions."""

CHUNKED, PLAIN, CLASSES = "chunked head", "plain forward", "class logits"

Sums: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Of each row: losses [rows] float64, labelled positions [rows] int64, right ones [rows] int64."""


@dataclass(frozen=True, kw_only=True)
class LossReport:
    """What an evaluation over batches found, one entry for each example, in the order they came."""

    rows: Integers
    """[examples] the row numbers of the data; a row that was split into several examples occurs several times."""
    losses: np.ndarray
    """[examples] float64, summed over the example's labelled positions, in nats."""
    tokens: Integers
    """[examples] labelled positions (1 for a classification row)."""
    correct: Integers
    """[examples] labelled positions at which the most likely token is the label."""
    route: str
    """"chunked head", "plain forward" or "class logits": how the losses were computed."""
    is_masked: bool = False
    """Whether tokens were hidden and predicted in their own place."""

    @property
    def loss(self) -> Score:
        """Mean over all labelled positions, in nats, with a bootstrap interval over rows."""
        _, losses, tokens, _ = self.by_row()
        return metrics.mean_loss(losses, tokens)

    @property
    def perplexity(self) -> Score:
        """exp of `loss`, likewise; of hidden tokens it is called masked_perplexity, as it compares with no other."""
        _, losses, tokens, _ = self.by_row()
        found = metrics.perplexity(losses, tokens)
        return replace(found, name="masked_perplexity") if self.is_masked else found

    @property
    def token_accuracy(self) -> Score:
        """Share of labelled positions predicted right, with a bootstrap interval over rows."""
        _, _, tokens, correct = self.by_row()
        return metrics.token_accuracy(correct, tokens)

    def by_row(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(rows, losses, tokens, correct) with the examples of a row added up, in row order."""
        rows, places = np.unique(self.rows, return_inverse=True)
        losses, tokens, correct = (
            np.bincount(places, weights=column) for column in (self.losses, self.tokens, self.correct)
        )
        return rows, losses, tokens, correct


def evaluate_loss(
    model: Any, batches: Iterable[Batch], *, chunk_tokens: int | None = None, ensemble: Ensemble | None = None
) -> LossReport:
    """Losses on `batches` without dropout or gradients; every module's mode is put back afterwards.

    model:        a language model or classifier of transformers, with whatever is attached to it, not wrapped
    chunk_tokens: labelled positions whose logits are held at a time; None is what fits 32 MiB
    ensemble:     the adapters whose probabilities are averaged; without it, the model as it is
    Raises        BadData if no position counts, BadConfig for rows of another kind of model.
    """
    losses = _Losses(model, chunk_tokens, ensemble)
    rows: list[int] = []
    is_masked = False
    found: list[Sums] = []
    with evaluating(model):
        for batch in batches:
            rows += batch.rows
            is_masked = not batch.shift and batch.target_lengths is None
            found.append(losses(fitted(model, batch.to(model.device))))
    if not found or not any(int(sums[1].sum()) for sums in found):
        raise BadData("nothing in these batches is labelled, so there is no loss; give rows with answers or labels")
    total, tokens, correct = (torch.cat(part).cpu().numpy() for part in zip(*found, strict=True))
    broken = [row for row, loss in zip(rows, total, strict=True) if not np.isfinite(loss)]
    if broken:
        raise Diverged(_broken(model, broken))
    return LossReport(
        rows=np.array(rows, np.int64),
        losses=total,
        tokens=tokens,
        correct=correct,
        route=losses.route,
        is_masked=is_masked,
    )


def _broken(model: Any, rows: list[int]) -> str:
    """Where a loss that is no finite number comes from."""
    weights = [name for name, p in model.named_parameters() if p.is_floating_point() and not p.isfinite().all()]
    if weights:
        return f"{weights[0]} holds NaN or infinity ({len(weights)} tensors in all); load an undamaged copy"
    return f"the loss of row {rows[0]} is not a finite number ({len(rows)} rows in all); use precision: exact"


class _Losses:
    """The losses of one batch after another, by the route that the first one shows to be right."""

    def __init__(self, model: Any, chunk_tokens: int | None, ensemble: Ensemble | None) -> None:
        self.model, self.chunk_tokens, self.ensemble = model, chunk_tokens, ensemble
        self.route = ""

    def __call__(self, batch: Batch) -> Sums:
        if batch.labels is None:
            raise BadData("a batch without labels has no loss; encode rows with answers or labels")
        if batch.labels.ndim == 1:
            self.route = CLASSES
            logits = combined(class_logits, self.model, batch, self.ensemble)  # [rows, classes]
            return _sums(logits, batch.labels, torch.arange(len(batch), device=logits.device), len(batch))
        if not bool((batch.labels[:, int(batch.shift) :] != IGNORE).any()):
            return _no_sums(len(batch), batch.labels.device)
        head = None if self.route == PLAIN or self.ensemble else head_of(self.model)
        if head is None or (not self.route and not self._agrees(head, first_row(batch))):
            return self._plain(batch)
        return self._chunked(head, batch)

    def _agrees(self, head: Head, batch: Batch) -> bool:
        """Whether both routes give one row the same loss, and the same up to rounding at that."""
        captured = head.capture(batch.inputs())
        if captured is None:
            return False
        chunked, plain = self._from_states(head, captured, batch), self._plain(batch)
        tolerance = 1e-4 if captured.is_exact else 2e-2
        return torch.allclose(chunked[0], plain[0], rtol=tolerance, atol=tolerance)

    def _chunked(self, head: Head, batch: Batch) -> Sums:
        captured = head.capture(batch.inputs())
        if captured is None:
            return self._plain(batch)
        self.route = CHUNKED
        return self._from_states(head, captured, batch)

    def _from_states(self, head: Head, captured: Captured, batch: Batch) -> Sums:
        hidden = captured.hidden[:, -_width(batch) :]  # what a soft prompt put in front is not labelled
        return self._summed(hidden, batch, lambda states: head.logits(captured, states))

    def _plain(self, batch: Batch) -> Sums:
        self.route = PLAIN
        parts = []
        for row in single_rows(batch):
            if self.ensemble is None:
                parts.append(self._summed(_logits(self.model, row), row, lambda states: states))
            else:
                every = self.ensemble.ask(self.model, row, _logits).movedim(0, 2)  # [1, length, N, vocab]
                parts.append(self._summed(every, row, lambda states: log_mean(states, dim=-2)))
        losses, tokens, correct = (torch.cat(part) for part in zip(*parts, strict=True))
        return losses, tokens, correct

    def _summed(self, states: Tensor, batch: Batch, to_logits: Callable[[Tensor], Tensor]) -> Sums:
        """states: [rows, length, *] -> sums over labelled positions, some positions at a time."""
        assert batch.labels is not None
        labels = batch.labels[:, int(batch.shift) :]
        row, place = (labels != IGNORE).nonzero(as_tuple=True)  # [positions] each
        sums = _no_sums(len(batch), labels.device)
        size = self.chunk_tokens or max(1, CHUNK_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        for part in torch.arange(len(row), device=row.device).split(size):
            logits = to_logits(states[row[part], place[part]][None])[0]  # [part, vocab]
            more = _sums(logits, labels[row[part], place[part]], row[part], len(batch))
            sums = (sums[0] + more[0], sums[1] + more[1], sums[2] + more[2])
        return sums


def single_rows(batch: Batch) -> Iterator[Batch]:
    """The rows of a batch by themselves, without padding."""
    for number, length in enumerate(batch.lengths):
        start = int(batch.attention_mask[number].argmax())
        here = (slice(number, number + 1), slice(start, start + length))
        labels, types, places = batch.labels, batch.token_type_ids, batch.places
        targets, written = batch.target_lengths, batch.decoder_input_ids
        there = here if targets is None else (here[0], slice(0, targets[number]))
        if labels is not None:
            labels = labels[there] if labels.ndim == 2 else labels[here[0]]
        yield replace(
            batch,
            input_ids=batch.input_ids[here],
            attention_mask=batch.attention_mask[here],
            labels=labels,
            token_type_ids=None if types is None else types[here],
            rows=batch.rows[number : number + 1],
            lengths=(length,),
            target_lengths=None if targets is None else targets[number : number + 1],
            decoder_input_ids=None if written is None else written[there],
            places=None if places is None else places[here[0]] - start,
        )


def _logits(model: Any, batch: Batch) -> Tensor:
    """[rows, length, vocab], without what a soft prompt put in front."""
    logits: Tensor = model(**batch.inputs(), **without_cache(model)).logits
    return logits[:, -_width(batch) :]


def _width(batch: Batch) -> int:
    """Positions that a model gives logits at."""
    return (batch.input_ids if batch.decoder_input_ids is None else batch.decoder_input_ids).shape[1]


def first_row(batch: Batch) -> Batch:
    """The first row of a batch that has a labelled position, or simply the first."""
    return next((row for row in single_rows(batch) if row.num_targets), next(single_rows(batch)))


def _sums(logits: Tensor, labels: Tensor, rows: Tensor, num_rows: int) -> Sums:
    """logits: [n, vocab], labels: [n], rows: [n] the row that each belongs to -> sums of `num_rows` rows."""
    losses = F.cross_entropy(logits.float(), labels, reduction="none").double()  # [n]
    right = (logits.argmax(dim=-1) == labels).long()  # [n]
    total, tokens, correct = _no_sums(num_rows, logits.device)
    return (
        total.index_add(0, rows, losses),
        tokens.index_add(0, rows, torch.ones_like(rows)),
        correct.index_add(0, rows, right),
    )


def _no_sums(num_rows: int, device: torch.device) -> Sums:
    counts = torch.zeros(num_rows, dtype=torch.int64, device=device)
    return torch.zeros(num_rows, dtype=torch.float64, device=device), counts, counts.clone()
