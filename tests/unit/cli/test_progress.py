from __future__ import annotations

import io

from budwood.cli.output import Level, Sink
from budwood.cli.progress import Progress, one_line
from budwood.records import Score
from budwood.train.observer import Observer, StepPoint

from .test_output import Terminal


def point(step: int, *, total: int | None = 10, loss: float = 2.0) -> StepPoint:
    return StepPoint(
        step=step, total_steps=total, progress=step / 10, epoch=0.1, loss=loss, learning_rate=1e-3, grad_norm=1.0,
        tokens=100, learned_tokens=50, seconds=0.5, elapsed_s=0.5 * step,
    )  # fmt: skip


def score() -> Score:
    return Score(name="perplexity", value=3.71, low=3.0, high=4.0, n=9, unit="perplexity")


def run(progress: Progress, steps: int = 10) -> None:
    with progress.shown():
        for step in range(1, steps + 1):
            progress.step(point(step))


def test_plain_lines_come_every_ten_seconds_and_at_the_end() -> None:
    err = io.StringIO()
    clock = iter(range(0, 1000, 4))  # two looks a step when a line is said, one otherwise
    run(Progress(Sink(stderr=err), clock=lambda: float(next(clock)), peak_bytes=lambda: None))
    lines = err.getvalue().splitlines()
    assert 3 <= len(lines) < 10
    assert lines[0] == "step 1/10  10%  4.5 s left  loss 2.000  200 tokens/s"
    assert lines[-1] == "step 10/10  100%  5.0 s  loss 2.000  200 tokens/s"


def test_the_line_has_score_and_memory_against_prediction() -> None:
    progress = Progress(Sink(stderr=io.StringIO()), predicted_bytes=2**30, peak_bytes=lambda: 3 * 2**28)
    progress.step(point(1, total=None))
    progress.validation(1, [score()])
    line = progress.line(point(2, total=None))
    assert line.startswith("step 2  20%")
    assert line.endswith("held-out perplexity 3.71  200 tokens/s  768 MiB of 1.0 GiB predicted")


def test_loss_is_smoothed() -> None:
    progress = Progress(Sink(stderr=io.StringIO()))
    progress.step(point(1, loss=4.0))
    progress.step(point(2, loss=2.0))
    assert "loss 3.800" in progress.line(point(2))


def test_samples_show_base_and_now() -> None:
    err = io.StringIO()
    Progress(Sink(stderr=err)).sample({"prompt": "What is\na GPU?", "base": "No.", "now": "A chip."})
    assert err.getvalue().split() == ["asked", "What", "is", "a", "GPU?", "base", "No.", "now", "A", "chip."]


def test_answers_of_the_end_can_be_left_to_others() -> None:
    err = io.StringIO()
    progress = Progress(Sink(stderr=err), shows_end=False)
    progress.sample({"prompt": "p", "base": "b", "now": "n", "reference": "r"})
    assert err.getvalue() == ""
    progress.sample({"prompt": "p", "base": "b", "now": "n"})
    assert err.getvalue() != ""


def test_quiet_says_nothing() -> None:
    err = io.StringIO()
    progress = Progress(Sink(stderr=err, level=Level.QUIET))
    run(progress)
    progress.note("x")
    progress.validation(1, [score()])
    assert err.getvalue() == ""


def test_a_terminal_has_one_live_line_and_keeps_the_last() -> None:
    err = Terminal()
    progress = Progress(Sink(stderr=err), peak_bytes=lambda: None)
    run(progress)
    shown = err.getvalue()
    assert "step 10/10  100%  5.0 s  loss 2.000  200 tokens/s\n" in shown
    assert shown.count("\n") < 10


def test_it_is_an_observer() -> None:
    listener: Observer = Progress(Sink(stderr=io.StringIO()))
    assert listener


def test_one_line() -> None:
    assert one_line("a\n b") == "a b"
    assert one_line("x" * 100, 10) == "xxxxxxx..."
