"""The verbs and the one entry point. A verb's module is imported when it is typed, its heavy parts when it runs."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from types import FrameType

from cyclopts import App, Group, Parameter

from budwood.cli.failures import Terminated, report
from budwood.cli.options import COMMAND
from budwood.cli.output import Level, Sink

TRAIN, USE, LOOK = (Group(name, sort_key=place) for place, name in enumerate(("Train", "Use what was trained", "Look")))


@dataclass(frozen=True)
class Verb:
    """One word after `budwood`."""

    where: str
    """Module and name under budwood.cli."""
    group: Group
    """The heading it stands under."""
    help: str
    """One line."""
    example: str = ""
    """What one would type."""


VERBS: dict[str, Verb] = {
    "demo": Verb("demo:demo", TRAIN, "Train a small model in a few minutes, and see what that changed."),
    "train": Verb(
        "train:train", TRAIN, "Train one method on one data set.",
        "budwood train demo-lm faq.jsonl --method lora:rank=16 --budget 10m\n"
        "Every key of a config file is a flag, too: --learning-rate 1e-4, --max-length 256, ... (docs/howto/cli.md).",
    ),
    "distill": Verb(
        "distill:distill", TRAIN, "Train a student on what a teacher says.",
        "budwood distill runs/big layers=0.5 reviews.csv --loss reverse-kl\n"
        "TEACHER is a run or a model; STUDENT a model, what to make of the teacher, or, for an adapter, self.\n"
        "The flags of train work, too, and those of docs/howto/distill.md.",
    ),
    "shrink": Verb(
        "shrink:shrink", TRAIN, "Make a model smaller in stages, and keep what holds.",
        "budwood shrink demo-lm reviews.csv --to 0.5 --min-quality 0.95\n"
        "MODEL is a model or a run. Also --to-params 80M, --latency 0.6, --tune, and others (docs/howto/shrink.md).",
    ),
    "compare": Verb(
        "compare:compare", TRAIN, "Train several methods on the same rows, and see which to use.",
        "budwood compare demo-lm faq.jsonl --method lora --method adapter-p --seeds 3\n"
        "--dry-run says how long it would take; --no-search tries no learning rates (docs/howto/compare.md).",
    ),
    "search": Verb(
        "search:search", TRAIN, "Find a method, its size and its learning rate within a given time, and train it.",
        "budwood search demo-encoder reviews.csv --budget 20m\n"
        "A method without fields is tried in several sizes. --dry-run says which candidates there are.",
    ),
    "eval": Verb(
        "evaluate:evaluate", USE, "Score a run or an adapter on held-out rows, beside its base.",
        "budwood eval latest test.jsonl",
    ),
    "try": Verb(
        "attempt:attempt", USE, "Answers before and after training, side by side.",
        "budwood try latest --prompt 'What is a GPU?'",
    ),
    "merge": Verb(
        "merge:merge", USE, "Fold an adapter into its base's weights, and check the result.",
        "budwood merge latest --out merged",
    ),
    "compose": Verb(
        "compose:compose", USE, "Merge several LoRA adapters into one.",
        "budwood compose style facts --how ties --out both",
    ),
    "export": Verb(
        "export:export", USE, "Write an adapter for other tools.", "budwood export latest --to peft --out adapter",
    ),
    "inspect": Verb(
        "inspect:inspect", LOOK, "What a model is made of, and what each method would train in it.",
        "budwood inspect demo-lm",
    ),
    "methods": Verb(
        "methods:methods", LOOK, "List the methods, or explain one: formula, paper, fields.",
        "budwood methods lora",
    ),
    "report": Verb(
        "report:report", LOOK, "Runs or a comparison as a page, a table, or a picture.",
        "budwood report runs/20261123-094512-compare-demo-lm --to html,md,csv,json,tex,png",
    ),
    "data": Verb("data:app", LOOK, "Show, check, clean and split data."),
    "runs": Verb("runs:app", LOOK, "List and show runs."),
    "assets": Verb("assets:app", LOOK, "List, fetch and remove the demo models and data."),
    "doctor": Verb("doctor:doctor", LOOK, "Check this machine: versions, memory, speed, disk, network."),
}  # fmt: skip
"""Every verb, in the order of the help."""

_QUIET_LIBRARIES = {
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def build() -> App:
    """The command line as a value."""
    app = App(
        name="budwood",
        help="Adapt pre-trained language models on the hardware people actually have.",
        help_epilogue="Start with `budwood demo`. `budwood VERB --help` explains a verb.",
        version=_version,
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(negative=(), show_default=False),
        group_commands=Group("Also", sort_key=9),
    )
    for place, (name, verb) in enumerate(VERBS.items()):
        example = {"help_epilogue": f"as in: {verb.example}"} if verb.example else {}
        app.command(f"budwood.cli.{verb.where}", name=name, help=verb.help, group=verb.group, sort_key=place, **example)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's own) and return its exit code; never raises."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    COMMAND.set(("budwood", *tokens))
    _prepare(tokens)
    logger = logging.getLogger("budwood")
    handlers = logger.handlers
    before = signal.signal(signal.SIGTERM, _terminate) if _in_main_thread() else None
    try:
        with warnings.catch_warnings():
            if argv is None and not sys.warnoptions and not _is_verbose(tokens):
                warnings.simplefilter("ignore")
            return _run(tokens)
    except BrokenPipeError:  # `budwood methods | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    finally:
        logger.handlers = handlers  # a verb listens to our modules while it runs
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _run(tokens: list[str]) -> int:
    try:
        outcome = build()(tokens, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        return report(error, _sink_of(tokens), verb=tokens[0] if tokens and tokens[0] in VERBS else "")


def _sink_of(tokens: Sequence[str]) -> Sink:
    """A sink for errors, also for command lines that could not be read."""
    level = Level.VERBOSE if _is_verbose(tokens) else Level.NORMAL
    return Sink(is_json="--json" in tokens, level=level)


def _is_verbose(tokens: Sequence[str]) -> bool:
    return "-v" in tokens or "--verbose" in tokens


def _prepare(tokens: Sequence[str]) -> None:
    """Keep libraries quiet, off telemetry and, with --offline, off the network; they read this when imported."""
    for name, value in _QUIET_LIBRARIES.items():
        os.environ.setdefault(name, value)
    if not _is_verbose(tokens):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if "--offline" in tokens:
        os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated("stopped by SIGTERM")


def _version() -> str:
    try:
        return f"budwood {version('budwood')}"
    except PackageNotFoundError:
        return "budwood, not installed"
