"""Scores by hand, and what is kept by them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForQuestionAnswering

from budwood.data import Batch
from budwood.errors import BadConfig, BadData
from budwood.prune.calibration import summed_loss
from budwood.prune.importance import Scores, importance, keep
from budwood.prune.kept import Sizes, Structure, Units
from budwood.prune.structure import structure_of
from calibrating import calibration
from families import FAMILIES, LLAMA, VOCABULARY

DOWN = "model.layers.1.mlp.down_proj"


def read_at(path: str, model: torch.nn.Module, batch: Batch) -> Tensor:
    """[B, T, in] what a linear reads."""
    read: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda module, args: read.append(args[0]))
    with torch.no_grad():
        model(**batch.inputs())
    handle.remove()
    return read[0]


def single(batch: Batch, row: int) -> Batch:
    """One row of a decoder's batch, without its padding."""
    length = batch.lengths[row]
    assert batch.labels is not None
    return replace(
        batch,
        input_ids=batch.input_ids[row : row + 1, :length],
        attention_mask=batch.attention_mask[row : row + 1, :length],
        labels=batch.labels[row : row + 1, :length],
        rows=(row,),
        lengths=(length,),
    )


@pytest.mark.parametrize("score", ["activation", "taylor", "random"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5", "bert-classify"])
def test_every_unit_block_and_channel_has_a_score(name: str, score: str) -> None:
    model = FAMILIES[name].build()
    structure = structure_of(model)
    scores = importance(model, [calibration(name)], structure=structure, score=score)  # type: ignore[arg-type]
    assert {path: len(found) for path, found in scores.units.items()} == {u.path: u.count for u in structure.units}
    assert {stack: len(found) for stack, found in scores.layers.items()} == dict(structure.depths)
    assert scores.channels.shape == (structure.hidden,)
    assert all(found.isfinite().all() and (found >= 0).all() for found in scores.units.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_neuron_that_is_always_zero_scores_lowest() -> None:
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        model.get_parameter("model.layers.1.mlp.up_proj.weight")[5] = 0
    structure = structure_of(model)
    for score in ("activation", "taylor"):
        scores = importance(model, [calibration("llama")], structure=structure, score=score)
        assert scores.units[DOWN][5] == 0 and int(scores.units[DOWN].argmin()) == 5
        assert 5 not in keep(structure, scores, Sizes(ffn=47)).units[DOWN]


def test_activation_and_influence_by_hand() -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama")
    found = importance(model, [batch], structure=structure_of(model))
    real = batch.attention_mask.bool()
    assert torch.allclose(found.units[DOWN], read_at(DOWN, model, batch)[real].abs().mean(dim=0), atol=1e-6)
    heads = read_at("model.layers.0.self_attn.o_proj", model, batch)[real].abs().mean(dim=0)  # [32]: 2 groups of 16
    assert torch.allclose(found.units["model.layers.0.self_attn.o_proj"], heads.view(2, 16).mean(dim=1), atol=1e-6)
    with torch.no_grad():
        states = model(**batch.inputs(), output_hidden_states=True).hidden_states
    first = 1 - torch.cosine_similarity(states[0][real], states[1][real], dim=-1).mean()
    assert found.layers["decoder"][0] == pytest.approx(float(first), abs=1e-6)


def test_taylor_by_hand() -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama")
    scores = importance(model, [batch], structure=structure_of(model), score="taylor")
    a = read_at(DOWN, model, batch).requires_grad_()
    handle = model.get_submodule(DOWN).register_forward_pre_hook(lambda module, args: (a,))
    (gradient,) = torch.autograd.grad(summed_loss(model, batch), a)
    handle.remove()
    expected = (a * gradient)[batch.attention_mask.bool()].abs().mean(dim=0)
    assert torch.allclose(scores.units[DOWN], expected, rtol=1e-4, atol=1e-9)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize("score", ["activation", "taylor"])
def test_padding_does_not_count(score: str) -> None:
    model, batch = FAMILIES["llama"].build(), calibration("llama", rows=3)
    structure = structure_of(model)
    together = importance(model, [batch], structure=structure, score=score)  # type: ignore[arg-type]
    alone = [single(batch, row) for row in range(3)]
    apart = importance(model, alone, structure=structure, score=score)  # type: ignore[arg-type]
    for path, found in together.units.items():
        assert torch.allclose(found, apart.units[path], rtol=1e-3, atol=1e-7)
    assert torch.allclose(together.layers["decoder"], apart.layers["decoder"], atol=1e-5)


def test_padding_of_what_is_written_does_not_count() -> None:
    model, batch = FAMILIES["t5"].build(), calibration("t5", rows=4)
    structure = structure_of(model)
    assert batch.labels is not None
    wider = replace(batch, labels=torch.nn.functional.pad(batch.labels, (0, 3), value=-100))
    found, again = (importance(model, [b], structure=structure).units for b in (batch, wider))
    assert all(torch.allclose(found[path], again[path], atol=1e-5) for path in found)


def test_random_scores_hang_on_the_seed_alone() -> None:
    model = FAMILIES["llama"].build()
    structure = structure_of(model)
    first, again, other = (importance(model, [], structure=structure, score="random", seed=s) for s in (0, 0, 1))
    assert torch.equal(first.units[DOWN], again.units[DOWN]) and not torch.equal(first.units[DOWN], other.units[DOWN])


def test_what_cannot_be_scored() -> None:
    model = FAMILIES["llama"].build()
    structure = structure_of(model)
    with pytest.raises(BadConfig, match="score is 'magnitude'; there are: activation, taylor, random"):
        importance(model, [], structure=structure, score="magnitude")  # type: ignore[arg-type]
    with pytest.raises(BadData, match="give at least one row with text"):
        importance(model, [], structure=structure)
    with pytest.raises(BadData, match="a batch without labels has no loss"):
        unlabelled = replace(calibration("llama"), labels=None)
        importance(model, [unlabelled], structure=structure, score="taylor")


STRUCTURE = Structure(
    depths={"decoder": 4},
    units=(
        Units(path="0.down", dimension="ffn", stack="decoder", layer=0, count=4),
        Units(path="0.o", dimension="heads", stack="decoder", layer=0, count=2, width=8),
    ),
    hidden=4,
)
SCORES = Scores(
    units={"0.down": torch.tensor([0.1, 0.4, 0.2, 0.3]), "0.o": torch.tensor([1.0, 2.0])},
    layers={"decoder": torch.tensor([0.0, 0.3, 0.9, 0.0])},
    channels=torch.tensor([3.0, 1.0, 1.0, 2.0]),
)


def test_the_highest_stay_and_the_ends_in_any_case() -> None:
    kept = keep(STRUCTURE, SCORES, Sizes(layers={"decoder": 3}, ffn=2, heads=1, hidden=3))
    assert kept.units == {"0.down": (1, 3), "0.o": (1,)}
    assert kept.layers == {"decoder": (0, 2, 3)}
    assert kept.channels == (0, 1, 3)  # of equal ones, the first
    nothing = keep(STRUCTURE, SCORES, Sizes())
    assert (nothing.units, nothing.layers, nothing.channels) == ({}, {}, None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (Sizes(ffn=5), "ffn of 0.down: 5 are to stay; give a number from 1 to 4"),
        (Sizes(heads=0), "heads of 0.o: 0 are to stay; give a number from 1 to 2"),
        (Sizes(layers={"decoder": 1}), "give a number from 2 to 4"),
        (Sizes(layers={"encoder": 2}), "there is no stack 'encoder'; there are: decoder"),
        (Sizes(hidden=9), "hidden: 9 are to stay; give a number from 1 to 4"),
    ],
)
def test_sizes_that_the_model_does_not_have(sizes: Sizes, message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        keep(STRUCTURE, SCORES, sizes)


def test_heads_that_share_a_table_are_the_same_in_every_block() -> None:
    model = FAMILIES["t5"].build()
    structure = structure_of(model)
    kept = keep(structure, importance(model, [calibration("t5")], structure=structure), Sizes(heads=2))
    assert structure.together
    for group in structure.together:
        assert len({kept.units[path] for path in group}) == 1


def test_a_dimension_that_cannot_be_cut() -> None:
    with pytest.raises(BadConfig, match="heads of this model cannot be cut: they are one"):
        keep(replace(STRUCTURE, refused={"heads": "they are one"}), SCORES, Sizes(heads=1))


def test_losses_of_spans_behind_some_rows() -> None:
    torch.manual_seed(0)
    sizes = {k: v for k, v in LLAMA.items() if k != "max_position_embeddings"}
    model = BertForQuestionAnswering(BertConfig(**sizes, vocab_size=VOCABULARY)).eval()
    batch = replace(calibration("bert", rows=4), labels=None, spans=torch.tensor([[0, 1], [1, 2], [2, 2], [0, 3]]))
    with torch.no_grad():
        losses = [float(summed_loss(model, batch, after=after)) for after in (0, 3, 4)]
    assert losses[0] > losses[1] > losses[2] == 0
    scores = importance(model, [batch], structure=structure_of(model), score="taylor")
    assert all(found.sum() > 0 for found in scores.units.values())
