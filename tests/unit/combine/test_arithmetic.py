"""The merges of updates: against NumPy written from the papers' equations, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from budwood.combine.arithmetic import (
    Pair,
    concatenated,
    dare_linear,
    dare_ties,
    disjoint_mean,
    dropped,
    elected,
    factored,
    linear,
    magnitude_prune,
    ties,
    trimmed,
    truncated,
)

OUT, IN = 9, 14
Array = NDArray[np.float64]


def pairs(*ranks: int, seed: int = 0) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return [(torch.randn(r, IN, **draw), torch.randn(OUT, r, **draw)) for r in ranks]


def deltas(number: int = 3, seed: int = 0) -> list[Tensor]:
    return [B @ A for A, B in pairs(*[4] * number, seed=seed)]


def generators(number: int, seed: int = 5) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + n) for n in range(number)]


def test_concatenation_is_the_weighted_sum() -> None:
    found = pairs(2, 5, 1)
    A, B = concatenated(found, (0.3, -1.5, 0.0))
    assert A.shape == (8, IN) and B.shape == (OUT, 8)
    torch.testing.assert_close(B @ A, linear([B @ A for A, B in found], (0.3, -1.5, 0.0)))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_truncation_is_off_by_the_singular_values_that_it_leaves_out(rank: int) -> None:
    whole = concatenated(pairs(4, 4), (1.0, 0.5))
    delta = whole[1] @ whole[0]
    values = np.linalg.svd(delta.numpy(), compute_uv=False)
    expected = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
    for (A, B), error in (truncated(whole, rank), factored(delta, rank)):
        assert A.shape == (rank, IN) and B.shape == (OUT, rank)
        assert error == pytest.approx(expected, rel=1e-9)
        assert float((delta - B @ A).norm() / delta.norm()) == pytest.approx(expected, rel=1e-9)


def test_truncation_to_the_whole_rank_is_exact_also_where_the_pair_is_wider_than_the_matrix() -> None:
    whole = concatenated(pairs(8, 8), (1.0, 1.0))  # rank 16 in a 9 x 14 matrix
    (A, B), error = truncated(whole, OUT)
    assert error < 1e-12
    torch.testing.assert_close(B @ A, whole[1] @ whole[0])


def test_nothing_at_all_has_no_error() -> None:
    (A, B), error = factored(torch.zeros(OUT, IN), 3)
    assert error == 0 and not (B @ A).any()


def numpy_trim(tau: Array, density: float) -> Array:
    """Section 4.1 of TIES: keep the top k by magnitude."""
    order = np.argsort(-np.abs(tau), axis=None)[: round(density * tau.size)]
    kept = np.zeros(tau.size)
    kept[order] = tau.ravel()[order]
    return kept.reshape(tau.shape)


def numpy_elect_and_mean(tau: list[Array], by: str) -> Array:
    """gamma = sgn(sum_t tau_t); the mean over those t whose sign is gamma, element by element."""
    merged = np.zeros_like(tau[0])
    for place in np.ndindex(merged.shape):
        values = [t[place] for t in tau]
        gamma = np.sign(sum(values if by == "total" else np.sign(values)))
        agreeing = [value for value in values if gamma != 0 and np.sign(value) == gamma]
        merged[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return merged


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.4, 0.4, 0.4), (0.5, 2.0, -1.0)])
def test_ties_is_the_paper(density: float, sign: str, weights: tuple[float, ...]) -> None:
    found = deltas()
    expected = numpy_elect_and_mean(
        [w * numpy_trim(d.numpy(), density) for w, d in zip(weights, found, strict=True)], sign
    )
    merged = ties(found, weights, density, "total" if sign == "total" else "frequency")
    np.testing.assert_allclose(merged.numpy(), expected, atol=1e-12)


def test_equal_weights_are_the_papers_lambda() -> None:
    found = deltas()
    torch.testing.assert_close(ties(found, (0.3,) * 3, 0.4), 0.3 * ties(found, (1.0,) * 3, 0.4))


@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_a_weight_of_zero_is_as_if_the_update_was_not_there(sign: str) -> None:
    found, by = deltas(), "total" if sign == "total" else "frequency"
    assert torch.equal(ties(found, (1.0, 0.0, 0.7), 0.4, by), ties([found[0], found[2]], (1.0, 0.7), 0.4, by))


def test_an_even_vote_elects_nothing() -> None:
    updates = torch.tensor([[[1.0, 2.0, 3.0]], [[-1.0, -5.0, 1.0]]])
    assert elected(updates).tolist() == [[0.0, -1.0, 1.0]]
    assert elected(updates, "frequency").tolist() == [[0.0, 0.0, 1.0]]
    assert disjoint_mean(updates, elected(updates)).tolist() == [[0.0, -5.0, 2.0]]


def test_trimming_counts_the_values_that_an_adapter_changes() -> None:
    delta = torch.zeros(4, 10)
    delta[:2] = torch.arange(1.0, 21.0).view(2, 10) * torch.tensor([1.0, -1.0] * 5)
    kept = trimmed(delta, 0.25)
    assert kept.count_nonzero() == 5 and kept.abs().max() == 20 and kept[kept != 0].abs().min() == 16
    assert trimmed(delta, 1e-6).count_nonzero() == 1
    assert trimmed(delta, 1.0) is delta
    assert not trimmed(torch.zeros(2, 2), 0.5).any()


def test_dare_keeps_the_expectation() -> None:
    delta = deltas(1)[0]
    rounds = 4000
    generator = torch.Generator().manual_seed(1)
    drawn = torch.stack([dropped(delta, 0.3, generator) for _ in range(rounds)])
    share = (drawn != 0).double().mean()
    assert abs(float(share) - 0.3) < 0.005
    spread = delta.abs() * (0.7 / 0.3 / rounds) ** 0.5  # standard deviation of the mean
    assert ((drawn.mean(0) - delta).abs() <= 5 * spread).all()


def test_dare_is_the_paper() -> None:
    """delta' = m * delta / (1 - p), m ~ Bernoulli(1 - p); then the weighted sum, or elect and mean."""
    found, weights, density = deltas(), (0.5, 1.0, -2.0), 0.4
    masks = [torch.rand(d.shape, generator=g).numpy() < density for d, g in zip(found, generators(3), strict=True)]
    left = [w * mask * d.numpy() / density for w, mask, d in zip(weights, masks, found, strict=True)]
    summed = dare_linear(found, weights, density, generators(3))
    np.testing.assert_allclose(summed.numpy(), sum(left), atol=1e-12)
    for sign in ("total", "frequency"):
        merged = dare_ties(found, weights, density, generators(3), "total" if sign == "total" else "frequency")
        np.testing.assert_allclose(merged.numpy(), numpy_elect_and_mean(left, sign), atol=1e-12)
    assert dropped(found[0], 1.0, generators(1)[0]) is found[0]


