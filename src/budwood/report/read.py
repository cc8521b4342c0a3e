"""Records to one `Table`: the runs, their quality and costs, and what all of it cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from shlex import quote

from budwood.records import BASE
from budwood.records.files import read_json
from budwood.report.measured import WRITTEN, measured
from budwood.report.quality import KINDS, Compared, compare, ranked
from budwood.report.runs import Entry, Found, Run, gather, going_on
from budwood.report.samples import samples
from budwood.report.statistics import DRAWS
from budwood.report.table import Metric, Table

FEW_ROWS = 100
"""Test rows below which it is said how large a difference has to be."""
HEADED = ("classification", "token-classification", "question-answering")
"""Tasks whose untuned base may have a head that nobody has trained."""


def read_table(where: str | Path | Sequence[str | Path], *, limits: dict[str, float] | None = None) -> Table:
    """Everything that a report says, of a comparison's folder or of run folders.

    Raises what `gather` does, and BadConfig where runs have nothing in common that could be compared.
    """
    found = gather(where)
    record, entries = found.comparison, found.entries
    runs = [run for entry in entries for run in entry.finished]
    task = record.task or runs[0].task
    compared = compare(entries, [measured(entry) for entry in entries], task)
    metric = KINDS[task].metric if task in KINDS else None
    return Table(
        title=f"{_name(record.model)} on {_name(record.data)}",
        model=_name(record.model),
        data=_name(record.data),
        task=task,
        budget=record.budget,
        metric=metric,
        rows_scored=compared.rows,
        methods=ranked(compared.methods, metric),
        limits={name: float(value) for name, value in record.limits.items()} if limits is None else limits,
        samples=samples(entries),
        weaknesses=_weaknesses(found, compared, task),
        notes=_notes(found, runs, metric),
        repeat=_repeat(found, entries),
        licences=_licences(runs[0]),
        status=record.status,
        waiting=tuple(line for entry in entries for line in entry.waiting),
        between=compared.between,
    )


def _name(place: str) -> str:
    """A folder or file by its own name, any other as it was named."""
    return Path(place).name if Path(place).is_absolute() else place


def _weaknesses(found: Found, compared: Compared, task: str) -> tuple[str, ...]:
    """What this comparison cannot tell, the gravest first."""
    trained = [entry for entry in found.entries if entry.finished and entry.label != BASE]
    runs = [run for entry in found.entries for run in entry.finished]
    said = [*found.faults, *compared.faults]
    if waiting := [line for entry in found.entries for line in entry.waiting]:
        missing = "1 run is" if len(waiting) == 1 else f"{len(waiting)} runs are"
        said.append(f"It is not finished: {missing} missing ({waiting[0]}).")
    if trained and all(len(entry.finished) == 1 for entry in trained):
        said.append(
            "One seed: the intervals know nothing of how much another order of rows and another start would change; "
            "--seeds 3 does."
        )
    elif len({len(entry.finished) for entry in trained}) > 1:
        said.append("Some methods have fewer seeds than others.")
    if 0 < compared.rows < FEW_ROWS:
        said.append(f"Only {compared.rows} test rows: {_smallest(compared.rows, task)}")
    ends = [(one.label, rates.rate) for one in trained if (rates := one.contender.rates) is not None and rates.is_end]
    if ends:
        listed = ", ".join(f"{label} ({rate:g})" for label, rate in ends)
        said.append(f"At an end of the learning rates tried, so that another may be better: {listed}.")
    unclear = [one.label for one in trained if one.contender.rates is not None and not one.contender.rates.is_clear]
    if unclear:
        said.append(
            f"No learning rate was clearly better for {', '.join(unclear)}; each was trained at its method's own."
        )
    if runs and "test" not in (runs[0].data.get("splits") or {}):
        said.append(
            "The data has no test split: learning rates were chosen on some of the rows that are scored. Give a test "
            "split."
        )
    if task in HEADED and any(entry.label == BASE and entry.finished for entry in found.entries):
        said.append("The untuned model's head for this task may be new and random: then its score is that of guessing.")
    machines = {str((run.environment.get("processor") or {}).get("model")) for run in runs}
    threads = {run.environment.get("threads") for run in runs}
    if len(machines) > 1 or len(threads) > 1:
        said.append("Runs were made on different machines or threads, so their times do not compare.")
    return tuple(dict.fromkeys(said))


def _smallest(rows: int, task: str) -> str:
    if task in ("causal-lm", "seq2seq", "masked-lm"):
        return "small differences between methods cannot be seen."
    reach = 1.96 * sqrt(2 * 0.25 / rows)
    return f"a difference has to be about {100 * reach:.0f} points to be seen for sure; more rows show smaller ones."


def _notes(found: Found, runs: Sequence[Run], metric: Metric | None) -> tuple[tuple[str, str], ...]:
    """(what, how it was measured)."""
    said = [(str(index), note) for index, note in enumerate(found.comparison.notes, 1)]
    if metric is not None:
        side = "higher" if metric.higher_is_better else "lower"
        said.append(
            ("Quality", f"{metric.name} on held-out rows, {side} is better; differences in {metric.difference}.")
        )
        said.append(
            (
                "Intervals",
                f"95 %, from {DRAWS:,} bootstrap draws of the test rows, the same rows for all methods, with the "
                "spread of the seeds on top. Differences to the best hold for all pairs at once, because the best was "
                "chosen by the same rows.",
            )
        )
    memory = next((run.result.memory for run in runs if run.result.memory is not None), None)
    if memory is not None:
        floor = f", above the {memory.floor_bytes / 2**20:,.0f} MiB of the imports" if memory.floor_bytes else ""
        said.append(("Peak memory", f"{memory.how} of a process of its own for each run, training only{floor}."))
    speed = next((run.result.speed for run in runs if run.result.speed is not None), None)
    if speed is not None:
        threads = f", {speed.threads} threads" if speed.threads else ""
        said.append(("Speed", f"Prompt and learned tokens, without padding: {speed.how}{threads}."))
    inference = next((run.result.inference for run in runs if run.result.inference is not None), None)
    if inference is not None and inference.timings:
        timing = inference.timings[0]
        writes = f" and writing {WRITTEN} tokens" if timing.per_token_s is not None else ""
        said.append(
            (
                "Answer time",
                f"Reading {timing.prompt_tokens} tokens{writes}, one row at a time, merged where that is faster; "
                f"{timing.how}.",
            )
        )
    return (*said, *_circumstances(runs[0]))


def _circumstances(run: Run) -> list[tuple[str, str]]:
    here, data = run.environment, run.data
    versions = here.get("versions") or {}
    shown = ", ".join(f"{name} {versions[name]}" for name in ("budwood", "torch", "transformers") if versions.get(name))
    splits = ", ".join(f"{name} {count:,}" for name, count in (data.get("splits") or {}).items())
    processor = (here.get("processor") or {}).get("model") or "unknown processor"
    return [
        ("Data", f"Rows: {splits}; the hash of all begins with {run.data_hash[:12]}."),
        ("Machine", f"{processor}, {here.get('threads')} threads, {here.get('os')}; {shown}."),
    ]


def _repeat(found: Found, entries: Sequence[Entry]) -> tuple[str, ...]:
    """Commands that do it again, or go on."""
    lines = []
    if found.folder is not None:
        if found.comparison.command:
            lines.append(" ".join(map(quote, found.comparison.command)))
        if found.comparison.status != "finished":
            lines.append(going_on(found.comparison, found.folder))
        lines.append(f"budwood report {quote(str(found.folder))} --to html,md,csv,json,tex,png")
    run = next((entry.finished[0] for entry in entries if entry.finished and entry.label != BASE), None)
    if run is not None:
        lines.append(f"budwood train --config {quote(str(run.folder / 'config.yaml'))} --out again")
    return tuple(lines)


def _licences(run: Run) -> tuple[tuple[str, str], ...]:
    """(what, licence) of demo assets, which say it beside their files."""
    found = []
    for what, place in (("model", run.manifest.model), ("data", run.manifest.data)):
        source = Path(str(run.config.get(what) or place)) / "SOURCE.json"
        if source.is_file() and (licence := read_json(source).get("licence")):
            found.append((f"{what}: {_name(place)}", str(licence)))
    return tuple(found)
