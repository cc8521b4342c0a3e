"""Learning rates that are tried before a run: what is chosen, what it costs, and that it leaves no trace."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from budwood.data import Position
from budwood.errors import BadCheckpoint, Diverged, OutOfMemory
from budwood.methods import LoRA
from budwood.records import RateProbe, RateTrial
from budwood.train.checkpoint import Standing
from budwood.train.config import TrainConfig
from budwood.train.loop import fit
from budwood.train.randomness import random_state
from budwood.train.rates import RatePlan, plan_rates, try_rates
from training import Job, job, labelled, rows


class Sensitive(LoRA):
    rates: ClassVar[tuple[float, ...]] = (1e-4, 1e-2, 1e3)
    rates_why: ClassVar[str] = "it is made up"


SENSITIVE = Sensitive(rank=4, dropout=0.2, targets=("all",))
PLAN = RatePlan(rates=(1e-4, 1e-2, 1e3), steps=6)


def tried(run: Job, plan: RatePlan = PLAN, **more: object) -> RateProbe:
    return try_rates(run.prepared, run.objective, run.feed, run.config, plan, **more)  # type: ignore[arg-type]


def everything(run: Job) -> dict[str, Tensor]:
    model = run.prepared.model
    kept = {**dict(model.named_parameters()), **dict(model.named_buffers()), **random_state().tensors}
    return {name: tensor.detach().clone() for name, tensor in kept.items()}


@pytest.mark.parametrize(
    ("settings", "total", "steps"),
    [
        ({}, 10_000, 20),
        ({"rate_steps": 12}, 10_000, 12),
        ({}, 480, 16),  # a tenth of the run, over three rates
        ({}, 100, 13),  # the small constant
        ({}, 36, 9),  # a quarter of a short run
        ({}, 12, None),
        ({"rate_steps": 0}, 10_000, None),
        ({"learning_rate": 1e-3}, 10_000, None),
    ],
)
def test_cost_is_bounded(settings: dict[str, float], total: int, steps: int | None) -> None:
    plan = plan_rates(SENSITIVE, TrainConfig(**settings), total_steps=total)  # type: ignore[arg-type]
    assert plan == (None if steps is None else RatePlan(rates=(1e-4, 1e-2, 1e3), steps=steps))
    assert steps is None or 3 * steps <= max(40, total / 10)


def test_a_method_that_names_no_rates_tries_none() -> None:
    assert plan_rates(LoRA(), TrainConfig(), total_steps=1e6) is None


@pytest.mark.parametrize("examples", [rows(40), labelled(40)], ids=["causal-lm", "classification"])
def test_the_best_rate_wins(examples: list) -> None:
    run = job("llama" if examples[0].label is None else "bert-classify", method=SENSITIVE, examples=examples[:30])
    probe = tried(run, held=examples[30:])
    assert probe.rate == 1e-2
    assert [trial.rate for trial in probe.trials] == [1e-4, 1e-2, 1e3]
    low, best, high = (trial.loss for trial in probe.trials)
    assert low is not None
    assert best is not None
    assert best < low
    assert high is None or high > low
    assert probe.scored == "10 validation rows"
    assert not probe.is_end


def test_the_losses_are_those_of_the_run_at_that_rate() -> None:
    """Steps at a constant rate after three of warm-up, as `fit` takes them, then the mean over held-out targets."""
    held = rows(10, seed=5)
    probe = tried(job(method=SENSITIVE), RatePlan(rates=(3e-3, 1e-2), steps=6), held=held)
    for trial in probe.trials:
        same = job(method=SENSITIVE, budget="6steps", warmup=2, schedule="constant", learning_rate=trial.rate)
        same.fit()
        feed = replace(same.feed, examples=held)
        with torch.no_grad():
            losses = [same.objective(same.prepared.model, feed.batch([row])) for row in range(10)]
        mean = sum(loss.total.item() for loss in losses) / sum(loss.tokens for loss in losses)
        assert trial.loss == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("precision", ["exact", "bf16"])
def test_nothing_is_left_of_it(precision: str) -> None:
    settings = {"method": SENSITIVE, "precision": precision, "accumulate": 2, "budget": "8steps"}
    run, plain = (job(**settings, learning_rate=rate) for rate in (None, 3e-2))
    run.prepared.model.eval()
    run.prepared.model.model.layers[0].train()
    modes = [module.training for module in run.prepared.model.modules()]
    before = everything(run)
    probe = tried(run, RatePlan(rates=(1e-4, 3e-2, 1e3), steps=10), held=rows())
    assert probe.rate == 3e-2
    after = everything(run)
    assert all(torch.equal(before[name], after[name]) for name in {*before, *after})
    assert [module.training for module in run.prepared.model.modules()] == modes
    assert all(p.grad is None for p in run.prepared.parameters.values())
    assert not run.prepared.optimizer.state
    run.prepared = replace(run.prepared, learning_rate=probe.rate)
    fit(run.prepared, run.objective, run.feed, run.config, observer=run.seen)
    plain.fit()
    assert run.seen.losses == plain.seen.losses
    ours, theirs = everything(run), everything(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in {*ours, *theirs})


def test_a_buffer_that_steps_change_is_put_back() -> None:
    run = job(method=SENSITIVE)
    run.prepared.model.register_buffer("seen", torch.zeros(()))

    def counting(module: object, args: object, output: object) -> None:
        run.prepared.model.seen += 1.0

    run.prepared.model.model.norm.register_forward_hook(counting)
    tried(run)
    assert run.prepared.model.seen.item() == 0.0


def test_rates_that_diverge_lose_and_are_told() -> None:
    probe = tried(job(method=SENSITIVE), RatePlan(rates=(3e-2, 1e30), steps=10), held=rows())
    assert probe.rate == 3e-2
    assert probe.trials[1].loss is None
    assert "nan" in (probe.trials[1].error or "")
    assert f"0.03 {probe.trials[0].loss:.4g}, 1e+30 diverged; 10 steps each; the lowest tried" in str(probe)


def test_where_all_diverge_the_run_stops() -> None:
    run = job(method=SENSITIVE)
    before = everything(run)
    with pytest.raises(Diverged, match=r"none of the learning rates 1e\+29, 1e\+30 .* 4 steps: at 1e\+29, the .*nan"):
        tried(run, RatePlan(rates=(1e29, 1e30), steps=4), held=rows(8, seed=5))
    after = everything(run)
    assert all(torch.equal(before[name], after[name]) for name in {*before, *after})


@pytest.mark.parametrize(
    ("before", "losses", "rate", "is_clear"),
    [
        (2.0, (1.5, 1.5, 1.7), 1e-4, True),  # a tie
        (2.0, (1.999, 1.995, 1.992), 3e-3, False),  # none learned yet
        (2.0, (2.2, 2.3, float("inf")), 3e-3, False),
        (2.0, (2.2, float("inf"), float("inf")), 1e-4, True),  # but where its own rate may diverge
    ],
)
def test_the_lowest_loss_wins_if_it_says_anything(
    monkeypatch: pytest.MonkeyPatch, before: float, losses: tuple[float, ...], rate: float, is_clear: bool
) -> None:
    scores = iter((before, *losses))
    monkeypatch.setattr("budwood.train.rates._score", lambda *words: next(scores))
    own = 3e-3 if before > losses[0] or losses[1] < 3 else 1.0
    run = job(method=SENSITIVE, learning_rate=own)
    probe = tried(run)
    assert (probe.rate, probe.is_clear, probe.before) == (rate, is_clear, before)
    assert ("none is clearly below the 2 of the start, so it is the method's own" in str(probe)) != is_clear


def test_without_held_out_rows_others_of_the_training_rows_are_scored() -> None:
    run = job(method=SENSITIVE, examples=rows(40), batch=4)
    seen = {row for _, step in zip(range(6), run.feed.steps(Position()), strict=False) for row in step[1]}
    assert tried(run).scored == f"{40 - len(seen)} training rows that the steps did not see"
    assert tried(job(method=SENSITIVE, examples=rows(8), batch=4)).scored == "8 training rows"


def test_memory_that_runs_out_is_met_as_in_a_run() -> None:
    run, roomy = (job(method=replace(SENSITIVE, dropout=0.0), batch=8) for _ in range(2))

    def greedy(module: object, args: tuple[Tensor, ...], output: object) -> None:
        if torch.is_grad_enabled() and args[0].shape[0] > 2:
            raise MemoryError

    handle = run.prepared.model.model.embed_tokens.register_forward_hook(greedy)
    losses = [trial.loss for trial in tried(run, start=Standing(pieces=2)).trials[:2]]
    assert losses == pytest.approx([trial.loss for trial in tried(roomy).trials[:2]], rel=1e-4)
    handle.remove()

    def full(module: object, args: object, output: object) -> None:
        if torch.is_grad_enabled():
            raise MemoryError

    run.prepared.model.model.embed_tokens.register_forward_hook(full)
    with pytest.raises(OutOfMemory, match="step 1 does not fit"):
        tried(run)


def test_what_is_told() -> None:
    trials = tuple(RateTrial(rate=r, loss=loss) for r, loss in ((0.003, 2.91), (0.01, 2.4), (0.03, 2.22), (0.1, None)))
    probe = RateProbe(
        rate=0.03, trials=trials, steps=20, scored="64 validation rows", seconds=1.0, before=3.0, is_clear=True
    )
    assert str(probe) == "0.03 (probed 0.003 2.91, 0.01 2.4, 0.03 2.22, 0.1 diverged; 20 steps each)"
    assert "the highest tried, a better one may lie beyond" in str(replace(probe, trials=trials[:3]))
    assert RateProbe.from_dict(asdict(probe), where="run.json") == probe


@pytest.mark.parametrize("damage", [{"rate": "x"}, {"rate": -1.0}, {"trials": []}, {"trials": 3}, {"trial": []}])
def test_a_damaged_record_is_refused(damage: dict[str, object]) -> None:
    probe = RateProbe(
        rate=0.1,
        trials=(RateTrial(rate=0.1, loss=1.0),),
        steps=4,
        scored="4 rows",
        seconds=1.0,
        before=1.0,
        is_clear=True,
    )
    with pytest.raises(BadCheckpoint, match=r"run.json does not say which learning rates were tried .* run again"):
        RateProbe.from_dict({**asdict(probe), **damage}, where="run.json")


TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from training import job, rows
from budwood.methods import LoRA
from budwood.train.rates import RatePlan, try_rates
run = job(method=LoRA(rank=4, targets=("all",)), batch=8)
plan = RatePlan(rates=(1e-4, 1e-2, 1e30), steps=6)
probe = try_rates(run.prepared, run.objective, run.feed, run.config, plan, held=rows(8, seed=5))
print(f"rank {probe.rate} {[t.loss and round(t.loss, 4) for t in probe.trials]}\\n", end="", flush=True)
"""


@pytest.mark.slow
def test_processes_agree(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), str(Path(__file__).parents[2])],
        capture_output=True, text=True, env=environment, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if line.startswith("rank")]
    alone = tried(
        job(method=LoRA(rank=4, targets=("all",)), batch=8),
        RatePlan(rates=(1e-4, 1e-2, 1e30), steps=6),
        held=rows(8, seed=5),
    )
    losses = [trial.loss and round(trial.loss, 4) for trial in alone.trials]
    assert said == [f"rank {alone.rate} {losses}"] * 2
