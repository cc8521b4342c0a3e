"""The refit: exact where it can be, equal to the plain computation, and worth its while."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import budwood
from budwood.data import Batch
from budwood.errors import BadData, WrongOrder
from budwood.evaluate import evaluating
from budwood.prune import refit as module
from budwood.prune.calibration import joined, summed_loss
from budwood.prune.cut import cut
from budwood.prune.importance import importance, keep
from budwood.prune.kept import Kept, Sizes, Structure
from budwood.prune.refit import refit, solve
from budwood.prune.structure import structure_of
from calibrating import calibration, counting, trained
from families import FAMILIES


def logits(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch.inputs()).logits
    return found


def loss(model: Any, batch: Batch) -> float:
    with evaluating(model):
        return float(summed_loss(model, batch))


def half(model: Any, structure: Structure, batch: Batch) -> Kept:
    """Half of every unit, as far as the model can be cut there."""
    scores = importance(model, [batch], structure=structure)
    counts = {d: min((u.count for u in structure.units if u.dimension == d), default=0) for d in ("ffn", "heads")}
    sizes = {d: count // 2 for d, count in counts.items() if count > 1 and d not in structure.refused}
    return keep(structure, scores, Sizes(**sizes))


def without_unit(structure: Structure, number: int) -> Kept:
    """One neuron less in every feed-forward."""
    neurons = [units for units in structure.units if units.dimension == "ffn"]
    return Kept(units={u.path: tuple(i for i in range(u.count) if i != number) for u in neurons})


@pytest.mark.parametrize("centred", [True, False])
def test_the_system_against_plain_least_squares(centred: bool) -> None:
    torch.manual_seed(0)
    x, error = torch.randn(50, 6) + 1, torch.randn(50, 3)
    change, shift = solve(x, error, 0.1, centred=centred)
    a, b = x.double().numpy(), error.double().numpy()
    if centred:
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = 0.1 * (a.T @ a).diagonal().mean()
    expected = np.linalg.lstsq(np.vstack([a, size**0.5 * np.eye(6)]), np.vstack([b, np.zeros((6, 3))]), rcond=None)[0]
    assert np.allclose(change.numpy(), expected.T, atol=1e-5)
    if centred:
        assert torch.allclose(shift, error.mean(dim=0) - change @ x.mean(dim=0), atol=1e-5)
    else:
        assert not shift.any()


def test_inputs_that_say_nothing_change_nothing() -> None:
    change, shift = solve(torch.zeros(5, 3), torch.ones(5, 2), 0.01, centred=True)
    assert not change.any() and torch.equal(shift, torch.ones(2))


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "mixtral"])
def test_nothing_cut_changes_nothing(name: str) -> None:
    model, batch = FAMILIES[name].build(), calibration(name)
    structure = structure_of(model)
    every = Kept(
        layers={stack: tuple(range(depth)) for stack, depth in structure.depths.items()},
        units={u.path: tuple(range(u.count)) for u in structure.units},
    )
    assert refit(model, Kept(), [batch], structure=structure) == {}
    assert refit(model, every, [batch], structure=structure) == {}


@pytest.mark.parametrize("target", ["global", "local"])
def test_the_copy_of_a_neuron_is_not_missed(target: Any) -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama", rows=40)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "gate_proj" in name or "up_proj" in name:
                weight[7] = weight[3]
    structure = structure_of(model)
    kept = without_unit(structure, 7)
    weights = refit(model, kept, [batch], structure=structure, ridge=1e-9, target=target)
    assert len(weights) == 2 + (target == "global") and not any(
        weights[f"{path}.weight"][:, 7].any() for path in kept.units
    )
    off = (logits(cut(model, kept), batch) - logits(model, batch))[batch.attention_mask.bool()]
    assert off.abs().max() > 1e-3
    for text in (batch, calibration("llama", seed=5)):
        after = logits(cut(model, kept, weights=weights), text)
        assert (after - logits(model, text))[text.attention_mask.bool()].abs().max() < 1e-4


def test_the_bias_takes_over_from_a_neuron_that_never_changes() -> None:
    model, batch = FAMILIES["gpt2"].build(), calibration("gpt2")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "c_fc.weight" in name:
                weight[:, 9] = 0
            elif "c_fc.bias" in name:
                weight[9] = 3.0
    structure = structure_of(model)
    kept = without_unit(structure, 9)
    weights = refit(model, kept, [batch], structure=structure, target="local")
    assert set(weights) == {f"transformer.h.{block}.mlp.c_proj.{key}" for block in (0, 1) for key in ("weight", "bias")}
    assert (logits(cut(model, kept), batch) - logits(model, batch)).abs().max() > 1e-2
    after = logits(cut(model, kept, weights=weights), batch)
    assert torch.allclose(after, logits(model, batch), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "gptj", "gemma2", "granite", "mbart", "bert-classify"])
def test_what_was_solved_on_is_what_the_new_weights_compute(name: str) -> None:
    """The second half of the forward has the loss of the cut model with the new weights."""
    model, batch = FAMILIES[name].build(), calibration(name)
    structure = structure_of(model)
    units = half(model, structure, batch).units
    kept = Kept(units=units, layers=dict.fromkeys(structure.depths, (0,)))
    fit = module.Fit(model, kept, joined(model, [batch], 10**6), structure, anatomy=None, ridge=1e-2, target="global")
    found = fit.loss()
    assert found == pytest.approx(loss(cut(model, kept, weights=fit.weights), batch), rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("target", ["global", "local"])
def test_a_refit_lowers_the_loss_on_other_rows(target: Any) -> None:
    model = trained()
    structure, fresh = structure_of(model), counting(rows=64, seed=501)
    texts = [counting(rows=32, seed=500 + i) for i in range(3)]
    kept = half(model, structure, texts[0])
    weights = refit(model, kept, texts, structure=structure, target=target)
    plain, fitted = (loss(cut(model, kept, weights=w), fresh) for w in ({}, weights))
    whole = loss(model, fresh)
    assert whole < fitted < whole + 0.7 * (plain - whole)


@pytest.mark.parametrize("name", ["llama", "gptj", "granite", "bert"])
def test_later_blocks_make_up_for_one_that_is_gone(name: str) -> None:
    """The last states are nearer to the uncut model's than without a refit, in parallel and post-norm blocks, too."""
    model, batch = FAMILIES[name].build(), calibration(name, rows=40)
    structure = structure_of(model)
    kept = Kept(layers=dict.fromkeys(structure.depths, (1,)))
    weights = refit(model, kept, [batch], structure=structure)
    assert all(".1." in path for path in weights) and weights
    real = batch.attention_mask.bool()
    plain, fitted = (
        float((logits(cut(model, kept, weights=w), batch) - logits(model, batch))[real].norm()) for w in ({}, weights)
    )
    assert fitted < 0.8 * plain
    assert refit(model, kept, [batch], structure=structure, target="local") == {}


