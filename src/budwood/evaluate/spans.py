"""Answers that stand in a text: the likeliest piece of it over all windows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from budwood.data import Batch, Passage, encode_passages
from budwood.data.batch import Part
from budwood.data.spans import LENGTH
from budwood.errors import BadConfig
from budwood.evaluate import metrics
from budwood.evaluate.batches import batches
from budwood.evaluate.ensemble import Ensemble, combined
from budwood.evaluate.generate import longest_of
from budwood.evaluate.mode import evaluating
from budwood.intervals import Floats, Integers
from budwood.records import Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_ANSWER = 30
"""Tokens that an answer may have."""
CANDIDATES = 20
"""Of each window, so many likeliest beginnings and ends are tried with each other."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best answer of one question, over its windows."""

    begin: int
    end: int
    """[begin, end) in characters of the text."""
    score: float
    """Logit of its beginning plus that of its end; -inf where no piece of the text can be an answer."""
    nothing: float
    """The same of the first token, which stands for no answer: the least of the windows."""

    @property
    def is_nothing(self) -> bool:
        """Whether it is likelier that nothing in the text answers."""
        return self.nothing > self.score

    def text(self, passage: Passage) -> str:
        """The piece of the text."""
        return passage.context[self.begin : self.end].strip()


@dataclass(frozen=True, kw_only=True)
class Located:
    """Answers of rows, and how well each window was understood."""

    found: dict[int, Found]
    """By the row numbers of the data."""
    rows: Integers
    """[windows] the row of each."""
    losses: Floats
    """[windows] mean cross-entropy of beginning and end, in nats; empty where nobody knows the answers."""
    correct: Integers
    """[windows] 1 where the likeliest first and last tokens are both right."""

    @property
    def loss(self) -> Score:
        """Mean over windows; bootstrap over rows."""
        _, places = np.unique(self.rows, return_inverse=True)
        losses, windows = np.bincount(places, weights=self.losses), np.bincount(places)
        return metrics.of_sums("loss", losses, windows, unit="nats per window")

    @property
    def accuracy(self) -> Score:
        """Share of windows with both ends right: what is looked at while training."""
        _, places = np.unique(self.rows, return_inverse=True)
        correct, windows = np.bincount(places, weights=self.correct), np.bincount(places)
        return metrics.of_sums("span_accuracy", correct, windows, unit="share of windows")


def locate(model: Any, batches: Iterable[Batch], *, ensemble: Ensemble | None = None) -> Located:
    """Run a question answerer of transformers, encoder or decoder, over batches of windows.

    ensemble: the adapters whose probabilities of beginnings and ends are averaged; without it, the model as it is
    Raises BadConfig for a model that does something else.
    """
    found: dict[int, Found] = {}
    rows: list[int] = []
    losses: list[Tensor] = []
    correct: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            here = batch.to(model.device)
            logits = combined(_readable_logits, model, here, ensemble)  # [B, 2, T]
            for place, row in enumerate(batch.rows):
                one = _best(logits[place].cpu(), batch.parts[place])
                found[row] = _better(found[row], one) if row in found else one
            rows += batch.rows
            if here.spans is not None:
                losses.append(span_losses(logits.double(), here).cpu())
                correct.append((_readable(logits, here).argmax(dim=-1) == here.spans).all(dim=-1).cpu())
    return Located(
        found=found,
        rows=np.array(rows, np.int64),
        losses=torch.cat(losses).numpy() if losses else np.zeros(0),
        correct=torch.cat(correct).long().numpy() if correct else np.zeros(0, np.int64),
    )


def answer_passages(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    passages: Sequence[Passage],
    *,
    max_length: int | None = None,
    batch_size: int = 8,
) -> list[tuple[str, bool]]:
    """(the likeliest piece of each text, whether it is likelier that nothing there answers)."""
    limit = max_length or min(LENGTH, longest_of(model, tokenizer) or LENGTH)
    examples = encode_passages(passages, tokenizer, max_length=limit)
    found = locate(model, batches(examples, tokenizer, batch_size)).found
    return [(found[row].text(passage), found[row].is_nothing) for row, passage in enumerate(passages)]


def span_logits(model: Any, batch: Batch) -> Tensor:
    """[B, 2, T] of where an answer begins and where it ends, without what a soft prompt put in front."""
    out = model(**batch.inputs())
    if "start_logits" not in out:
        raise BadConfig(f"{type(model).__name__} does not find answers; load the model for question-answering")
    return torch.stack((out.start_logits, out.end_logits), dim=1)[..., -batch.input_ids.shape[1] :].float()


def _readable_logits(model: Any, batch: Batch) -> Tensor:
    return _readable(span_logits(model, batch), batch)


def span_losses(logits: Tensor, batch: Batch) -> Tensor:
    """[B] mean cross-entropy of beginning and end over the tokens of each window.  logits: [B, 2, T]."""
    assert batch.spans is not None
    both = F.cross_entropy(_readable(logits, batch).flatten(0, 1), batch.spans.flatten(), reduction="none")
    return both.view(-1, 2).mean(dim=-1)


def _readable(logits: Tensor, batch: Batch) -> Tensor:
    """Padding can be no answer.  [B, 2, T] -> [B, 2, T]."""
    return logits.masked_fill(batch.attention_mask[:, None] == 0, -torch.inf)


def _best(logits: Tensor, parts: Sequence[Part | None]) -> Found:
    """The best piece of one window.  logits: [2, T]."""
    shown = torch.tensor([token for token, part in enumerate(parts) if part is not None], dtype=torch.int64)
    nothing = float(logits[0, 0] + logits[1, 0])
    best = Found(0, 0, -math.inf, nothing)
    if not len(shown):
        return best
    likely = logits[:, shown].topk(min(CANDIDATES, len(shown)), dim=-1)  # [2, candidates]
    firsts, lasts = shown[likely.indices]
    sums = likely.values[0][:, None] + likely.values[1]  # [candidates, candidates]
    length = lasts - firsts[:, None] + 1
    sums = sums.masked_fill((length < 1) | (length > LONGEST_ANSWER), -torch.inf)
    place = int(sums.argmax())
    first, last = int(firsts[place // len(lasts)]), int(lasts[place % len(lasts)])
    begin, end = parts[first], parts[last]
    assert begin is not None and end is not None
    score = float(sums.flatten()[place])
    return best if score == -math.inf else Found(begin[0], end[1], score, nothing)


def _better(one: Found, other: Found) -> Found:
    """The likelier of two windows' answers, and the less likely nothing."""
    best = max(one, other, key=lambda found: found.score)
    return Found(best.begin, best.end, best.score, min(one.nothing, other.nothing))
