"""Every trained tensor moves and nothing else does; what was saved is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from budwood.core import Method
from budwood.data import Example, collate
from budwood.errors import VerificationFailed
from budwood.interop import save
from budwood.methods import IA3, Full, LoRA, Selective
from budwood.train.material import base_copy
from budwood.train.verify import verify_merge, verify_reload
from training import PAD, Job, job, labelled, rows, tiny

METHODS = [
    *(LoRA(targets=("all",)), LoRA(dora=True), LoRA(init="pissa"), LoRA(targets=("embed",)), IA3(), Full()),
    *(Selective(part=part) for part in ("norms", "last-layers", "head")),
]


def held() -> list:
    return [collate(rows(4, seed=9), PAD), collate(rows(4, seed=10), PAD)]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_every_method_moves_all_it_trains_and_nothing_else(method: Method) -> None:
    run = job(method=method, budget="6steps")
    ledger = run.ledger()
    run.fit(ledger=ledger)
    assert ledger.movement is not None
    assert ledger.movement.steps == 4
    final = ledger.finish(6)
    assert final.moved == len(run.prepared.parameters)
    assert final.unmoved == {}
    assert final.frozen > 0 or method.name == "full"
    assert "moved" in str(final)


def test_classifiers_with_heads_move() -> None:
    run = job("bert-classify", method=LoRA(trained=("classifier", "pooler")), examples=labelled())
    ledger = run.ledger()
    run.fit(ledger=ledger)
    assert ledger.finish(6).unmoved == {}


def frozen_weight(run: Job) -> nn.Parameter:
    return run.prepared.model.model.layers[0].mlp.up_proj.weight


def test_a_frozen_tensor_that_changes_is_caught() -> None:
    run = job(method=LoRA())
    ledger = run.ledger()
    with torch.no_grad():
        frozen_weight(run)[0, 0] += 1e-6
    with pytest.raises(VerificationFailed, match="not trained changed .*model.layers.0.mlp.up_proj.weight") as failed:
        run.fit(ledger=ledger)
    assert failed.value.exit_code == 7


def test_a_tensor_left_out_of_the_optimizer_is_caught() -> None:
    run = job(method=LoRA())
    name = "model.layers.1.self_attn.q_proj.B"
    left_out = run.prepared.parameters[name]
    for group in run.prepared.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not left_out]
    with pytest.raises(VerificationFailed, match=f"{name}: it has a gradient .* but was not updated"):
        run.fit(ledger=run.ledger())


def test_a_tensor_whose_gradient_is_cut_off_is_caught() -> None:
    run = job(method=LoRA(targets=("mlp.down",)))
    run.prepared.model.model.layers[0].register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(VerificationFailed, match="layers.0.mlp.down_proj.*no gradient reached it"):
        run.fit(ledger=run.ledger())


def test_a_tensor_whose_gradient_is_zero_is_caught() -> None:
    run = job(method=LoRA(targets=("mlp.down",)))
    run.prepared.parameters["model.layers.0.mlp.down_proj.A"].register_hook(torch.zeros_like)
    with pytest.raises(VerificationFailed, match="layers.0.mlp.down_proj.A: its gradient is exactly zero"):
        run.fit(ledger=run.ledger())


def test_a_partner_that_starts_at_zero_needs_two_steps() -> None:
    run = job(method=LoRA(), budget="1steps")
    ledger = run.ledger()
    run.fit(ledger=ledger)
    movement = ledger.finish(1)
    assert set(movement.unmoved) == {n for n in run.prepared.parameters if n.endswith(".A")}
    assert "partner starts at zero" in str(movement)


def test_key_biases_cannot_move_for_a_reason() -> None:
    """Softmax does not see a shift of all keys: with exact arithmetic their gradient is zero."""
    run = job("bert-classify", method=Selective(part="bitfit"), examples=labelled())
    ledger = run.ledger()
    name = next(n for n in run.prepared.parameters if "key" in n)
    run.prepared.parameters[name].register_hook(torch.zeros_like)
    run.fit(ledger=ledger)
    assert "shift of all keys" in ledger.finish(6).unmoved[name]
    other = next(n for n in run.prepared.parameters if "query" in n)
    again = job("bert-classify", method=Selective(part="bitfit"), examples=labelled())
    again.prepared.parameters[other].register_hook(torch.zeros_like)
    with pytest.raises(VerificationFailed, match="exactly zero"):
        again.fit(ledger=again.ledger())


class Extra(nn.Module):
    """A table that is looked up only for tokens above 90, and a layer that nobody calls."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.table = nn.Embedding(4, 32)
        self.idle = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(ids) + 0.1 * self.table((ids - 90).clamp(min=0)) * (ids > 90).unsqueeze(-1)


