"""Distillation's losses against their formulas in NumPy, in float64, written down here one position after another."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from budwood.distill.coarse import coarsened
from budwood.distill.losses import LOSSES, entropy, forward_kl
from budwood.distill.relations import minilm, relation_loss
from budwood.distill.states import attention_error, cosine_states, squared_states
from budwood.distill.watch import QKV

N, V = 6, 9
COUNTED = np.array([True, True, False, True, False, True])
Vector = np.ndarray


def softmax(x: Vector) -> Vector:
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(a: Vector, b: Vector) -> float:
    return float(sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0))


def jsd(p: Vector, q: Vector, beta: float) -> float:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


FORMULAS: dict[str, Callable[[Vector, Vector], float]] = {
    "forward-kl": lambda p, q: kl(p, q),
    "reverse-kl": lambda p, q: kl(q, p),
    "skewed-kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skewed-reverse-kl": lambda p, q: kl(q, 0.1 * q + 0.9 * p),
    "jsd": lambda p, q: jsd(p, q, 0.5),
    "soft-cross-entropy": lambda p, q: -float((p * np.log(q)).sum()),
}
"""By the probabilities of teacher and student."""


def logits(seed: int = 0, *shape: int) -> tuple[Vector, Vector]:
    dice = np.random.default_rng(seed)
    return 2 * dice.normal(size=shape or (N, V)), 2 * dice.normal(size=shape or (N, V))


def tensors(*arrays: Vector) -> list[Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_losses_of_probabilities(name: str, temperature: float) -> None:
    student, teacher = logits()
    each = [
        FORMULAS[name](softmax(t / temperature), softmax(s / temperature))
        for s, t in zip(student, teacher, strict=True)
    ]
    expected = np.mean(np.array(each)[COUNTED]) * temperature**2
    s, t, mask = tensors(student, teacher, COUNTED)
    found = LOSSES[name](s, t, mask, temperature=temperature)
    assert float(found) == pytest.approx(expected, rel=1e-12)
    narrow = LOSSES[name](s.float(), t.float(), mask, temperature=temperature)
    assert float(narrow) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_shares(share: float) -> None:
    student, teacher = logits(1)
    s, t, mask = tensors(student, teacher, COUNTED)
    pairs = [(softmax(a), softmax(b)) for a, b in zip(teacher[COUNTED], student[COUNTED], strict=True)]
    expected = {
        "jsd": np.mean([jsd(p, q, share) for p, q in pairs]),
        "skewed-kl": np.mean([kl(p, share * p + (1 - share) * q) for p, q in pairs]),
        "skewed-reverse-kl": np.mean([kl(q, share * q + (1 - share) * p) for p, q in pairs]),
    }
    for name, value in expected.items():
        field = "beta" if name == "jsd" else "alpha"
        assert float(LOSSES[name](s, t, mask, **{field: share})) == pytest.approx(value, rel=1e-12)


def test_entropy_and_squared_error() -> None:
    student, teacher = logits(2)
    s, t, mask = tensors(student, teacher, COUNTED)
    each = [-float((p * np.log(p)).sum()) for p in (softmax(row / 3) for row in teacher[COUNTED])]
    assert float(entropy(t, mask, temperature=3.0)) == pytest.approx(9 * np.mean(each), rel=1e-12)
    expected = ((student - teacher)[COUNTED] ** 2).mean()
    assert float(LOSSES["squared-error"](s, t, mask)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("own", "other"), [(9, 9), (9, 5), (5, 9)])
def test_uld(own: int, other: int) -> None:
    dice = np.random.default_rng(3)
    student, teacher = dice.normal(size=(N, own)), dice.normal(size=(N, other))
    total = []
    for s, t in zip(student[COUNTED], teacher[COUNTED], strict=True):
        q, p = (sorted(softmax(x / 1.5), reverse=True) + [0.0] * (9 - len(x)) for x in (s, t))
        total.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
    a, b, mask = tensors(student, teacher, COUNTED)
    assert float(LOSSES["uld"](a, b, mask, temperature=1.5)) == pytest.approx(1.5 * np.mean(total), rel=1e-12)


def test_the_gradient_of_forward_kl_is_the_difference_of_probabilities() -> None:
    """d/ds T**2 KL(p || q) = T (q - p), over the positions that count."""
    student, teacher = logits(4)
    s, t, mask = tensors(student, teacher, COUNTED)
    forward_kl(s.requires_grad_(), t, mask, temperature=2.0).backward()  # type: ignore[no-untyped-call]
    expected = np.stack([2 * (softmax(a / 2) - softmax(b / 2)) for a, b in zip(student, teacher, strict=True)])
    expected[~COUNTED] = 0
    assert s.grad is not None
    np.testing.assert_allclose(s.grad.numpy(), expected / COUNTED.sum(), atol=1e-12)


@pytest.mark.parametrize("k", [1, 4, 9])
def test_buckets(k: int) -> None:
    student, teacher = logits(5)
    ids = np.argsort(-teacher, axis=1)[:, :k]
    total = []
    for s, t, chosen in zip(student, teacher, ids, strict=True):
        p, q = softmax(t), softmax(s)
        rest = [n for n in range(V) if n not in chosen]
        total.append(kl(np.array([*p[chosen], p[rest].sum()]), np.array([*q[chosen], q[rest].sum()])))
    log_p = np.stack([np.log(softmax(t))[chosen] for t, chosen in zip(teacher, ids, strict=True)])
    s, i, log = tensors(student, ids, log_p)
    mask = torch.from_numpy(COUNTED)
    assert float(forward_kl(*coarsened(s, i, log), mask)) == pytest.approx(np.mean(np.array(total)[COUNTED]), rel=1e-9)


def test_minilm() -> None:
    """Relations over real positions, for widths and heads that differ."""
    dice, heads = np.random.default_rng(6), 2
    mask = np.array([[True] * 5, [True, True, True, False, False]])
    total = 0.0
    own, other = {}, {}
    for role in QKV:
        own[role], other[role] = dice.normal(size=(2, 5, 6)), dice.normal(size=(2, 5, 4))
        each = []
        for row in range(2):
            length = int(mask[row].sum())
            for head in range(heads):
                q = own[role][row, :length, 3 * head : 3 * head + 3]
                p = other[role][row, :length, 2 * head : 2 * head + 2]
                for at in range(length):
                    each.append(kl(softmax(p @ p[at] / math.sqrt(2)), softmax(q @ q[at] / math.sqrt(3))))
        s, t = tensors(own[role], other[role])
        found = relation_loss(s, t, torch.from_numpy(mask), heads=heads)
        assert float(found) == pytest.approx(np.mean(each), rel=1e-12)
        total += float(np.mean(each))
    student, teacher = ({role: torch.from_numpy(x) for role, x in given.items()} for given in (own, other))
    assert float(minilm(student, teacher, torch.from_numpy(mask), heads=heads)) == pytest.approx(total, rel=1e-12)


def test_states_and_attention() -> None:
    student, teacher = logits(7, 2, 3, 5)
    mask = np.array([[True, True, True], [False, True, False]])
    s, t, m = tensors(student, teacher, mask)
    rows = [(student[i, j], teacher[i, j]) for i, j in zip(*np.nonzero(mask), strict=True)]
    assert float(squared_states(s, t, m)) == pytest.approx(np.mean([(a - b) ** 2 for a, b in rows]), rel=1e-5)
    cosines = [1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in rows]
    assert float(cosine_states(s, t, m)) == pytest.approx(np.mean(cosines), rel=1e-5)
    a, b = logits(8, 2, 4, 3, 3)
    errors = [(a - b)[i, :, j, k] ** 2 for i in range(2) for j in range(3) for k in range(3) if mask[i, j] & mask[i, k]]
    assert float(attention_error(*tensors(a, b), m)) == pytest.approx(np.mean(errors), rel=1e-5)
