from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.core import attach
from budwood.distill.chunks import SLICE_BYTES, chunked, positions_within
from budwood.distill.coarse import coarsened
from budwood.distill.losses import LOSSES, forward_kl, jensen_shannon
from budwood.errors import BadData
from budwood.evaluate.head import head_of
from budwood.fast.loss import sliced
from budwood.methods import LoRA
from families import FAMILIES

N, WIDTH, VOCABULARY = 11, 6, 13


class Tied(nn.Module):
    """A model of a line: its embedding is its head, too."""

    def __init__(self, *, is_trained: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Parameter(torch.randn(VOCABULARY))
        self.words.weight.requires_grad_(is_trained)

    def states(self, ids: Tensor) -> Tensor:
        states: Tensor = self.inner(self.words(ids)).tanh()
        return states

    def head(self, states: Tensor) -> Tensor:
        return F.linear(states, self.words.weight, self.bias) * 3


def both(
    model: nn.Module, plain: Callable[[], Tensor], other: Callable[[], Tensor]
) -> tuple[tuple[Tensor, list[Tensor | None]], tuple[Tensor, list[Tensor | None]]]:
    found = []
    for compute in (plain, other):
        model.zero_grad(set_to_none=True)
        value = compute()
        (value * 1.7).backward()  # type: ignore[no-untyped-call]
        found.append((value.detach(), [p.grad for p in model.parameters()]))
    return found[0], found[1]


def assert_same(
    model: nn.Module, plain: Callable[[], Tensor], other: Callable[[], Tensor], tolerance: float = 1e-6
) -> None:
    (a, before), (b, after) = both(model, plain, other)
    torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
    assert [g is None for g in before] == [g is None for g in after]
    for x, y in zip(before, after, strict=True):
        if x is not None:
            torch.testing.assert_close(y, x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("is_trained", [True, False])
@pytest.mark.parametrize("size", [1, 4, N, None])
@pytest.mark.parametrize("name", LOSSES)
def test_chunked_is_plain(name: str, size: int | None, is_trained: bool) -> None:
    model, ids = Tied(is_trained=is_trained).double(), torch.arange(N)
    teacher, mask = torch.randn(N, VOCABULARY), torch.arange(N) % 5 != 1
    mask[4:8] = False  # one slice in which nothing counts
    loss = LOSSES[name]
    assert_same(
        model,
        lambda: loss(model.head(model.states(ids)), teacher, mask, temperature=2.0),
        lambda: chunked(loss, model.states(ids), model.head, lambda r: teacher[r], mask, size=size, temperature=2.0),
    )


def test_a_loss_with_its_share() -> None:
    model, ids, teacher = Tied(), torch.arange(N), torch.randn(N, VOCABULARY)
    mask, loss = torch.ones(N, dtype=torch.bool), partial(jensen_shannon, beta=0.9)
    assert_same(
        model,
        lambda: loss(model.head(model.states(ids)), teacher, mask),
        lambda: chunked(loss, model.states(ids), model.head, teacher, mask, size=3),
    )


def test_gradcheck_through_the_slices() -> None:
    states = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    teacher, mask = torch.randn(5, 4, dtype=torch.float64), torch.tensor([True, True, False, True, True])

    def compute(states: Tensor, weight: Tensor) -> Tensor:
        return chunked(forward_kl, states, lambda part: part @ weight.T, teacher, mask, size=2)

    assert torch.autograd.gradcheck(compute, (states, weight))


def test_several_losses_of_one_head_and_a_teacher_of_whom_little_is_known() -> None:
    """What a step wants: labels and teacher in one pass over the logits, each slice seen once."""
    model, ids, labels = Tied().double(), torch.arange(N), torch.arange(N).flip(0)
    top = torch.randn(N, VOCABULARY).log_softmax(-1).topk(4)
    seen: list[tuple[int, int]] = []

    def total(logits: Tensor, rows: slice) -> Tensor:
        seen.append((rows.start, rows.stop))
        mask = torch.ones(len(logits), dtype=torch.bool)
        known = forward_kl(*coarsened(logits, top.indices[rows], top.values[rows]), mask) * len(logits)
        return 0.5 * known + 0.5 * F.cross_entropy(logits, labels[rows], reduction="sum")

    assert_same(
        model,
        lambda: total(model.head(model.states(ids)), slice(0, N)),
        lambda: sliced(model.states(ids), model.head, total, size=4),
    )
    assert seen == [(0, 11), (0, 4), (4, 8), (8, 11)]


def test_no_pair_of_all_positions_is_ever_there() -> None:
    model, ids, teacher = Tied(), torch.arange(N), torch.randn(N, VOCABULARY)
    shapes: list[int] = []

    def head(states: Tensor) -> Tensor:
        shapes.append(len(states))
        return model.head(states)

    chunked(forward_kl, model.states(ids), head, teacher, torch.ones(N, dtype=torch.bool), size=4).backward()  # type: ignore[no-untyped-call]
    assert shapes == [4, 4, 3], "and nothing is computed again"


def test_without_gradients() -> None:
    model, ids, teacher = Tied(), torch.arange(N), torch.randn(N, VOCABULARY)
    mask = torch.ones(N, dtype=torch.bool)
    with torch.no_grad():
        value = chunked(forward_kl, model.states(ids), model.head, teacher, mask, size=4)
        torch.testing.assert_close(value, forward_kl(model.head(model.states(ids)), teacher, mask))
    assert not value.requires_grad


def test_autocast() -> None:
    model, ids, teacher = Tied(), torch.arange(N), torch.randn(N, VOCABULARY)
    mask = torch.ones(N, dtype=torch.bool)

    def plain() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return forward_kl(model.head(model.states(ids)), teacher, mask)

    def cut() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return chunked(forward_kl, model.states(ids), model.head, teacher, mask, size=4)

    assert_same(model, plain, cut, tolerance=0.02)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_the_head_of_a_model_with_an_adapter_on_it(name: str) -> None:
    """The module's hooks act, and the adapter's parameters are found without being named."""
    model: Any = FAMILIES[name].build()
    attach(model, LoRA(rank=2, targets=("head.lm", "all")), name="a")
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
    head, batch = head_of(model), FAMILIES[name].batch()
    assert head is not None
    teacher, mask = torch.randn(14, 96), batch["attention_mask"].bool().flatten()

    def states() -> Tensor:
        with torch.no_grad():
            captured.append(head.capture(batch))
        return model.base_model(**batch)[0].flatten(0, 1)

    captured: list[Any] = []
    assert_same(
        model,
        lambda: forward_kl(model(**batch).logits.flatten(0, 1), teacher, mask),
        lambda: chunked(forward_kl, states(), lambda s: head.logits(captured[-1], s[None])[0], teacher, mask, size=3),
        tolerance=2e-6,
    )
    assert any("lm_head" in n and p.grad is not None and p.grad.any() for n, p in model.named_parameters())


def test_the_second_derivative_is_refused_by_torch() -> None:
    states = torch.randn(5, 3, requires_grad=True)
    value = chunked(forward_kl, states, lambda s: s * s, torch.randn(5, 3), torch.ones(5, dtype=torch.bool), size=2)
    (first,) = torch.autograd.grad(value.square(), states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()  # type: ignore[no-untyped-call]


def test_a_budget_in_bytes() -> None:
    assert positions_within(49152) == SLICE_BYTES // (64 * 49152) > 64
    assert positions_within(10**9) == 1


def test_nothing_that_counts_is_refused() -> None:
    states = torch.randn(3, 2)
    with pytest.raises(BadData, match="no position counts"):
        chunked(forward_kl, states, lambda s: s, states, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(BadData, match="no position counts"):
        sliced(states[:0], lambda s: s, lambda logits, rows: logits.sum(), size=2)
