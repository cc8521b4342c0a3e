from __future__ import annotations

import pytest
import torch

from budwood.data import collate
from budwood.errors import BadConfig, WrongOrder
from budwood.methods import Full, LoRA, Selective
from budwood.train.config import TrainConfig
from budwood.train.precision import arithmetic, bf16_gain, resolve_device, resolve_precision, store_compactly
from budwood.train.schedule import progress, rate_factor
from budwood.train.setup import prepare
from families import FAMILIES
from training import PAD, config, job, rows, tiny


def test_matrices_decay_and_vectors_do_not() -> None:
    run = job(method=Full(), weight_decay=0.3)
    decays = {id(p): group["weight_decay"] for group in run.prepared.optimizer.param_groups for p in group["params"]}
    assert decays.keys() == {id(p) for p in run.prepared.parameters.values()}
    assert all(decays[id(p)] == (0.3 if p.ndim >= 2 else 0.0) for p in run.prepared.parameters.values())


@pytest.mark.parametrize("method", [LoRA(), Full(), Selective(part="last-layers")], ids=lambda m: m.name)
def test_the_rate_is_the_methods_unless_said(method: LoRA | Full | Selective) -> None:
    assert job(method=method, learning_rate=None).prepared.learning_rate == method.rate
    assert job(method=method, learning_rate=0.5).prepared.learning_rate == 0.5


def test_full_fine_tuning_of_bf16_weights_keeps_float32_masters() -> None:
    model = tiny().to(torch.bfloat16)
    run = job(method=Full(), model=model, precision="bf16", budget="2steps")
    assert {p.dtype for p in run.prepared.parameters.values()} == {torch.float32}
    run.fit()
    assert all(torch.isfinite(torch.tensor(run.seen.losses)))


def test_adapters_on_bf16_weights_are_float32() -> None:
    run = job(method=LoRA(targets=("all",)), model=tiny().to(torch.bfloat16), precision="bf16", budget="3steps")
    run.fit()
    assert {p.dtype for p in run.prepared.parameters.values()} == {torch.float32}
    assert run.prepared.model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_exact_arithmetic_needs_exact_weights() -> None:
    with pytest.raises(BadConfig, match="weights are bfloat16; load it with dtype=torch.float32, or .*bf16"):
        job(model=tiny().to(torch.bfloat16), precision="exact")
    with pytest.raises(BadConfig, match="float16, which overflows"):
        job(model=tiny().to(torch.float16), precision="bf16")


def test_a_module_that_does_not_run_is_refused_by_name() -> None:
    model = tiny("bert-classify")
    model.classifier = Bypass(model.classifier)
    with pytest.raises((WrongOrder, BadConfig), match="classifier.inner"):
        prepare(model, LoRA(trained=("classifier.inner",)), config(), sample=collate(rows(2), PAD))


class Bypass(torch.nn.Module):
    """Uses the weight of a linear without calling it."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.inner.weight.T + self.inner.bias


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert-classify"])
def test_compact_storage_gives_the_same_numbers(family: str) -> None:
    """What autocast would round for each product is rounded once."""
    plain, compact = tiny(family), tiny(family)
    store_compactly(compact)
    batch = FAMILIES[family].batch()
    with torch.no_grad(), arithmetic(torch.device("cpu"), torch.bfloat16):
        assert torch.equal(plain(**batch).logits, compact(**batch).logits)
    kept = {n for n, p in compact.named_parameters() if p.dtype == torch.float32}
    assert any("embed" in n or "wte" in n for n in kept)
    assert all("norm" not in n.lower() or n in kept for n, _ in compact.named_parameters())
    assert len(kept) < len(dict(compact.named_parameters()))


def test_compact_storage_leaves_what_is_trained() -> None:
    model = tiny()
    store_compactly(model, trained=("model.layers.0.mlp.up_proj.weight",))
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float32
    assert model.model.layers[1].mlp.up_proj.weight.dtype == torch.bfloat16


def test_devices_and_precisions() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadConfig, match="torch sees 0 CUDA devices; use --device cpu"):
            resolve_device("cuda")
    cpu = torch.device("cpu")
    assert resolve_precision("exact", cpu) == torch.float32
    assert resolve_precision("bf16", cpu) == torch.bfloat16
    assert resolve_precision("auto", cpu) == (torch.bfloat16 if bf16_gain() >= 1.3 else torch.float32)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warm_up_and_decay(schedule: str) -> None:
    chosen = TrainConfig(schedule=schedule, warmup=0.1)
    budget = TrainConfig(budget="100steps").parsed_budget
    rates = [rate_factor(chosen, progress(budget, 100, step, 0.0), step, 100) for step in range(100)]
    assert 0 < rates[0] < rates[5] < rates[9] < 1.0 == max(rates) == rates[10]
    assert all(b <= a for a, b in zip(rates[10:], rates[11:], strict=False))
    assert all(rate > 0 for rate in rates)
    assert rates[-1] == 1.0 if schedule == "constant" else rates[-1] < 0.03


def test_warm_up_in_steps_and_in_time() -> None:
    steps = TrainConfig(warmup=4)
    assert [round(rate_factor(steps, s / 50, s, 50), 2) for s in range(5)] == [0.2, 0.4, 0.6, 0.8, 1.0]
    timed = TrainConfig(budget="10s", warmup=0.2)
    factors = [rate_factor(timed, progress(timed.parsed_budget, None, 0, t), 9, None) for t in (0, 1, 2, 6, 10)]
    assert 0 < factors[0] < factors[1] < factors[2] <= 1.0
    assert factors[2] > factors[3] > factors[4] > 0
    none = TrainConfig(warmup=0)
    assert rate_factor(none, 0.0, 0, 10) == 1.0