def test_rows_never_looked_up_and_layers_never_called_are_told_apart() -> None:
    model = tiny()
    model.model.embed_tokens = Extra(model.model.embed_tokens)
    model.model.embed_tokens.table.padding_idx = 0
    model.get_input_embeddings = lambda: model.model.embed_tokens.layer
    low = [Example(ids=[i % 80 + 4 for i in e.ids], labels=e.labels, row=e.row) for e in rows()]
    run = job(model=model, method=Full(), examples=low, weight_decay=0.0)
    ledger = run.ledger()
    run.fit(ledger=ledger)
    unmoved = ledger.finish(6).unmoved
    assert unmoved["model.embed_tokens.table.weight"] == "none of its rows was looked up"
    assert unmoved["model.embed_tokens.idle.weight"] == "the model's forward does not use it"
    assert len(unmoved) == 3


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_saved_adapter_gives_the_same_logits_in_a_fresh_base(tmp_path: Path, method: Method) -> None:
    run = job(method=method, budget="6steps")
    run.fit()
    save(run.prepared.model, tmp_path, name="default")
    fresh = base_copy(run.prepared.model)
    before = {name: tensor.clone() for name, tensor in tiny().state_dict().items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
    report = verify_reload(run.prepared.model, fresh, tmp_path, name="default", batches=held(), compute=torch.float32)
    assert report.rows == 8
    assert report.largest_difference == 0.0
    assert report.effect > 1e-4


def test_an_adapter_that_was_saved_wrong_is_caught(tmp_path: Path) -> None:
    run = job(budget="6steps")
    run.fit()
    save(run.prepared.model, tmp_path, name="default")
    with torch.no_grad():
        run.prepared.parameters["model.layers.0.mlp.up_proj.B"][3, 1] += 0.5
    with pytest.raises(VerificationFailed, match=r"differ by up to 0\.\d+") as failed:
        verify_reload(
            run.prepared.model, base_copy(run.prepared.model), tmp_path, name="default", batches=held(),
            compute=torch.float32,
        )  # fmt: skip
    assert failed.value.exit_code == 7


def test_an_inert_adapter_is_caught(tmp_path: Path) -> None:
    run = job()
    save(run.prepared.model, tmp_path, name="default")
    fresh = base_copy(run.prepared.model)
    with pytest.raises(VerificationFailed, match="has no effect"):
        verify_reload(run.prepared.model, fresh, tmp_path, name="default", batches=held(), compute=torch.float32)


def test_a_merge_says_what_it_changes_and_what_the_target_type_loses() -> None:
    run = job(budget="8steps", learning_rate=1e-4)
    run.fit()
    adapted = base_copy(run.prepared.model)
    report = verify_merge(run.prepared.model, names=("default",), batches=held(), dtype=torch.bfloat16)
    assert report.largest_difference < 1e-5 * max(1.0, report.largest_logit)
    assert report.dtype == "bfloat16"
    assert report.update_lost > 0.3, "an update this small mostly falls between bfloat16's steps"
    assert report.stored_difference > report.largest_difference
    assert 0.9 < report.same_choice <= 1.0
    assert "of the update is lost to rounding" in str(report)
    merged = dict(run.prepared.model.named_parameters())
    assert set(merged) == set(dict(adapted.named_parameters()))
    weight = merged["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(weight, weight.bfloat16().float())


def test_a_merge_in_float32_loses_nothing() -> None:
    run = job(budget="8steps")
    run.fit()
    report = verify_merge(run.prepared.model, names=("default",), batches=held(), dtype=torch.float32)
    assert report.update_lost == 0.0
    assert report.same_choice == 1.0


def test_a_wrong_merge_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from budwood.methods.lora import LoRADelta

    run = job(budget="8steps")
    run.fit()
    right = LoRADelta.fold

    def wrong(self: LoRADelta, base: nn.Module) -> dict:
        return {key: value * 1.01 for key, value in right(self, base).items()}

    monkeypatch.setattr(LoRADelta, "fold", wrong)
    with pytest.raises(VerificationFailed, match="merged model is not the adapted one.*differ by up to"):
        verify_merge(run.prepared.model, names=("default",), batches=held())
