"""`budwood runs`: what was trained here, and how it went."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cyclopts import App

from budwood.cli.options import Talk
from budwood.cli.output import Table, amount, duration, size
from budwood.errors import BadCheckpoint

if TYPE_CHECKING:
    from budwood.records import Manifest, Result, RunFolder

app = App(name="runs", group_commands="Verbs", help_epilogue="", help="List and show runs.")

FORMS = {
    **dict.fromkeys(("lora", "ia3"), "peft"),
    **dict.fromkeys(("adapter-h", "adapter-p", "parallel", "compacter"), "adapterhub"),
}
"""What `budwood export` writes an adapter of a method as, for other tools."""


@app.command
def ls(*, root: Path = Path("runs"), talk: Talk | None = None) -> int:
    """The runs of a folder, oldest first.

    Parameters
    ----------
    root: Path
        Folder of runs.
    """
    from budwood.records import list_runs

    sink = (talk or Talk()).sink()
    listing = list_runs(root)
    rows, payload = [], []
    for run in listing.runs:
        manifest = run.manifest()
        try:
            result = run.result()
        except BadCheckpoint as error:
            result = None
            sink.complain(str(error), style="yellow")
        rows.append(
            (run.name, manifest.status, method_line(manifest), manifest.model, manifest.data, quality_line(result))
        )
        payload.append({"name": run.name, "path": str(run.path), "status": manifest.status, "method": manifest.method,
                        "model": manifest.model, "data": manifest.data, "started": manifest.started})  # fmt: skip
    if rows:
        sink.show(Table(("run", "status", "method", "model", "data", "result"), rows))
    else:
        sink.say(f"no runs in {root}; `budwood train MODEL DATA` makes one")
    for path, reason in listing.broken:
        sink.complain(f"{path}: {reason}", style="yellow")
    sink.result({"runs": payload, "broken": [{"path": str(path), "reason": why} for path, why in listing.broken]})
    return 0


@app.command
def show(run: str = "latest", /, *, root: Path = Path("runs"), talk: Talk | None = None) -> int:
    """One run: what was asked, what came out, where things are.

    Parameters
    ----------
    run: str
        A folder, a name, the start of a name, or latest.
    root: Path
        Folder of runs.
    """
    from budwood.records import RunFolder

    sink = (talk or Talk()).sink()
    folder = RunFolder.open(run, root=root)
    manifest, result = folder.manifest(), folder.result()
    rows = [
        ("run", folder.path), ("status", manifest.status + (f": {manifest.error}" if manifest.error else "")),
        ("command", " ".join(manifest.command)), ("model", manifest.model), ("data", manifest.data),
        ("method", method_line(manifest)), *(("on top of", folder) for folder in manifest.on),
        *((("learning rate", manifest.rate_probe),) if manifest.rate_probe else ()),
        ("started", manifest.started), ("finished", manifest.finished),
        *result_rows(result),
    ]  # fmt: skip
    sink.show(Table(("", ""), rows))
    sink.say()
    for line in next_steps(folder, manifest.status):
        sink.say(line)
    sink.result(
        {"path": str(folder.path), "manifest": manifest.to_dict(), "result": result.to_dict() if result else None,
         "config": folder.config()}
    )  # fmt: skip
    return 0


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


def next_steps(folder: RunFolder, status: str) -> list[str]:
    """What to type now."""
    if status != "finished" and (folder.state / "state.json").is_file():
        return [f"go on with   budwood train --resume {quote(str(folder.path.absolute()))}"]
    if status != "finished":
        command = folder.manifest().command
        words = command if "--force" in command else (*command, "--force")  # its folder is there already
        return [f"start again  {' '.join(map(quote, words))}"]
    shown, result = quote(str(folder.path)), folder.result()
    steps = [f"try it       budwood try {shown}"]
    if result is None or result.inference is None or result.inference.mergeable:
        steps.append(f"merge it     budwood merge {shown} --out {quote(str(folder.path / 'merged'))}")
    form = FORMS.get(method_line(folder.manifest()))
    if form is not None:
        steps.append(f"hand it on   budwood export {shown} --to {form} --out DIR")
    return steps
