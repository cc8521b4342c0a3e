from __future__ import annotations

from typing import Any

import pytest
import torch

from budwood.data import Example
from budwood.errors import BadConfig, BadData
from budwood.shrink import choose as chosen
from budwood.shrink.choose import Calibration, choose
from budwood.shrink.config import Shrinking
from families import FAMILIES
from training import PAD, rows


def calibration() -> Calibration:
    return Calibration.of(rows(16), rows(6, seed=1), PAD, batch=4)


def test_the_cheapest_is_taken_and_made_of_all_rows() -> None:
    model, said = FAMILIES["llama"].build(), []
    whole = model.num_parameters()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = choose(model, int(0.8 * whole), calibration(), Shrinking(to=0.8, cut=("ffn", "heads")), say=said.append)
    assert found is not None and found.model.num_parameters() <= 0.8 * whole
    assert found.what == min(found.candidates, key=lambda what: found.candidates[what]) and len(said) >= 2
    assert found.loss == chosen.evaluate_loss(found.model, calibration().judged).loss.value
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    own, theirs = ({p.data_ptr() for p in m.parameters()} for m in (model, found.model))
    assert not own & theirs


def test_chance_is_seeded() -> None:
    model, settings = FAMILIES["llama"].build(), Shrinking(to=0.8, cut=("ffn",), score="random", ridge=-1)
    made = [choose(model, int(0.8 * model.num_parameters()), calibration(), settings, seed=n) for n in (0, 0, 1)]
    one, same, other = (found.model.model.layers[0].mlp.down_proj.weight for found in made if found)
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_what_cannot_be_had_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said, cut = FAMILIES["llama"].build(), [], chosen.cut

    def refusing(model: Any, kept: Any, **more: Any) -> Any:
        if any(len(kept.units.get(path, "1234")) == 1 for path in kept.units if path.endswith("o_proj")):
            raise BadConfig("no such class")
        return cut(model, kept, **more)

    monkeypatch.setattr(chosen, "cut", refusing)
    target, settings = int(0.8 * model.num_parameters()), Shrinking(to=0.8, cut=("ffn", "heads"))
    found = choose(model, target, calibration(), settings, say=said.append)
    assert found is not None and "heads" not in found.what
    assert any("cannot be had: no such class" in line for line in said)


def test_nothing_is_left_to_cut() -> None:
    model = FAMILIES["llama"].build()
    assert choose(model, 1, calibration(), Shrinking(to=0.5, cut=("layers",))) is None  # two blocks always stay


def test_too_few_rows() -> None:
    few: list[Example] = rows(7)
    with pytest.raises(BadData, match="7 training rows are too few .* give at least 8, better some hundred"):
        Calibration.of(few, few, PAD, batch=4)