def test_pruning_is_the_weighted_sum_of_the_largest_values() -> None:
    found, weights = deltas(), (0.5, 1.0, -2.0)
    expected = sum(w * numpy_trim(d.numpy(), 0.3) for w, d in zip(weights, found, strict=True))
    np.testing.assert_allclose(magnitude_prune(found, weights, 0.3).numpy(), expected, atol=1e-12)


def test_order_does_not_matter() -> None:
    found, weights, turned = deltas(), (0.5, 1.0, -2.0), [2, 0, 1]
    back = ([found[n] for n in turned], [weights[n] for n in turned])
    torch.testing.assert_close(ties(*back, 0.4), ties(found, weights, 0.4))
    torch.testing.assert_close(magnitude_prune(*back, 0.4), magnitude_prune(found, weights, 0.4))
    own = generators(3)
    drawn = dare_ties(*back, 0.4, [generators(3)[n] for n in turned])
    torch.testing.assert_close(drawn, dare_ties(found, weights, 0.4, own))


def test_one_update_alone_is_itself() -> None:
    (delta,) = deltas(1)
    generator = generators(1)
    for merged in (
        linear([delta], (1.0,)),
        ties([delta], (1.0,), 1.0),
        dare_linear([delta], (1.0,), 1.0, generator),
        dare_ties([delta], (1.0,), 1.0, generator),
        magnitude_prune([delta], (1.0,), 1.0),
    ):
        assert torch.equal(merged, delta)
    (A, B), error = factored(delta, 4)
    assert error < 1e-12
    torch.testing.assert_close(B @ A, delta)
