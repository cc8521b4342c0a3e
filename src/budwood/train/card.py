"""The README.md of an adapter: what it is, what it was trained on, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from budwood.data import Task
from budwood.methods import method_to_dict
from budwood.records import Quality, RateProbe
from budwood.records.files import plain, write_text

if TYPE_CHECKING:
    from budwood.train.job import Job
    from budwood.train.material import Material
    from budwood.train.setup import Prepared

PIPELINES: Mapping[Task, str] = {
    "causal-lm": "text-generation",
    "classification": "text-classification",
    "masked-lm": "fill-mask",
    "seq2seq": "text2text-generation",
    "cloze": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
}
"""What the hub calls each task."""


def write_card(
    folder: Path,
    *,
    job: Job,
    material: Material,
    prepared: Prepared,
    scores: Sequence[Quality],
    proofs: Sequence[str],
    rates: RateProbe | None = None,
) -> Path:
    """Write README.md and return its path."""
    method = method_to_dict(job.method)
    ref = material.source.ref
    front = {
        "base_model": ref.name if ref is not None and ref.kind == "hub" else job.model_name,
        "library_name": "peft" if method.keys() & {"lora", "ia3"} else "budwood",
        "tags": ["budwood", *method],
        "pipeline_tag": PIPELINES[material.corpus.task],
    }
    config = job.config
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {job.method.name} adapter for {job.model_name}",
        "",
        f"Trained on {job.data_name} ({len(material.corpus.rows('train')):,} rows, {material.corpus.shape}) "
        f"for {config.budget}, {config.batch} rows a step, learning rate {prepared.learning_rate:g}"
        f"{_tried(rates)}, "
        f"seed {config.seed}, in {str(prepared.compute).removeprefix('torch.')}.",
        "",
        *_below(job.on),
        "```yaml",
        yaml.safe_dump({"method": plain(method)}, sort_keys=False).strip(),
        "```",
        "",
        *_scores(scores, material),
        "## How to use it",
        "",
        "```python",
        "import budwood as bw",
        *_loading(job.on),
        "```",
        "",
        "## What was proved",
        "",
        *(f"- {proof}" for proof in proofs),
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
    return folder / "README.md"


def _tried(rates: RateProbe | None) -> str:
    """How the learning rate was found."""
    if rates is None:
        return ""
    return f" (the best of {', '.join(f'{trial.rate:g}' for trial in rates.trials)} after {rates.steps} steps each)"


def _below(on: Sequence[str]) -> list[str]:
    """What it stands on."""
    if not on:
        return []
    return ["It was trained on top of these adapters, which stayed as they were, and means little without:", ""] + [
        *(f"- {folder}" for folder in on), "",
    ]  # fmt: skip


def _loading(on: Sequence[str]) -> list[str]:
    """Lines of Python that put it to use."""
    last = "bw.load(model, 'path/to/this/folder', name='adapter')   # model: the base named above"
    if not on:
        return [last]
    below = [f"bw.load(model, {folder!r}, name='below{number}')" for number, folder in enumerate(on, start=1)]
    names = [*(f"below{number}" for number in range(1, len(on) + 1)), "adapter"]
    return [*below, last, f"bw.activate(model, bw.Stack({tuple(names)!r}))"]


def _scores(scores: Sequence[Quality], material: Material) -> list[str]:
    """A table of the scores, with 95 % intervals."""
    if not scores:
        return []
    rows = [
        f"| {entry.metric} | {_cell(entry.base)} | {_cell(entry.score)} | {entry.score.n:,} {entry.score.unit} |"
        for entry in scores
    ]
    return [
        f"## How good it is on {material.held_split} rows (95 % intervals)",
        "",
        "| | base | with the adapter | from |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _cell(score: object) -> str:
    from budwood.records import Score

    if not isinstance(score, Score):
        return ""
    return f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]"