def test_padding_does_not_count() -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama")
    structure = structure_of(model)
    kept = half(model, structure, batch)
    other = replace(batch, input_ids=batch.input_ids.where(batch.attention_mask != 0, 50))
    first, second = (refit(model, kept, [b], structure=structure) for b in (batch, other))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


def test_batches_of_different_widths_are_one_text() -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama", rows=6, width=9)
    structure, narrow = structure_of(model), calibration("llama", rows=4, width=5, seed=1)
    whole = joined(model, [batch, narrow], 10**6)
    assert whole.input_ids.shape == (10, 9) and whole.lengths == batch.lengths + narrow.lengths
    assert whole.num_targets == batch.num_targets + narrow.num_targets
    assert len(joined(model, [batch, narrow], 60)) == 6
    kept = half(model, structure, batch)
    first, second = (
        refit(model, kept, [batch, narrow], structure=structure),
        refit(model, kept, [whole], structure=structure),
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_narrow_numbers_come_back_in_their_own_dtype() -> None:
    model, batch = FAMILIES["llama"].build().to(torch.bfloat16), calibration("llama")
    structure = structure_of(model)
    weights = refit(model, half(model, structure, batch), [batch], structure=structure)
    assert weights and all(value.dtype == torch.bfloat16 for value in weights.values())


def test_blocks_that_run_several_times_only_lose_inputs() -> None:
    model, batch = FAMILIES["albert"].build(), calibration("albert")
    structure = structure_of(model)
    kept = half(model, structure, batch)
    assert kept.units and refit(model, kept, [batch], structure=structure) == {}


def test_what_cannot_be_refitted() -> None:
    model = FAMILIES["llama"].build()
    structure = structure_of(model)
    with pytest.raises(BadData, match="there is no calibration text; give at least one row"):
        refit(model, Kept(), [], structure=structure)
    budwood.attach(model, budwood.LoRA(rank=2), name="own")
    with pytest.raises(WrongOrder, match="adapter 'own' is attached; merge or detach it, then refit"):
        refit(model, Kept(), [calibration("llama")], structure=structure)
