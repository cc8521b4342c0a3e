"""Prompts and prefixes against the peers' own numbers: logits, gradients, generated tokens, and official networks.

Where a peer's way of driving a model differs, the tests drive ours in the same way and say so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
import budwood.core.inputs as inputs
from budwood.interop import load
from budwood.methods import PrefixTuning, PTuning
from budwood.methods.prefix import Prefix
from reference.prompt_fixtures import (
    SHARED,
    TRAINED,
    Fixture,
    fill,
    flat,
    joined,
    objective,
    prefix_network,
    prompt_network,
    without_positions,
)

pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the reference tensors are not beside this checkout")
FIXTURES = sorted(path.stem for path in SHARED.glob("*.pt") if not path.stem.startswith("official"))
CASES = ("right", "left", "nomask")
LOGITS = {"adapters_prefix_t5_flat": 2e-5}
"""Its own rounding: the same in float64 is 1.3e-5 from it."""


def loaded(fixture: Fixture, tmp_path: Path) -> nn.Module:
    model = fixture.model()
    load(model, fixture.folder(tmp_path), name="a")
    return model


def activate(model: nn.Module, fixture: Fixture, case: str) -> None:
    if fixture.name.startswith("peft_mpt"):
        rows = torch.tensor([0, 2, 1])[: len(fixture.data["cases"][case]["input_ids"])]
        core.activate(model, core.Tasks("a", rows))


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.detach(), expected.detach()
    return bool((found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max().item()))


def in_front(fixture: Fixture) -> int:
    """How many positions of the peer's logits are the prompt's."""
    expected, ids = fixture.data["logits"], fixture.data["input_ids"]
    return expected.shape[1] - ids.shape[1] if expected.dim() == 3 and "decoder_input_ids" not in fixture.data else 0


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIXTURES)
def test_logits(name: str, case: str, tmp_path: Path) -> None:
    fixture = Fixture.load(SHARED / f"{name}.pt")
    model = loaded(fixture, tmp_path)
    activate(model, fixture, case)
    with torch.no_grad():
        found = model(**fixture.inputs(case)).logits
    expected = fixture.data["cases"][case]["logits"][:, in_front(fixture) :]
    assert close(fixture.compared(case, found), fixture.compared(case, expected), LOGITS.get(name, 1e-5))


@pytest.mark.parametrize("name", [n for n in FIXTURES if any(w in n for w in ("gpt2", "llama", "t5", "bart"))])
def test_generated(name: str, tmp_path: Path) -> None:
    fixture = Fixture.load(SHARED / f"{name}.pt")
    model, data = loaded(fixture, tmp_path), fixture.data
    activate(model, fixture, "left")
    if in_front(fixture):
        without_positions(model)
    batch = {"input_ids": data["generate_input_ids"], "attention_mask": data["generate_attention_mask"]}
    found = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False)  # type: ignore[operator]
    assert torch.equal(found, data["generated"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [name for name in FIXTURES if "mam" not in name])  # those are in test_mixtures.py
def test_gradients(name: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fixture = Fixture.load(SHARED / f"{name}.pt")
    model = loaded(fixture, tmp_path)
    if in_front(fixture):  # the peer's objective is over these positions, too
        monkeypatch.setattr(inputs, "_cut", lambda entrance, states, count, text: states)
    expected = fixture.data["cases"][case]["grads"]
    with_network = _as_trained(model, fixture, expected)
    activate(model, fixture, case)
    objective(model(**fixture.inputs(case)).logits).backward()
    found = with_network or _plain(model, fixture, expected)
    checked = {key: value for key, value in expected.items() if "classifier" not in key}
    assert found.keys() == checked.keys()
    for key, gradient in checked.items():
        mine = joined(found[key], gradient=True) if key in with_network else found[key]
        assert (mine - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key
    for key, parameter in core.named_parameters(model, "a").items():
        if key.startswith("classifier."):
            gradient = next(g for k, g in expected.items() if k.replace(".modules_to_save.default", "").endswith(key))
            assert parameter.grad is not None
            assert (parameter.grad - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key


def _as_trained(model: nn.Module, fixture: Fixture, expected: dict[str, Tensor]) -> dict[str, Any]:
    """Parameters of the network that a prompt or prefix came out of, in its place; empty where there was none."""
    trained, adapter = fixture.data["trainable_parameters"], core.adapters(model)["a"]
    hidden = next((key for key in trained if key.startswith((f"{TRAINED}transform.0", f"{TRAINED}mlp_head.0"))), None)
    if hidden is None:
        return {}
    method: Prefix | PTuning
    if isinstance(adapter.method, Prefix):
        method, network = replace(adapter.method, width=len(trained[f"{TRAINED}transform.0.weight"])), prefix_network
    else:
        assert isinstance(adapter.method, PTuning)
        width = trained[f"{TRAINED}lstm_head.weight_hh_l0"].shape[1]
        method, network = replace(adapter.method, encoder="lstm", width=width), prompt_network
    core.detach(model, "a")
    core.attach(model, method, name="a")
    found = {f"{TRAINED}{key}": parameters for key, parameters in network(model, "a").items()}
    for key, parameters in found.items():
        fill(parameters, trained[key])
    own = core.named_parameters(model, "a")
    for key, value in trained.items():
        plain = key.removeprefix("base_model.").replace(".modules_to_save.default", "")
        if plain in own:
            fill(own[plain], value)
    return found


def _plain(model: nn.Module, fixture: Fixture, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of plain rows by the peer's names and in its shapes."""
    own = {key: p.grad for key, p in core.named_parameters(model, "a").items() if p.grad is not None}
    if "peft" not in fixture.data["peer"]:
        groups: dict[str, dict[str, Tensor]] = {}
        for key in [key for key in own if key.endswith(("PK", "PV"))]:
            crossed = "EncDecAttention" in key
            place = "cross_prefix" if crossed else "encoder_prefix" if key.startswith("encoder.") else "self_prefix"
            groups.setdefault(place, {})[key] = own[key]
        return {k: flat(rows).flatten() for place, rows in groups.items() for k in expected if f".{place}." in k}
    if fixture.config["peft_type"] == "PREFIX_TUNING":
        return {f"{TRAINED}embedding.weight": flat(own)}
    names = {"P": "embedding.weight", "U": "prefix_task_cols", "V": "prefix_task_rows"}
    letters = {key.rpartition(".")[2]: gradient for key, gradient in own.items()}
    return {f"{TRAINED}{names[letter]}": gradient for letter, gradient in letters.items() if letter in names}


