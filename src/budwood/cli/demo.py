"""`budwood demo`: the whole path once, on a small model and small data, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from budwood.cli.attempt import Answered, show
from budwood.cli.options import Talk
from budwood.cli.output import Sink, Table
from budwood.cli.runs import result_rows
from budwood.cli.train import job_of, run_told

if TYPE_CHECKING:
    from budwood.train.run import Run

SETTINGS: dict[str, object] = {
    "model": "demo-lm", "data": "demo-chat", "method": "lora", "batch": 8, "samples": 4, "eval_rows": 48,
}  # fmt: skip
"""What the demo trains."""
BUDGET = "50steps"
WHAT = "The demo trains LoRA, a small add-on, on a chat model of 135 million parameters, with 724 questions to answer."


def demo(
    *, budget: str = BUDGET, out: Path | None = None, offline: bool = False, force: bool = False,
    talk: Talk | None = None,
) -> int:  # fmt: skip
    """Train a small chat model in a few minutes, and see what that changed.

    Parameters
    ----------
    budget: str
        How long: 3m, 50steps or 1epochs. [50steps, some three minutes on two cores]
    out: Path
        Folder of the run. [runs/DATE-lora-demo-lm]
    offline: bool
        Never use the network; the demo assets must be in the cache, or in the folders of BUDWOOD_WHEELS.
    force: bool
        Replace the run that is in --out.
    """
    sink = (talk or Talk()).sink()
    sink.say(
        "The demo trains LoRA, a small add-on, on a 135-million-parameter chat model, with 724 questions and answers."
    )
    sink.say()
    settings = {**SETTINGS, "budget": budget, "offline": offline, **({"out": str(out)} if out else {})}
    run = run_told(job_of(settings, force=force), sink, shows_end=False)
    _tell(run, sink)
    return 0


def _tell(run: Run, sink: Sink) -> None:
    """Before and after, and what to type next."""
    result = run.result
    answers = answers_of(run)
    sink.head("before and after, on questions it was not trained on")
    for one in answers:
        show(one, sink)
    sink.head("what came out")
    sink.tell(Table(("", ""), result_rows(result)))
    sink.head("what to type next")
    sink.tell(Table(("", ""), [
        (f"budwood try {run.path}", "ask it something"),
        (f"budwood merge {run.path} --out merged", "make it a plain model"),
        ("budwood methods", "other methods than LoRA"),
        ("budwood data show YOURS.jsonl", "look at data of yours"),
        ("budwood train demo-lm YOURS.jsonl", "train on it"),
    ]))  # fmt: skip
    sink.result({
        "run": run.path, "result": result.to_dict() if result else None,
        "answers": [vars(one) for one in answers],
    })  # fmt: skip


def answers_of(run: Run) -> list[Answered]:
    """The prompts that the run's end answered, with base, now and the data's own answer."""
    return [
        Answered(sample["prompt"], sample["base"], sample["now"], sample.get("reference", ""))
        for sample in run.samples()
        if "reference" in sample
    ]
