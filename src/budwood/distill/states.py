"""How far what happens inside a student is from what happens inside a teacher: states and attention, layer by layer.

Layers are counted as in `watch`: 0 is what the first block is given, l what the l-th returns. Only real positions
count, everything is float32 under any autocast, and no gradient flows into the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.distill.watch import Seen
from budwood.errors import BadConfig, BadData


def uniform(student: int, teacher: int) -> dict[int, int]:
    """g(l) = round(l teacher / student) for all of the student's layers, 0 included (TinyBERT, arXiv:1909.10351).

    student, teacher: numbers of layers.  Halves are rounded up.
    """
    return {layer: (2 * layer * teacher + student) // (2 * student) for layer in range(student + 1)}


def last(student: int, teacher: int, count: int = 1) -> dict[int, int]:
    """The student's last `count` layers and the teacher's, in order."""
    if not 1 <= count <= min(student, teacher):
        raise BadConfig(f"the last {count} layers of {student} and {teacher}; say 1 to {min(student, teacher)}")
    return {student - back: teacher - back for back in reversed(range(count))}


def squared_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of (student - teacher)**2 over channels and real positions (TinyBERT, arXiv:1909.10351, eq. 8).

    student: [*, d];  teacher: [*, d];  mask: [*] bool, True at real positions
    Returns  [] float32.  Raises BadConfig for widths that differ, BadData for other positions or none.
    """
    a, b = _real(student, teacher, mask)
    return (a - b).square().mean()


def cosine_states(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of 1 - cos(student, teacher) over real positions (DistilBERT, arXiv:1910.01108, section 3).

    student: [*, d];  teacher: [*, d];  mask: [*] bool
    Returns  [] float32, from 0 to 2.  Raises as `squared_states`.
    """
    a, b = _real(student, teacher, mask)
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()


def attention_error(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean of (student - teacher)**2 of attention probabilities over heads and pairs of real positions.

    TinyBERT's attention loss (arXiv:1909.10351, eq. 7) on probabilities; what they are made of, no model shows.
    student, teacher: [B, heads, S, S];  mask: [B, S] bool
    Raises  BadConfig for numbers of heads that differ or for columns of prompts and prefixes, BadData if no position
            counts.
    """
    if student.shape[1] != teacher.shape[1]:
        raise BadConfig(
            f"the student has {student.shape[1]} heads and the teacher {teacher.shape[1]}, so their attentions have no "
            "pairs; compare relations, which divide anew into heads"
        )
    for name, probabilities in (("student", student), ("teacher", teacher)):
        if probabilities.shape[-2:] != (mask.shape[1], mask.shape[1]):
            raise BadConfig(
                f"the {name} attends from {probabilities.shape[-2]} to {probabilities.shape[-1]} positions and the "
                f"text has {mask.shape[1]}; attention is not compared where prompts or prefixes stand in front"
            )
    pairs = (mask[:, None, :, None] & mask[:, None, None, :]).expand(student.shape)
    _check_counts(mask)
    return (student.float() - teacher.detach().float())[pairs].square().mean()


class StateMatch(nn.Module):
    """The mean distance of paired layers. Where widths differ, student's states are projected by W in R^{d_t x d_s}.

    As in TinyBERT (arXiv:1909.10351, eq. 8 and 9) all layers share one W, and layer 0 has its own. They are float32,
    orthogonal at first, and are trained and thrown away with the distillation.
    pairs:   layer of the student to layer of the teacher
    student, teacher: widths of their states
    measure: "squared" or "cosine"
    """

    def __init__(
        self, pairs: Mapping[int, int], student: int, teacher: int, measure: Literal["squared", "cosine"] = "squared"
    ) -> None:
        super().__init__()
        if not pairs:
            raise BadConfig("no layers were given to compare; use uniform(...) or last(...)")
        self.pairs = dict(pairs)
        self.measure = {"squared": squared_states, "cosine": cosine_states}[measure]
        needed = {_place(layer) for layer in pairs} if student != teacher else set()
        self.W = nn.ParameterDict(
            {place: nn.Parameter(nn.init.orthogonal_(torch.empty(teacher, student))) for place in sorted(needed)}
        )

    def forward(self, student: Seen, teacher: Seen, mask: Tensor) -> Tensor:
        """[] float32.  mask: [B, S] bool, True at real positions, of the text that both have read."""
        losses = []
        for own, other in self.pairs.items():
            states = student.states[own]
            if len(self.W):
                with torch.autocast(states.device.type, enabled=False):
                    states = states.float() @ self.W[_place(own)].T  # [B, S, d_t]
            losses.append(self.measure(states, teacher.states[other], mask))
        return torch.stack(losses).mean()


def _place(layer: int) -> str:
    return "layers" if layer else "embeddings"


def _real(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both at real positions: [m, d] each."""
    if student.shape[-1] != teacher.shape[-1]:
        raise BadConfig(
            f"the student's states are {student.shape[-1]} wide and the teacher's {teacher.shape[-1]}; use a "
            "StateMatch, which trains a projection between them, or relations"
        )
    if student.shape != teacher.shape or student.shape[:-1] != mask.shape:
        raise BadData(
            f"states at {list(student.shape[:-1])} positions of the student, {list(teacher.shape[:-1])} of the teacher "
            f"and {list(mask.shape)} of the mask; let both read the same text"
        )
    _check_counts(mask)
    return student[mask].float(), teacher[mask].detach().float()


def _check_counts(mask: Tensor) -> None:
    if not bool(mask.any()):
        raise BadData("no position counts, so there is no loss; give rows with text")
