"""Several adapters of one task asked together, in one batch (Lester et al. 2021, arXiv:2104.08691, section 6).

A batch of B rows becomes N * B: row n * B + b is row b under the n-th adapter, on one frozen base. Texts are voted on;
classes, tags, tokens and ends of spans have the mean of the adapters' probabilities.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budwood.core import Plan, Route, pseudo_tokens, using
from budwood.data import Batch
from budwood.errors import BadConfig


@dataclass(frozen=True)
class Ensemble:
    """Adapters of any kind that answer together; the first ones win ties."""

    parts: tuple[Plan, ...]
    """Names of adapters, or plans."""

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not self.parts:
            raise BadConfig(f"Ensemble needs a tuple of adapters, as Ensemble(('a', 'b')); got {self.parts!r}")

    @contextmanager
    def acting(self, model: Any, rows: int) -> Iterator[None]:
        """Inside, the n-th `rows` rows of a batch run under the n-th adapter."""
        order = torch.arange(len(self.parts)).repeat_interleave(rows)
        with using(model, Route(self.parts, order)):
            yield

    def each(self, model: Any, ask: Callable[[Any], int]) -> list[int]:
        """What `ask` says of the model under every adapter."""
        found = []
        for part in self.parts:
            with using(model, part):
                found.append(ask(model))
        return found

    def ask(self, model: Any, batch: Batch, forward: Callable[[Any, Batch], Tensor]) -> Tensor:
        """[N, B, *]: what `forward` [B, *] gives for the batch under every adapter, out of one forward.

        Raises BadConfig where a cloze has pseudo tokens and the adapters fill in different numbers of them.
        """
        if batch.pseudo and len(filled := set(self.each(model, pseudo_tokens))) > 1:
            raise BadConfig(
                f"adapters with {' and '.join(map(str, sorted(filled)))} pseudo tokens cannot share the rows of a "
                "pattern with <p>; put those of one length together"
            )
        with self.acting(model, len(batch)):
            logits = forward(model, batch.repeated(len(self.parts)))
        return logits.unflatten(0, (len(self.parts), len(batch)))

    def vote(self, texts: Sequence[str]) -> int:
        """Which text most adapters gave; of several, the first."""
        counts = Counter(texts)  # in the order of the adapters
        return list(texts).index(max(counts, key=counts.__getitem__))


def combined(
    forward: Callable[[Any, Batch], Tensor], model: Any, batch: Batch, ensemble: Ensemble | None = None
) -> Tensor:
    """[B, *, C] logits: the model's own as it is, or of an ensemble the logarithm of its mean probabilities."""
    return forward(model, batch) if ensemble is None else log_mean(ensemble.ask(model, batch, forward), dim=0)


def log_mean(logits: Tensor, *, dim: int) -> Tensor:
    """Logarithm of the mean, over a dimension, of the probabilities that the last one holds logits of."""
    return logits.float().log_softmax(dim=-1).logsumexp(dim=dim) - math.log(logits.shape[dim])
