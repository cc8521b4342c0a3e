from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from budwood.distill.coarse import coarsen, coarsened, with_tail
from budwood.distill.losses import (
    LOSSES,
    entropy,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    skewed_kl,
    skewed_reverse_kl,
    soft_cross_entropy,
    sorted_l1,
    squared_error,
    unpadded,
)
from budwood.errors import BadConfig, BadData

DIVERGENCES = [forward_kl, reverse_kl, skewed_kl, skewed_reverse_kl, jensen_shannon]
ALL = torch.ones(3, dtype=torch.bool)


def pair(
    seed: int = 0, *, n: int = 3, vocabulary: int = 7, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    dice = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, n, vocabulary, generator=dice, dtype=dtype) * 2
    return student, teacher


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_value(name: str) -> None:
    student, teacher = pair()
    mask = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, mask, temperature=1.5), student.requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_is_not_looked_at(name: str) -> None:
    student, teacher = pair(dtype=torch.float32)
    student[1], teacher[1] = math.nan, math.inf
    mask = torch.tensor([True, False, True])
    student.requires_grad_()
    value = LOSSES[name](student, teacher, mask)
    value.backward()  # type: ignore[no-untyped-call]
    kept = LOSSES[name](student[mask], teacher[mask], mask[mask])
    assert torch.equal(value, kept) and value.dtype == torch.float32
    assert student.grad is not None and student.grad.isfinite().all() and not student.grad[1].any()


@pytest.mark.parametrize("name", LOSSES)
def test_the_teacher_gets_no_gradient(name: str) -> None:
    student, teacher = pair()
    LOSSES[name](student.requires_grad_(), teacher.requires_grad_(), ALL).backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None and student.grad is not None


@pytest.mark.parametrize("name", LOSSES)
def test_tokens_that_a_teacher_rules_out_add_nothing(name: str) -> None:
    student, teacher = pair()
    teacher[:, 2] = -math.inf
    value = LOSSES[name](student.requires_grad_(), teacher, ALL)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("loss", [*DIVERGENCES, soft_cross_entropy])
def test_tokens_that_both_rule_out_are_as_if_they_were_not_there(loss: Callable[..., Tensor]) -> None:
    student, teacher = pair()
    rest = [0, 1, 3, 4, 6]
    expected = loss(student[:, rest], teacher[:, rest], ALL)
    student[:, [2, 5]] = teacher[:, [2, 5]] = -math.inf
    value = loss(student.requires_grad_(), teacher, ALL)
    value.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value.detach(), expected)
    assert student.grad is not None and student.grad.isfinite().all() and not student.grad[:, [2, 5]].any()


def test_a_student_that_rules_out_what_the_teacher_says_is_infinitely_wrong() -> None:
    student, teacher = pair()
    student[0, 0] = -math.inf
    assert forward_kl(student, teacher, ALL) == math.inf
    assert reverse_kl(student, teacher, ALL) < math.inf and jensen_shannon(student, teacher, ALL) < math.log(2)


