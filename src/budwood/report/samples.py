"""Held-out rows as every method answers them, those first on which methods disagree most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from budwood.records import BASE, RunFolder
from budwood.records.files import Json
from budwood.report.runs import Entry
from budwood.report.table import Sample

MOST = 24
"""Samples that are kept."""
LETTERS = 400
"""Of each text."""


def samples(entries: Sequence[Entry]) -> tuple[Sample, ...]:
    """Of the first seed of each method: its predictions where it was asked to say something, else its samples."""
    first = {entry.label: entry.finished[0] for entry in entries if entry.finished}
    said = {label: _predicted(run.predictions) for label, run in first.items()}
    if not any(said.values()):
        said = {label: _written(RunFolder(run.folder).samples(), "now") for label, run in first.items()}
        if BASE not in said:
            said = {BASE: _written(RunFolder(next(iter(first.values())).folder).samples(), "base"), **said}
    said = {label: rows for label, rows in said.items() if rows}
    shared = [key for key in next(iter(said.values()), {}) if all(key in rows for rows in said.values())]
    found = [_sample(key, {label: rows[key] for label, rows in said.items()}) for key in shared]
    return tuple(sorted(found, key=lambda one: -one.disagreement)[:MOST])


def _predicted(lines: Sequence[Mapping[str, Json]]) -> dict[tuple[Json, str], tuple[str, str]]:
    """(row, prompt) to (answer, reference)."""
    return {
        (line["row"], str(line["prompt"])): (str(line["prediction"]), " / ".join(map(str, line["references"])))
        for line in lines
        if line.get("prediction") is not None
    }


def _written(lines: Sequence[Mapping[str, Json]], name: str) -> dict[tuple[Json, str], tuple[str, str]]:
    """The same of the newest samples; `name` is whose answer."""
    newest = max((line.get("step", 0) for line in lines), default=0)
    return {
        (0, str(line["prompt"])): (str(line[name]), str(line.get("reference") or ""))
        for line in lines
        if line.get("step", 0) == newest and line.get(name) is not None
    }


def _sample(key: tuple[Json, str], rows: Mapping[str, tuple[str, str]]) -> Sample:
    reference = next((right for _, right in rows.values() if right), "")
    return Sample(
        prompt=_short(key[1]),
        reference=_short(reference),
        answers={label: _short(answer) for label, (answer, _) in rows.items()},
        disagreement=_disagreement([answer.strip() for answer, _ in rows.values()]),
    )


def _disagreement(answers: Sequence[str]) -> float:
    """Share of pairs that differ."""
    count = len(answers)
    alike = sum(many * (many - 1) for many in Counter(answers).values())
    return 1 - alike / (count * (count - 1)) if count > 1 else 0.0


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[:LETTERS]} \N{HORIZONTAL ELLIPSIS}"