# ------------------------------------------------------------------------------------------------- official networks
def official(name: str) -> tuple[Fixture, nn.Module]:
    """The fixture, and a model of the size it is for."""
    return Fixture.load(SHARED / f"{name}.pt"), Fixture.load(SHARED / "peft_prefix_gpt2.pt").model()


def test_official_prefix_network() -> None:
    """XiangLi's: L tensors (keys and values, batch, heads, P, width)."""
    fixture, model = (
        Fixture.load(SHARED / "official_prefix_gpt2.pt"),
        Fixture.load(SHARED / "peft_prefix_gpt2.pt").model(),
    )
    config, given = fixture.config, fixture.data["adapter_state_dict"]
    core.attach(model, PrefixTuning(length=config["preseqlen"], width=config["mid_dim"], init="random"), name="a")
    names = {"embedding.weight": "wte.weight"}
    own = {
        names.get(key, key.replace("transform", "control_trans")): found
        for key, found in prefix_network(model, "a").items()
    }
    for key, value in given.items():
        fill(own[key], value)
    adapter = core.adapters(model)["a"]
    rows = [core.delta_at(model, site, "a").plain() for site in adapter.sites]  # type: ignore[operator]
    outputs = fixture.data["output"]
    for pair, expected in zip(rows, outputs, strict=True):
        for found, side in zip(pair, expected, strict=True):
            assert close(found, side[0], 1e-6)
    sum(
        objective(torch.stack(pair).unsqueeze(1).expand_as(x)) for pair, x in zip(rows, outputs, strict=True)
    ).backward()  # type: ignore[union-attr]
    for key, gradient in fixture.data["grads"].items():
        assert (joined(own[key], gradient=True) - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key


def test_official_lama_network() -> None:
    """THUDM's: 9 pseudo tokens out of a BiLSTM of half the model's width."""
    fixture, model = (
        Fixture.load(SHARED / "official_ptuning_lama_encoder.pt"),
        Fixture.load(SHARED / "peft_prefix_gpt2.pt").model(),
    )
    core.attach(model, PTuning(length=sum(fixture.config["template"]), init="random"), name="a")
    own = prompt_network(model, "a")
    assert own.keys() == fixture.data["adapter_state_dict"].keys()
    for key, value in fixture.data["adapter_state_dict"].items():
        fill(own[key], value)
    (delta,) = [core.delta_at(model, site, "a") for site in core.adapters(model)["a"].sites]
    rows = delta.table()  # type: ignore[operator]
    assert close(rows, fixture.data["output"][0], 1e-6)
    objective(rows).backward()
    for key, gradient in fixture.data["grads"].items():
        assert (own[key].grad - gradient).abs().max() <= 1e-4 * gradient.abs().max(), key


def test_official_flat_prefix() -> None:
    """THUDM's P-Tuning v2 without a network: a table (1, P, 2 * layers * width)."""
    fixture, model = (
        Fixture.load(SHARED / "official_ptv2_encoder.pt"),
        Fixture.load(SHARED / "peft_prefix_gpt2.pt").model(),
    )
    core.attach(model, PrefixTuning(length=fixture.config["pre_seq_len"], width=None), name="a")
    own = core.named_parameters(model, "a")
    table = fixture.data["adapter_state_dict"]["embedding.weight"]
    layers, heads = fixture.config["num_hidden_layers"], next(iter(own.values())).shape[0]
    rows = table.view(len(table), 2 * layers, heads, -1).permute(1, 2, 0, 3)
    for parameter, value in zip(own.values(), rows, strict=True):
        fill(parameter, value)
    output = flat(own).unsqueeze(0)
    assert torch.equal(output, fixture.data["output"][0])
    objective(output).backward()
    gradients = flat({key: p.grad for key, p in own.items() if p.grad is not None})
    assert close(gradients, fixture.data["grads"]["embedding.weight"], 1e-6)
