"""A comparison as Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import csv as csv_format
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from budwood.records.amounts import amount, size
from budwood.records.files import Json, plain
from budwood.report.limits import seconds
from budwood.report.recommend import least, recommend, told
from budwood.report.table import Estimate, Method, Pick, Table

VERSION = 1
NONE = "-"
Cells = tuple[str, ...]


def brief(table: Table) -> tuple[Cells, list[Cells]]:
    """(headings, one row a method) for people; a heading that begins with > stands over numbers."""
    name = table.metric.name if table.metric is not None else "quality"
    headings = (
        "method", f">{name} [95 %]", ">against the best", ">trained", ">stored", ">peak memory", ">tokens/s",
        ">answer",
    )  # fmt: skip
    return headings, [_brief_row(one, table) for one in table.methods if one.seeds]


def _brief_row(one: Method, table: Table) -> Cells:
    return (
        one.label,
        _estimate(one.quality),
        standing(one, table),
        _or(one.trained_count, amount),
        _or(one.stored_bytes, size),
        _or(one.peak_bytes, size),
        _or(one.tokens_per_s, amount),
        _or(one.answer_s, seconds),
    )


def standing(one: Method, table: Table) -> str:
    """How it stands to the best, in words: never a rank."""
    if one.below_best is None:
        return "not compared"
    if one.may_be_best:
        return "best observed" if one.is_best else "cannot be told apart"
    return f"worse by {told(_turned(one.below_best), table)}"


def _turned(one: Estimate) -> Estimate:
    return Estimate(value=-one.value, low=-one.high, high=-one.low)


def reasons(table: Table, pick: Pick) -> list[str]:
    """Why that is recommended, and who costs least in what, each a sentence."""
    return [*pick.reasons, *(f"Least {name}: {label} ({cost})." for name, label, cost in least(table, pick))]


def markdown(table: Table) -> str:
    """The recommendation, the table, what it cannot tell, and how to do it again."""
    pick = recommend(table)
    headings, rows = brief(table)
    lines = [f"# {table.title}", "", f"**{pick.headline}**", ""]
    lines += [*(f"- {reason}" for reason in reasons(table, pick)), ""]
    lines.append("| " + " | ".join(_cell(one.lstrip(">")) for one in headings) + " |")
    lines.append("|" + "|".join("--:" if one.startswith(">") else "---" for one in headings) + "|")
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    for title, said in (
        ("What this cannot tell", table.weaknesses),
        ("Not in the table", [f"{one.label}: {line}" for one in table.methods for line in one.failures]),
        ("Not done yet", table.waiting),
        ("How it was measured", [f"{what}: {how}" for what, how in table.notes]),
        ("Licences", [f"{what}: {licence}" for what, licence in table.licences]),
    ):
        if said:
            lines += ["", f"## {title}", "", *(f"- {' '.join(line.split())}" for line in said)]
    if table.repeat:
        lines += ["", "## Again", "", "```", *table.repeat, "```"]
    return "\n".join(lines) + "\n"


COLUMNS: dict[str, Callable[[Method], Json]] = {
    "method": lambda one: one.label,
    "seeds": lambda one: " ".join(map(str, one.seeds)),
    "quality": lambda one: one.quality and one.quality.value,
    "quality_low": lambda one: one.quality and one.quality.low,
    "quality_high": lambda one: one.quality and one.quality.high,
    "over_base": lambda one: one.over_base and one.over_base.value,
    "over_base_low": lambda one: one.over_base and one.over_base.low,
    "over_base_high": lambda one: one.over_base and one.over_base.high,
    "over_full": lambda one: one.over_full and one.over_full.value,
    "below_best": lambda one: one.below_best and one.below_best.value,
    "below_best_low": lambda one: one.below_best and one.below_best.low,
    "below_best_high": lambda one: one.below_best and one.below_best.high,
    "may_be_best": lambda one: one.may_be_best,
    "trained_parameters": lambda one: one.trained_count,
    "share_of_base": lambda one: one.share,
    "stored_bytes": lambda one: one.stored_bytes,
    "peak_memory_bytes": lambda one: one.peak_bytes,
    "train_tokens_per_s": lambda one: one.tokens_per_s,
    "train_s": lambda one: one.train_s,
    "steps": lambda one: one.steps,
    "prefill_s": lambda one: one.prefill_s,
    "per_token_s": lambda one: one.per_token_s,
    "answer_s": lambda one: one.answer_s,
    "extra_weight_bytes": lambda one: one.extra_weight_bytes,
    "extra_cache_bytes_per_row": lambda one: one.extra_cache_bytes_per_row,
    "mergeable": lambda one: one.mergeable,
    "learning_rate": lambda one: one.learning_rate,
    "failures": lambda one: " / ".join(" ".join(line.split()) for line in one.failures),
}
"""What a row of the CSV has, with the unit in each name."""


def csv(table: Table) -> str:
    """One row a method; what was not measured is empty."""
    text = io.StringIO()
    writer = csv_format.writer(text, lineterminator="\n")
    metric = table.metric.name if table.metric is not None else ""
    writer.writerow(["metric", *COLUMNS])
    for one in table.methods:
        cells = [of(one) for of in COLUMNS.values()]
        writer.writerow([metric, *("" if cell is None else cell for cell in cells)])
    return text.getvalue()


def as_json(table: Table) -> dict[str, Json]:
    """Everything, as plain data."""
    found: dict[str, Any] = plain(
        {"version": VERSION, "table": asdict(table), "recommendation": asdict(recommend(table))}
    )
    return found


def latex(table: Table) -> str:
    """A table for a paper, in the manner of booktabs."""
    headings, rows = brief(table)
    columns = "".join("r" if one.startswith(">") else "l" for one in headings)
    lines = [
        f"% {_plain_line(table.title)}; needs \\usepackage{{booktabs}}",
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
    ]
    lines.append(_tex_row([one.lstrip(">") for one in headings]))
    lines += ["\\midrule", *map(_tex_row, rows), "\\bottomrule", "\\end{tabular}"]
    return "\n".join(lines) + "\n"


def _tex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_tex, cells)) + r" \\"


def _tex(text: str) -> str:
    known = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(known.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def _plain_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _estimate(one: Estimate | None) -> str:
    return NONE if one is None else f"{one.value:.4g} [{one.low:.4g}, {one.high:.4g}]"


def _or(value: float | None, say: Callable[[float], str]) -> str:
    return NONE if value is None else say(value)