@pytest.mark.parametrize("loss", [*DIVERGENCES, soft_cross_entropy])
def test_extreme_logits_are_no_nan(loss: Callable[..., Tensor]) -> None:
    student = torch.tensor([[1e4, 0.0, -1e4], [0.0, 300.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    teacher = torch.tensor([[-1e4, 0.0, 1e4], [0.0, 300.0, 0.0], [0.0, -math.inf, 500.0]])
    value = loss(student, teacher, ALL)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_sixteen_bits_are_added_up_in_thirty_two(name: str) -> None:
    student, teacher = pair(vocabulary=5000, dtype=torch.float32)
    short = LOSSES[name](student.bfloat16(), teacher.bfloat16(), ALL)
    wide = LOSSES[name](student.bfloat16().float(), teacher.bfloat16().float(), ALL)
    assert short.dtype == torch.float32 and torch.equal(short, wide)


@pytest.mark.parametrize("loss", [forward_kl, reverse_kl, jensen_shannon, soft_cross_entropy, skewed_kl])
def test_gradients_keep_their_size_as_temperature_grows(loss: Callable[..., Tensor]) -> None:
    """T**2 makes the gradient go to a limit: (s - t, both centred) / vocabulary for a KL; without it, to 0."""
    sizes = []
    for temperature in (1000.0, 10_000.0):
        student, teacher = pair()
        loss(student.requires_grad_(), teacher, ALL, temperature=temperature).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        sizes.append(student.grad)
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.02, atol=1e-4)
    if loss is forward_kl:
        student, teacher = pair()
        gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
        torch.testing.assert_close(sizes[1], gap / gap.shape[-1] / 3, rtol=0.02, atol=1e-4)


def test_uld_keeps_its_size_with_temperature_itself() -> None:
    student, teacher = pair()
    a, b = (float(sorted_l1(student, teacher, ALL, temperature=t)) for t in (100.0, 1000.0))
    assert a == pytest.approx(b, rel=0.05)


def test_the_cross_entropy_is_the_kl_and_the_teachers_entropy() -> None:
    student, teacher = pair()
    for temperature in (1.0, 2.5):
        both = forward_kl(student, teacher, ALL, temperature=temperature) + entropy(
            teacher, ALL, temperature=temperature
        )
        torch.testing.assert_close(soft_cross_entropy(student, teacher, ALL, temperature=temperature), both)
    uniform = torch.zeros(1, 8)
    assert float(entropy(uniform, ALL[:1])) == pytest.approx(math.log(8))


def test_jensen_shannons_ends_are_the_two_kls() -> None:
    student, teacher = pair()
    near = 1e-6
    for beta, limit in ((near, forward_kl), (1 - near, reverse_kl)):
        scaled = jensen_shannon(student, teacher, ALL, beta=beta) / (beta * (1 - beta))
        torch.testing.assert_close(scaled, limit(student, teacher, ALL), rtol=1e-3, atol=0)


def test_skews_ends() -> None:
    student, teacher = pair()
    for skewed, whole in ((skewed_kl, forward_kl), (skewed_reverse_kl, reverse_kl)):
        torch.testing.assert_close(
            skewed(student, teacher, ALL, alpha=1e-9), whole(student, teacher, ALL), rtol=1e-5, atol=0
        )
        assert float(skewed(student, teacher, ALL, alpha=1 - 1e-9)) < 1e-8
    student = teacher + student * 0.1
    p, q = teacher.softmax(-1), student.softmax(-1)
    half = ((q - p) ** 2 / p).sum(-1).mean() / 2
    torch.testing.assert_close(skewed_kl(student, teacher, ALL, alpha=0.999) / 0.001**2, half, rtol=0.02, atol=0)


def test_uld_by_hand() -> None:
    student = torch.tensor([[0.5, 0.3, 0.2]]).log()
    teacher = torch.tensor([[0.1, 0.6, 0.2, 0.1]]).log()
    assert float(sorted_l1(student, teacher, ALL[:1])) == pytest.approx(0.1 + 0.1 + 0.1 + 0.1)
    assert float(sorted_l1(teacher, student, ALL[:1])) == pytest.approx(0.4)
    assert float(sorted_l1(student.flip(-1), student, ALL[:1])) == 0


def test_squared_error_by_hand() -> None:
    student, teacher = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[2.0], [5.0], [0.0]])
    mask = torch.tensor([True, True, False])
    assert float(squared_error(student, teacher, mask, temperature=3.0)) == 2.5


@given(st.integers(0, 10_000), st.floats(0.3, 5), st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_what_divergences_are(seed: int, temperature: float, constant: float) -> None:
    student, teacher = pair(seed)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    for loss in DIVERGENCES:
        value = loss(student, teacher, ALL, temperature=temperature)
        assert value > 0
        assert abs(float(loss(teacher, teacher, ALL, temperature=temperature))) < 1e-12
        moved = loss(student + constant, teacher - constant, ALL, temperature=temperature)
        torch.testing.assert_close(moved, value)
        torch.testing.assert_close(loss(student[:, order], teacher[:, order], ALL, temperature=temperature), value)


@pytest.mark.parametrize("name", LOSSES)
def test_no_position_is_refused(name: str) -> None:
    with pytest.raises(BadData, match="no position counts"):
        LOSSES[name](*pair(), ~ALL)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "uld"])
def test_unequal_widths_are_refused(name: str) -> None:
    student, teacher = pair()
    with pytest.raises(BadData, match=r"for 6 tokens and the teacher for 7.*unpadded"):
        LOSSES[name](student[:, :6], teacher, ALL)


def test_other_shapes_are_refused() -> None:
    student, teacher = pair()
    with pytest.raises(BadData, match=r"\[2\] positions of the student, \[3\] of the teacher and \[3\] of the mask"):
        forward_kl(student[:2], teacher, ALL)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
@pytest.mark.parametrize("name", LOSSES)
def test_temperatures_are_above_zero(name: str, temperature: float) -> None:
    with pytest.raises(BadConfig, match="must be above 0"):
        LOSSES[name](*pair(), ALL, temperature=temperature)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [(skewed_kl, {"alpha": 0.0}), (skewed_reverse_kl, {"alpha": 1.0}), (jensen_shannon, {"beta": 0.0})],
)
def test_shares_are_between_zero_and_one(loss: Any, wrong: dict[str, float]) -> None:
    with pytest.raises(BadConfig, match=r"must be above 0 and below 1 \(for the ends use"):
        loss(*pair(), ALL, **wrong)


