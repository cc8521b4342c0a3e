"""How far a student's predictions are from a teacher's, as pure functions: one number for each pair of logits.

Every loss takes logits of the same positions and returns the mean over those that count. p = softmax(teacher / T) and
q = softmax(student / T); both are softened, and the result is multiplied by T**2, which keeps gradients of one size
when T changes (Hinton et al. 2015, arXiv:1503.02531, section 2). Sums are in float32 (float64 where the student's
logits are), logarithms are never of a probability that has been rounded to 0, and a token that the teacher rules out
(logit -inf) adds 0. No gradient flows into the teacher.

    forward_kl          KL(p || q)                      a KL, 0 where both agree
    soft_cross_entropy  -sum p log q                    KL(p || q) plus `entropy` of the teacher; the same gradients
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from budwood.errors import BadConfig, BadData

Loss: TypeAlias = Callable[..., Tensor]
"""student [n, vocab], teacher [n, vocab], mask [n] bool, temperature=... -> []."""

FLOOR = -1e30
"""Stands for log 0 where several are added up, as infinities have no difference."""


def forward_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student), mean over the positions that count (Hinton et al. 2015, arXiv:1503.02531).

    student: [n, vocab] logits, any float dtype; computed in float32
    teacher: [n, vocab] logits; no gradient flows into it
    mask:    [n] bool, True where the position counts
    Returns  [] in nats, times temperature**2; +inf where the student rules out what the teacher may say.
    Raises   BadData if no position counts or the widths differ, BadConfig for a temperature that is not above 0.
    """
    log_p, log_q = _logs(student, teacher, mask, temperature)
    return _kl(log_p, log_q).mean() * temperature**2


def reverse_kl(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(student || teacher), mean over the positions that count: per token what MiniLLM has (arXiv:2306.08543).

    Over the tokens that the teacher does not rule out: of the others (logits -inf) any share of the student's would be
    infinitely wrong, so the student's distribution over the rest is compared.
    student, teacher, mask: as in `forward_kl`
    Returns  [] in nats, times temperature**2.
    """
    student, teacher = _counted(student, teacher, mask)
    log_p, log_q = _both_logs(student.masked_fill(teacher == -math.inf, -math.inf), teacher, temperature)
    return _kl(log_q, log_p).mean() * temperature**2


def skewed_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q), mean over the positions that count (DistiLLM, arXiv:2402.03898).

    student, teacher, mask: as in `forward_kl`, which this becomes as alpha -> 0; as alpha -> 1 it becomes 0, and
             divided by (1 - alpha)**2 half the chi-squared divergence of q from p
    Returns  [] in nats, times temperature**2; at most -log(alpha) before that.
    """
    _check_share("alpha", alpha, "forward-kl")
    log_p, log_q = _logs(student, teacher, mask, temperature)
    return _kl(log_p, _mixed(log_p, log_q, alpha)).mean() * temperature**2


def skewed_reverse_kl(
    student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0, alpha: float = 0.1
) -> Tensor:
    """KL(q || alpha q + (1 - alpha) p), mean over the positions that count (DistiLLM, arXiv:2402.03898).

    student, teacher, mask: as in `reverse_kl`, which this becomes as alpha -> 0; finite also where the teacher rules
             tokens out
    Returns  [] in nats, times temperature**2; at most -log(alpha) before that.
    """
    _check_share("alpha", alpha, "reverse-kl")
    log_p, log_q = _logs(student, teacher, mask, temperature)
    return _kl(log_q, _mixed(log_q, log_p, alpha)).mean() * temperature**2


def jensen_shannon(
    student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0, beta: float = 0.5
) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, mean over the positions that count.

    The generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649), beta the teacher's share of m. It goes
    to 0 at both ends; divided by beta (1 - beta) it becomes KL(p || q) as beta -> 0 and KL(q || p) as beta -> 1.
    student, teacher, mask: as in `forward_kl`
    Returns  [] in nats, times temperature**2; at most log 2 before that.
    """
    _check_share("beta", beta, "forward-kl or reverse-kl")
    log_p, log_q = _logs(student, teacher, mask, temperature)
    middle = _mixed(log_p, log_q, beta)
    return (beta * _kl(log_p, middle) + (1 - beta) * _kl(log_q, middle)).mean() * temperature**2


def soft_cross_entropy(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum p log q, mean over the positions that count: `forward_kl` plus the teacher's `entropy`, no divergence.

    student, teacher, mask: as in `forward_kl`, whose gradients it has
    Returns  [] in nats, times temperature**2; at its least the teacher's entropy, not 0.
    """
    log_p, log_q = _logs(student, teacher, mask, temperature)
    return _expected(log_p, -log_q).mean() * temperature**2


