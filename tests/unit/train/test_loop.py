"""What `fit` promises: exact accumulation, exact resume, and an orderly end whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from budwood.core import Method, attach, named_parameters
from budwood.data import Position
from budwood.errors import BadCheckpoint, BadConfig, Diverged, OutOfMemory
from budwood.methods import AdapterP, Full, Fusion, LoRA, Selective
from budwood.train.checkpoint import Standing, load_state, save_state
from budwood.train.interrupt import Interrupted
from budwood.train.observer import StepPoint
from budwood.train.step import gradients
from training import Job, job, labelled, rows, tiny

PLAIN = LoRA(rank=4, targets=("all",))


def tensors(done: Job) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in named_parameters(done.prepared.model, "default").items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_what_a_method_adds_to_the_loss_is_in_the_gradient(pull: float) -> None:
    """A fusion pulls W_V towards the identity: with a large weight it stays closer to it, from the first step on."""
    model = tiny()
    for name in ("a", "b"):
        attach(model, AdapterP(size=4, init="bert"), name=name)
    run = job(method=Fusion(of=("a", "b"), regularization=pull), model=model, budget="1steps", clip=0.0)
    keys = [key for key in run.prepared.parameters if key.endswith("W_V")]
    with torch.no_grad():
        for key in keys:
            run.prepared.parameters[key].add_(0.1)
    standing = Standing(pieces=1)
    gradients(run.prepared, run.objective, run.feed, range(4), standing, run.seen)
    for key in keys:
        weight = run.prepared.parameters[key]
        pulled = 2 * pull * (weight - torch.eye(weight.shape[0]))
        assert weight.grad is not None
        rest = weight.grad - pulled.detach()
        assert rest.abs().max() < 0.2  # of the data alone
        assert pull == 0 or weight.grad.abs().min() > 0.05


@pytest.mark.parametrize(
    ("method", "share"), [(PLAIN, 0.8), (Full(), 0.8), (Selective(), 0.99)], ids=["lora", "full", "norms"]
)
def test_the_loss_falls(method: Method, share: float) -> None:
    run = job(method=method, budget="25steps", batch=8)
    run.fit()
    assert sum(run.seen.losses[-5:]) < share * sum(run.seen.losses[:5])


def test_a_classifier_learns() -> None:
    run = job("bert-classify", method=PLAIN, examples=labelled(40), budget="40steps", batch=8)
    run.fit()
    assert sum(run.seen.losses[-5:]) < 0.5 * sum(run.seen.losses[:5])


@pytest.mark.parametrize("examples", [rows(32), labelled(32)], ids=["causal-lm", "classification"])
@pytest.mark.parametrize("pieces", [2, 5, 32])
def test_one_batch_of_32_is_32_batches_of_one(pieces: int, examples: list) -> None:
    family = "llama" if examples[0].label is None else "llama-classify"
    settings = {"method": PLAIN, "examples": examples, "batch": 32, "budget": "3steps"}
    whole, parts = job(family, **settings), job(family, **settings, accumulate=pieces)
    whole.fit()
    parts.fit()
    assert whole.seen.losses == pytest.approx(parts.seen.losses, rel=1e-5)
    assert [p.grad_norm for p in whole.seen.points] == pytest.approx([p.grad_norm for p in parts.seen.points], rel=1e-4)
    assert [p.learned_tokens for p in whole.seen.points] == [p.learned_tokens for p in parts.seen.points]


def test_gradient_of_a_step_is_that_of_the_plain_mean() -> None:
    """Against a loss computed the obvious way, on rows whose numbers of targets differ."""
    run = job(method=PLAIN, batch=8, accumulate=8, budget="1steps", clip=0.0)
    reference = job(method=PLAIN, batch=8, budget="1steps")
    _, indices = next(reference.feed.steps(Position()))
    batch = reference.feed.batch(indices)
    assert batch.labels is not None
    out = reference.prepared.model(**batch.inputs()).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(out.flatten(0, 1), batch.labels[:, 1:].flatten())
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in reference.prepared.parameters.values() if p.grad is not None])
    run.fit()
    assert run.seen.losses[0] == pytest.approx(loss.item(), rel=1e-6)
    assert run.seen.points[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)


@pytest.mark.parametrize("method", [LoRA(rank=4, dropout=0.3, targets=("all",)), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("stop_after", [1, 3, 5, 8])
def test_resume_equals_the_uninterrupted_run_bit_for_bit(tmp_path: Path, stop_after: int, method: LoRA | Full) -> None:
    """5 steps an epoch: stops in the middle and at the end of one; dropout and model randomness are on."""
    precision = "bf16" if stop_after == 3 else "exact"
    settings = {"method": method, "budget": "2epochs", "batch": 4, "accumulate": 2, "precision": precision}
    whole = job(**settings)
    whole.fit()

    class Stop(type(whole.seen)):  # type: ignore[misc]
        def step(self, point: StepPoint) -> None:
            super().step(point)
            if point.step == stop_after:
                os.kill(os.getpid(), signal.SIGINT)

    first = job(**settings)
    first.seen = Stop()
    with pytest.raises(Interrupted):
        first.fit(state=tmp_path)
    torch.manual_seed(12345)
    rest = job(**settings)
    fitted = rest.fit(state=tmp_path, resume=True)
    assert len(first.seen.losses) == stop_after
    assert first.seen.losses + rest.seen.losses == whole.seen.losses
    assert fitted.standing.step == 10
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, tensors(rest)[name]), name


def test_resume_after_the_end_does_nothing(tmp_path: Path) -> None:
    run = job()
    run.fit(state=tmp_path)
    again = job()
    fitted = again.fit(state=tmp_path, resume=True)
    assert again.seen.losses == []
    assert fitted.speed is None
    assert largest_difference(tensors(run), tensors(again)) == 0.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    run = job(budget="100steps")

    def killed(module: object, args: object, output: object) -> None:
        if len(run.seen.points) == 2:
            os.kill(os.getpid(), number)

    run.prepared.model.model.norm.register_forward_hook(killed)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="after step 3; go on with: budwood train --resume x") as stopped:
        run.fit(state=tmp_path)
    assert stopped.value.exit_code == code
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert len(run.seen.points) == 3
    assert (tmp_path / "state.json").exists()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] not enough memory: you tried"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory_halves_the_pieces_and_changes_nothing(error: Exception) -> None:
    plain = job(method=LoRA(rank=4, targets=("all",)), batch=8)
    plain.fit()
    run = job(method=LoRA(rank=4, targets=("all",)), batch=8)

    def greedy(module: object, args: tuple[Tensor, ...], output: object) -> None:
        if args[0].shape[0] > 2:
            raise error

    run.prepared.model.model.embed_tokens.register_forward_hook(greedy)
    fitted = run.fit()
    assert fitted.standing.pieces == 4
    assert "8 rows at a time" in run.seen.notes[0]
    assert "2 pieces instead of 1" in run.seen.notes[0]
    assert "4 pieces instead of 2" in run.seen.notes[1]
    assert run.seen.losses == pytest.approx(plain.seen.losses, rel=1e-5)


def test_out_of_memory_with_one_row_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    run = job(batch=4, budget="6steps")

    def greedy(module: object, args: object, output: object) -> None:
        if len(run.seen.points) == 2:
            raise MemoryError("DefaultCPUAllocator: not enough memory")

    run.prepared.model.model.norm.register_forward_hook(greedy)
    with pytest.raises(OutOfMemory, match="step 3 does not fit .* 1 rows at a time .*gradient_checkpointing") as failed:
        run.fit(state=tmp_path)
    assert failed.value.exit_code == 5
    rest = job(batch=4, budget="6steps")
    rest.fit(state=tmp_path, resume=True)
    assert [p.step for p in rest.seen.points] == [3, 4, 5, 6]


def test_other_errors_are_not_taken_for_memory() -> None:
    run = job()

    def broken(module: object, args: object, output: object) -> None:
        raise RuntimeError("shape mismatch")

    run.prepared.model.model.norm.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run.fit()


def test_nan_stops_names_the_row_and_the_module_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    examples = rows(20)
    poisoned = examples[7].ids[0]
    run = job(examples=examples, budget="2epochs", batch=4, save_every=1e-9, seed=1)

    def poison(module: object, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        bad = (args[0][:, 0] == poisoned) & (args[0].shape[1] >= len(examples[7].ids))
        return output.masked_fill(bad[:, None, None], float("nan"))

    run.prepared.model.model.embed_tokens.register_forward_hook(poison)
    with pytest.raises(Diverged, match=r"loss of step \d+ is nan, first in the output of model.embed_tokens") as failed:
        run.fit(state=tmp_path)
    assert failed.value.exit_code == 6
    assert "faq.jsonl, row 8" in str(failed.value)
    assert "learning_rate: 0.0025" in str(failed.value)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(run).values())
    steps = len(run.seen.points)
    assert steps > 0
    kept = job(examples=examples, budget="2epochs", batch=4, seed=1)
    standing = load_state(tmp_path, kept.prepared, identity={})
    assert standing.step == steps
    assert largest_difference(tensors(kept), tensors(run)) == 0.0


def test_an_infinite_gradient_stops_and_names_the_tensor() -> None:
    run = job(budget="3steps")
    parameter = run.prepared.parameters["model.layers.1.mlp.down_proj.B"]
    parameter.register_hook(lambda grad: grad * float("inf"))
    before = tensors(run)
    with pytest.raises(Diverged, match=r"gradient of step 1 is .*model.layers.1.mlp.down_proj.B.*faq.jsonl, row"):
        run.fit()
    assert largest_difference(before, tensors(run)) == 0.0


def test_validation_four_times_and_without_a_trace() -> None:
    plain = job(budget="8steps")
    plain.fit()
    run = job(budget="8steps")
    asked: list[int] = []

    def validate() -> list:
        asked.append(len(run.seen.points))
        torch.rand(10)
        return []

    run.fit(validate=validate)
    assert asked == [2, 4, 6]
    assert run.seen.losses == plain.seen.losses
    every = job(budget="8steps", eval_every=3)
    asked.clear()
    run = every
    every.fit(validate=validate)
    assert asked == [3, 6]


def test_a_time_budget_ends_on_time_and_resumes_with_what_is_left(tmp_path: Path) -> None:
    run = job(budget="0.3s")
    run.fit(state=tmp_path)
    assert run.seen.points[-1].total_steps is None
    assert 0.3 <= run.seen.points[-1].elapsed_s < 1.5
    assert run.seen.points[-1].progress == 1.0
    again = job(budget="0.3s")
    again.fit(state=tmp_path, resume=True)
    assert again.seen.points == []


def test_saves_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(
        "budwood.train.loop.save_state", lambda folder, p, standing, identity: saved.append(standing.step)
    )
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr("budwood.train.loop.time.monotonic", lambda: float(next(clock)))
    job(budget="7steps", save_every=10.0).fit(state=tmp_path)
    assert saved == [3, 6, 7]


def test_a_full_disk_in_passing_is_told_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = job(budget="3steps", save_every=1e-9)
    calls: list[int] = []

    def full(folder: Path, prepared: object, standing: object, identity: object) -> None:
        calls.append(1)
        if len(calls) < 3:
            raise BadConfig("cannot write: No space left on device")

    monkeypatch.setattr("budwood.train.loop.save_state", full)
    run.fit(state=tmp_path)
    assert len(run.seen.points) == 3
    assert "could not be saved" in run.seen.notes[0]
    assert "No space left" in run.seen.notes[0]


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "json", "field", "version"])
def test_a_damaged_state_is_refused_and_changes_nothing(tmp_path: Path, damage: str) -> None:
    job().fit(state=tmp_path)
    (file,) = tmp_path.glob("tensors-*.safetensors")
    plain = tmp_path / "state.json"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "flip":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "remove":
        file.unlink()
    elif damage == "json":
        plain.write_text(plain.read_text()[:-20])
    elif damage == "field":
        plain.write_text(plain.read_text().replace('"position"', '"positron"'))
    else:
        plain.write_text(plain.read_text().replace('"version": 1', '"version": 99'))
    run = job()
    before = tensors(run)
    with pytest.raises(BadCheckpoint, match=str(tmp_path)) as refused:
        run.fit(state=tmp_path, resume=True)
    assert refused.value.exit_code == 4
    assert largest_difference(before, tensors(run)) == 0.0


def test_a_state_of_another_method_or_data_is_refused(tmp_path: Path) -> None:
    first = job(method=LoRA(rank=4))
    save_state(tmp_path, first.prepared, first.fit().standing, identity={"data": "abc"})
    with pytest.raises(BadConfig, match="data was abc, now xyz"):
        load_state(tmp_path, first.prepared, identity={"data": "xyz"})
    with pytest.raises(BadCheckpoint, match="another model or method"):
        load_state(tmp_path, job(method=LoRA(rank=2)).prepared, identity={"data": "abc"})
    with pytest.raises(BadCheckpoint, match="no saved state"):
        load_state(tmp_path / "empty", first.prepared, identity={})


def test_a_crash_while_saving_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from budwood.train import checkpoint

    run = job()
    fitted = run.fit(state=tmp_path)

    def crash(path: Path, data: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_json", crash)
        with torch.no_grad():
            next(iter(run.prepared.parameters.values())).add_(1.0)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save_state(tmp_path, run.prepared, fitted.standing, identity={})
    again = job()
    assert checkpoint.load_state(tmp_path, again.prepared, identity={}) == fitted.standing
    checkpoint.save_state(tmp_path, again.prepared, fitted.standing, identity={})
    assert len(list(tmp_path.glob("tensors*"))) == 1


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadConfig, match="cannot write"):
        job(budget="1steps").fit(state=tmp_path / "file" / "state")


def test_gradient_checkpointing_gives_the_same_losses() -> None:
    plain, recomputed = job(budget="4steps"), job(budget="4steps", gradient_checkpointing=True)
    plain.fit()
    recomputed.fit()
    assert recomputed.seen.losses == pytest.approx(plain.seen.losses, rel=1e-6)


@pytest.mark.parametrize("method", [PLAIN, Full()], ids=["lora", "full"])
def test_bf16_trains_float32_parameters(method: LoRA | Full) -> None:
    model = job(method=method).prepared.model.to(torch.float32)
    run = job(method=method, precision="bf16", budget="25steps", batch=8)
    assert model is not run.prepared.model
    assert {p.dtype for p in run.prepared.parameters.values()} == {torch.float32}
    run.fit()
    state = run.prepared.optimizer.state
    assert {t.dtype for p in state.values() for t in p.values()} == {torch.float32}
    assert sum(run.seen.losses[-5:]) < 0.8 * sum(run.seen.losses[:5])
    exact = job(method=method, budget="1steps", batch=8)
    exact.fit()
    assert run.seen.losses[0] == pytest.approx(exact.seen.losses[0], rel=2e-2)
    assert run.seen.losses[0] != exact.seen.losses[0]


TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from training import job, LoRA
run = job(method=LoRA(rank=4, targets=("all",)), batch=8, accumulate=int(sys.argv[2]), budget="6steps")
run.fit()
if run.prepared.accelerator.is_main_process:
    print(run.prepared.accelerator.num_processes, *(f"{p.loss:.7f}/{p.grad_norm:.6f}" for p in run.seen.points))
"""


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 3])
def test_two_processes_equal_one(tmp_path: Path, pieces: int) -> None:
    (tmp_path / "two.py").write_text(TWO)
    tests = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two.py"), tests, str(pieces)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    world, *points = done.stdout.strip().splitlines()[-1].split()
    assert world == "2"
    alone = job(method=PLAIN, batch=8, budget="6steps")
    alone.fit()
    losses, norms = zip(*(map(float, point.split("/")) for point in points), strict=True)
    assert list(losses) == pytest.approx(alone.seen.losses, rel=1e-5)
    assert list(norms) == pytest.approx([p.grad_norm for p in alone.seen.points], rel=1e-4)