def test_padding_is_cut() -> None:
    student, teacher = pair()
    wide = torch.cat([teacher, torch.full((3, 4), 50.0)], dim=-1)
    cut = unpadded(student, wide, 6)
    assert torch.equal(cut[0], student[:, :6]) and torch.equal(cut[1], teacher[:, :6])
    with pytest.raises(BadData, match="the student has logits for 7 tokens and the tokenizer 8"):
        unpadded(student, wide, 8)


# ---- only k tokens of the teacher are known

BY_HAND = torch.tensor([[0.5, 0.25, 0.15, 0.1]])


def test_the_bucket_by_hand() -> None:
    student = torch.tensor([[0.4, 0.1, 0.3, 0.2]]).log()
    ids = torch.tensor([[1, 0]])
    found = coarsen(student, ids).exp()
    torch.testing.assert_close(found, torch.tensor([[0.1, 0.4, 0.5]]))
    s, t = coarsened(student, ids, BY_HAND.log().gather(-1, ids))
    torch.testing.assert_close(t.exp(), torch.tensor([[0.25, 0.5, 0.25]]))
    expected = 0.25 * math.log(0.25 / 0.1) + 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.5)
    assert float(forward_kl(s, t, ALL[:1])) == pytest.approx(expected, rel=1e-5)


def test_renormalising_by_hand_and_that_it_is_blind() -> None:
    student = torch.tensor([[0.4, 0.2, 0.3, 0.1]]).log()
    ids = torch.tensor([[0, 1]])
    s, t = coarsened(student, ids, BY_HAND.log().gather(-1, ids), tail="renormalise")
    assert s.shape == t.shape == (1, 2)
    assert float(forward_kl(s, t, ALL[:1])) == pytest.approx(0.0, abs=1e-6), "2 : 1 in both, whatever the rest is"
    s, t = coarsened(student, ids, BY_HAND.log().gather(-1, ids))
    assert float(forward_kl(s, t, ALL[:1])) > 0.01


@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_a_coarsened_kl_is_a_lower_bound_that_grows_with_k(seed: int, k: int) -> None:
    student, teacher = pair(seed)
    log_p = teacher.log_softmax(-1)
    for loss in DIVERGENCES:
        bounds = []
        for size in (k, min(k + 1, 7)):
            ids = log_p.topk(size).indices
            bounds.append(float(loss(*coarsened(student, ids, log_p.gather(-1, ids)), ALL)))
        full = float(loss(student, teacher, ALL))
        assert -1e-12 <= bounds[0] <= bounds[1] + 1e-12 and bounds[1] <= full + 1e-12
        if k == 7:
            assert bounds[0] == pytest.approx(full)


def test_coarsening_has_gradients() -> None:
    student, teacher = pair()
    ids = teacher.topk(3).indices
    log_probs = teacher.log_softmax(-1).gather(-1, ids)
    assert torch.autograd.gradcheck(lambda s: forward_kl(*coarsened(s, ids, log_probs), ALL), student.requires_grad_())


def test_a_small_tail_is_not_lost() -> None:
    student = torch.tensor([[30.0, 10.0, 0.0, 0.0]], requires_grad=True)
    tail = coarsen(student, torch.tensor([[0, 1]]))
    assert float(tail[0, 2].detach()) == pytest.approx(-30 + math.log(2), rel=1e-6)
    tail[0, 2].backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.isfinite().all()


def test_masked_others_are_an_empty_tail() -> None:
    student = torch.tensor([[1.0, 2.0, -math.inf, -math.inf]], requires_grad=True)
    ids = torch.tensor([[0, 1]])
    value = forward_kl(*coarsened(student, ids, torch.tensor([[0.5, 0.5]]).log()), ALL[:1])
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


def test_rounded_log_probabilities_that_sum_to_more_than_one_have_no_tail() -> None:
    found = with_tail(torch.tensor([[0.75, 0.2512]]).log().half())
    assert found.dtype == torch.float32 and found[0, 2] == -math.inf


def test_all_tokens_known_is_exact_at_any_temperature() -> None:
    student, teacher = pair()
    ids = torch.stack([torch.randperm(7) for _ in range(3)])
    s, t = coarsened(student, ids, teacher.log_softmax(-1).gather(-1, ids), temperature=3.0)
    torch.testing.assert_close(
        reverse_kl(s, t, ALL, temperature=3.0), reverse_kl(student, teacher, ALL, temperature=3.0)
    )
    assert coarsen(student, ids).shape == (3, 8) and (coarsen(student, ids)[:, 7] == -math.inf).all()


def test_a_bucket_needs_temperature_one() -> None:
    student, teacher = pair()
    ids = teacher.topk(3).indices
    with pytest.raises(BadConfig, match="of the teacher only 3 of 7 tokens are known"):
        coarsened(student, ids, teacher.gather(-1, ids), temperature=2.0)


def test_tokens_that_the_student_has_not_are_refused() -> None:
    student, _ = pair()
    with pytest.raises(BadData, match="token 9 and the student knows 7"):
        coarsen(student, torch.full((3, 1), 9))