def entropy(teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum p log p, mean over the positions that count: what `soft_cross_entropy` has more than `forward_kl`.

    teacher: [n, vocab] logits;  mask: [n] bool
    Returns  [] in nats, times temperature**2 like these two, so that they convert by adding.
    """
    log_p, _ = _logs(teacher, teacher, mask, temperature)
    return _expected(log_p, -log_p).mean() * temperature**2


def squared_error(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Mean of (student - teacher)**2 over outputs, and over the positions that count: for heads that are no softmax.

    student, teacher: [n, outputs];  mask: [n] bool
    temperature: makes no difference, as T**2 cancels 1/T in the square
    Returns  [] in squared units of the outputs.
    """
    _check_temperature(temperature)
    student, teacher = _counted(student, teacher, mask)
    return (student - teacher).masked_fill(teacher == -math.inf, 0.0).square().mean()


def sorted_l1(student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Sum of |p_(i) - q_(i)|, each sorted from high to low, mean over the positions that count (ULD, arXiv:2402.12030).

    For vocabularies that differ: which token has a probability does not matter. The shorter is padded with zeros.
    student: [n, vocab] logits;  teacher: [n, another vocab] logits;  mask: [n] bool
    Returns  [] in probability, from 0 to 2, times temperature (not its square: a difference shrinks only as 1/T).
    """
    _check_temperature(temperature)
    student, teacher = _chosen(student, teacher, mask)
    q, p = (
        (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True).values for logits in (student, teacher)
    )
    more = q.shape[-1] - p.shape[-1]
    return (F.pad(q, (0, max(0, -more))) - F.pad(p, (0, max(0, more)))).abs().sum(dim=-1).mean() * temperature


LOSSES: Mapping[str, Loss] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "skewed-kl": skewed_kl,
    "skewed-reverse-kl": skewed_reverse_kl,
    "jsd": jensen_shannon,
    "soft-cross-entropy": soft_cross_entropy,
    "squared-error": squared_error,
    "uld": sorted_l1,
}
"""The losses by the names they have on the command line."""


def unpadded(student: Tensor, teacher: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Both without the columns that stand for no token: embeddings are often padded, and differently.

    student, teacher: [*, at least `tokens`] logits;  tokens: 1 + the highest id of their common tokenizer
    Returns  two views [*, tokens].  Raises BadData where one has fewer columns than there are tokens.
    """
    for name, logits in (("student", student), ("teacher", teacher)):
        if logits.shape[-1] < tokens:
            raise BadData(
                f"the {name} has logits for {logits.shape[-1]} tokens and the tokenizer {tokens} tokens; that is no "
                "padding: use a model and tokenizer that belong together, or the loss uld"
            )
    return student[..., :tokens], teacher[..., :tokens]


def _logs(student: Tensor, teacher: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log p, log q at the positions that count: [m, vocab] each."""
    return _both_logs(*_counted(student, teacher, mask), temperature)


def _both_logs(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    _check_temperature(temperature)
    return (teacher / temperature).log_softmax(dim=-1), (student / temperature).log_softmax(dim=-1)


def _counted(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `_chosen`, of one width."""
    if student.shape[-1] != teacher.shape[-1]:
        raise BadData(
            f"the student has logits for {student.shape[-1]} tokens and the teacher for {teacher.shape[-1]}; cut both "
            "to their tokenizer's size where the rest is padding (losses.unpadded), or use the loss uld"
        )
    return _chosen(student, teacher, mask)


def _chosen(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the positions that count, in float32 or, where the student is, float64; the teacher detached."""
    if student.shape[:-1] != teacher.shape[:-1] or student.shape[:-1] != mask.shape:
        raise BadData(
            f"{list(student.shape[:-1])} positions of the student, {list(teacher.shape[:-1])} of the teacher and "
            f"{list(mask.shape)} of the mask; give logits of the same positions"
        )
    if not bool(mask.any()):
        raise BadData("no position counts, so there is no loss; give rows in which something is learned")
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    if not bool(mask.all()):
        student, teacher = student[mask], teacher[mask]
    return student.to(dtype), teacher.detach().to(dtype)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each position: [m, vocab] -> [m]."""
    return _expected(log_a, log_a - log_b)


def _expected(log_a: Tensor, values: Tensor) -> Tensor:
    """sum a * values over the tokens that a allows, whatever stands at others: [m, vocab] -> [m]."""
    a = log_a.exp()
    return (a * values.masked_fill(a == 0, 0.0)).sum(dim=-1)


def _mixed(log_a: Tensor, log_b: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), both logs of shares above 0."""
    return torch.logaddexp(log_a.clamp(min=FLOOR) + math.log(share), log_b.clamp(min=FLOOR) + math.log1p(-share))


def _check_share(name: str, share: float, instead: str) -> None:
    if not 0 < share < 1:
        raise BadConfig(f"{name} is {share}; it must be above 0 and below 1 (for the ends use {instead})")


def _check_temperature(temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise BadConfig(f"temperature is {temperature}; it must be above 0: 1 is as the models say it, 2 is softer")
