"""Comparing with a teacher of whom only the k likeliest tokens are known: those, and one bucket for all others.

Both distributions are coarsened in the same way, so that any loss of `losses` applies. A KL of the coarsened is exact
for what they are and a lower bound of that of the full ones (data processing); with more k it only grows.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from budwood.distill.losses import FLOOR
from budwood.errors import BadConfig, BadData

Tail = Literal["bucket", "renormalise"]
"""`bucket`: the remaining mass is one more token. `renormalise`: it is left out, as if the k tokens were all there is,
which is biased: the student may then say anything beside them."""


def coarsen(student: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities of some tokens, and of all others together.

    student: [n, vocab] logits;  ids: [n, k] int64, different tokens of the vocabulary
    Returns  [n, k + 1] log-probabilities in float32 (or float64), the tail last: -inf where there are no others. It is
             the sum of the others, not what is missing to 1, so that a tail of 1e-9 is not lost in rounding.
    """
    logits = _wide(student)
    total = logits.logsumexp(dim=-1, keepdim=True)  # [n, 1]
    chosen = logits.gather(-1, _known(ids, logits.shape[-1])) - total  # [n, k]
    if ids.shape[-1] == logits.shape[-1]:
        return torch.cat([chosen, torch.full_like(total, -torch.inf)], dim=-1)
    others = logits.scatter(-1, ids, FLOOR).clamp(min=FLOOR).logsumexp(dim=-1, keepdim=True)  # [n, 1]
    return torch.cat([chosen, (others - total).masked_fill(others < FLOOR / 2, -torch.inf)], dim=-1)


def with_tail(log_probs: Tensor) -> Tensor:
    """The log-probabilities of k tokens with that of all others: [n, k] -> [n, k + 1].

    The tail is 1 less their sum, and -inf where rounding (a cache keeps 16 bits) has brought the sum to 1 or above;
    a loss normalises what it is given.
    """
    wide = _wide(log_probs)
    rest = (1 - wide.exp().sum(dim=-1, keepdim=True)).clamp(min=0)  # [n, 1]
    return torch.cat([wide, rest.log()], dim=-1)


def coarsened(
    student: Tensor, ids: Tensor, log_probs: Tensor, *, temperature: float = 1.0, tail: Tail = "bucket"
) -> tuple[Tensor, Tensor]:
    """(student's, teacher's) logits over the same few tokens, for any loss of `losses` at this temperature.

    student:   [n, vocab] logits;  ids: [n, k] int64;  log_probs: [n, k] the teacher's at T = 1, of a full softmax
    Returns    [n, k + 1] each; [n, k] with tail="renormalise", or where k is the whole vocabulary.
    Raises     BadConfig for a bucket at a temperature other than 1: the softened mass of tokens that are not known
               cannot be told from their sum.
    """
    ids = ids.to(torch.int64)
    if tail == "renormalise" or ids.shape[-1] == student.shape[-1]:
        return _wide(student).gather(-1, _known(ids, student.shape[-1])), _wide(log_probs)
    if temperature != 1:
        raise BadConfig(
            f"temperature is {temperature}, and of the teacher only {ids.shape[-1]} of {student.shape[-1]} tokens are "
            "known: how much the others weigh when softened is not; use temperature 1, a live teacher, or "
            "tail=renormalise (biased)"
        )
    return coarsen(student, ids), with_tail(log_probs)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _known(ids: Tensor, vocabulary: int) -> Tensor:
    if ids.numel() and int(ids.max()) >= vocabulary:
        raise BadData(
            f"the teacher speaks of token {int(ids.max())} and the student knows {vocabulary}; cache the teacher again "
            "with the student's tokenizer"
        )
    return ids
