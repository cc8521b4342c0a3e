"""MiniLM: how positions relate to one another in queries, keys and values, which needs no equal widths or heads."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from budwood.distill.losses import forward_kl
from budwood.errors import BadConfig, BadData


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor, *, heads: int) -> Tensor:
    """KL between the teacher's relations softmax(X X^T / sqrt(d_r)) and the student's (arXiv:2012.15828).

    student: [B, S, d_s] queries, keys or values, heads side by side;  teacher: [B, S, d_t];  mask: [B, S] bool
    heads:   relation heads A into which both widths are divided anew, d_r = d / A; those of the model do not matter
    Returns  [] float32 in nats, mean over heads and real positions; relations are to real positions, behind and ahead.
    Raises   BadConfig where a width cannot be divided so, BadData for positions that differ or none that counts.
    """
    if student.shape[:-1] != mask.shape or teacher.shape[:-1] != mask.shape:
        raise BadData(
            f"{list(student.shape[:-1])} positions of the student, {list(teacher.shape[:-1])} of the teacher and "
            f"{list(mask.shape)} of the mask; let both read the same text"
        )
    own, other = _relations("student", student, mask, heads), _relations("teacher", teacher.detach(), mask, heads)
    return forward_kl(own, other, mask.unsqueeze(1).expand(-1, heads, -1))


def minilm(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], mask: Tensor, *, heads: int) -> Tensor:
    """The sum of the losses of the relations QQ, KK and VV of one layer of each (MiniLMv2, arXiv:2012.15828).

    student, teacher: `Seen.projections` of the layers: of the last (MiniLM, arXiv:2002.10957), or of a large teacher
                      of one in its upper middle (MiniLMv2)
    """
    losses = [relation_loss(student[role], teacher[role], mask, heads=heads) for role in ("attn.q", "attn.k", "attn.v")]
    return torch.stack(losses).sum()


def _relations(name: str, x: Tensor, mask: Tensor, heads: int) -> Tensor:
    """[B, S, d] -> [B, heads, S, S] logits, -inf at columns of padding."""
    width = x.shape[-1]
    if heads < 1 or width % heads:
        raise BadConfig(f"the {name}'s projections are {width} wide, which {heads} relation heads do not divide evenly")
    x = x if x.dtype == torch.float64 else x.float()
    x = x.unflatten(-1, (heads, width // heads)).transpose(1, 2)  # [B, heads, S, d_r]
    with torch.autocast(x.device.type, enabled=False):
        scores = x @ x.transpose(-1, -2) / math.sqrt(width // heads)  # [B, heads, S, S]
    return scores.masked_fill(~mask[:, None, None, :], -math.inf)
