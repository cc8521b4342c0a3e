"""What a run's records say to people: one line, a table of two columns, and a notebook's cell."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from budwood.records.amounts import amount, duration, size

if TYPE_CHECKING:
    from budwood.records.manifest import Manifest
    from budwood.records.result import Result
    from budwood.records.run import RunFolder


def method_line(manifest: Manifest) -> str:
    """The method's name, with the fields that were chosen."""
    return next(iter(manifest.method), "?")


def quality_line(result: Result | None) -> str:
    """The first metric, from what the base had."""
    if result is None or not result.quality:
        return ""
    first = result.quality[0]
    before = f" (base {first.base.value:.4g})" if first.base else ""
    return f"{first.score.name} {first.score.value:.4g}{before}"


def result_rows(result: Result | None) -> list[tuple[str, str]]:
    """The five dimensions in words; a dimension that nobody measured has no row."""
    rows: list[tuple[str, str]] = []
    if result is None:
        return rows
    if (part := result.parameters) is not None:
        stored = f", {size(part.stored_bytes)} on disk" if part.stored_bytes is not None else ""
        rows.append(("trained", f"{amount(part.trained_count)} parameters, {part.share:.2%} of the base's{stored}"))
    if (memory := result.memory) is not None:
        expected = f", predicted {size(memory.predicted_bytes)}" if memory.predicted_bytes else ""
        rows.append(("peak memory", f"{size(memory.peak_bytes)} (by {memory.how}{expected})"))
    if (speed := result.speed) is not None:
        rows.append(
            ("speed", f"{amount(speed.tokens_per_s)} tokens/s; {speed.steps} steps in {duration(speed.total_s)}")
        )
    for entry in result.quality:
        base = f"   base {entry.base.value:.4g} [{entry.base.low:.4g}, {entry.base.high:.4g}]" if entry.base else ""
        score = entry.score
        rows.append((score.name, f"{score.value:.4g} [{score.low:.4g}, {score.high:.4g}]{base}"))
    if (cost := result.inference) is not None:
        folds = "can be merged" if cost.mergeable else "cannot be merged"
        timing = f"{cost.timings[0].prefill_s * 1e3:.0f} ms a prompt, " if cost.timings else ""
        rows.append(("in use", f"{timing}{size(cost.extra_weight_bytes)} beside the base; {folds}"))
    return rows


def cell(folder: RunFolder) -> str:
    """A run as HTML for a notebook: its method, how it stands, the five dimensions, and where it is.

    Colours are the notebook's own, dark or light; there is no script in it.
    """
    manifest = folder.manifest()
    head = f"{method_line(manifest)} on {manifest.model}, {manifest.data}: {manifest.status}"
    rows = [*result_rows(folder.result()), ("folder", str(folder.path))]
    if manifest.error:
        rows.insert(0, ("why", manifest.error))
    lines = "".join(
        f'<tr><th scope="row" style="text-align:left">{escape(what)}</th>'
        f'<td style="text-align:left">{escape(value)}</td></tr>'
        for what, value in rows
    )
    return f'<table><caption style="text-align:left">{escape(head)}</caption>{lines}</table>'
