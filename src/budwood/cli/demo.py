"""`budwood demo`: methods compared on a small model and small data, in a few minutes; it opens with which to use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from budwood.cli.compare import jobs, tell, told
from budwood.cli.options import Talk
from budwood.cli.output import Sink, Table

if TYPE_CHECKING:
    from budwood.compare.compared import Compared

SETTINGS: dict[str, object] = {
    "model": "demo-encoder", "data": "demo-questions", "batch": 16, "test_rows": 400, "eval_every": 0, "samples": 1,
    "method": ("lora", "adapter-h", "adapter-p", "ia3", "bitfit", "last-layers", "full"),
}  # fmt: skip
"""What the demo compares: demo-encoder is small enough for seven methods, with rates searched, on two cores."""
BUDGET = "120steps"
WHAT = "The demo teaches a small text encoder to tell what a question is about, in seven ways, and compares them."


def demo(*, budget: str = BUDGET, out: Path | None = None, offline: bool = False, talk: Talk | None = None) -> int:
    """Compare seven methods on a small model and small data in a few minutes, and see which to use.

    Parameters
    ----------
    budget: str
        How long each method is trained: 1m, 120steps or 3epochs. [120steps]
    out: Path
        Folder of the comparison; one that is there is gone on with. [runs/DATE-compare-demo-encoder]
    offline: bool
        Never use the network; the demo assets must be in the cache, or in the folders of BUDWOOD_WHEELS.
    """
    sink = (talk or Talk()).sink()
    sink.say(WHAT)
    sink.say()
    job, wanted = jobs({**SETTINGS, "budget": budget, "offline": offline, **({"out": str(out)} if out else {})})
    compared = told(job, wanted, sink)
    sink.say()
    tell(compared, sink)
    _next(compared, sink)
    return 0


def _next(compared: Compared, sink: Sink) -> None:
    """What to type."""
    label = compared.recommend().label
    item = next((one for one in compared.record.items if one.label == label), None)
    rows = [] if item is None else [(f"budwood try {compared.folder.run(item).path}", "ask what was recommended")]
    sink.head("what to type next")
    sink.tell(Table(("", ""), [
        *rows,
        ("budwood methods", "other methods than these"),
        ("budwood data show YOURS.csv", "look at data of yours"),
        ("budwood compare demo-encoder YOURS.csv", "compare methods on it"),
        ("budwood train demo-lm YOURS.jsonl", "teach a small chat model to answer as yours do"),
    ]))  # fmt: skip
