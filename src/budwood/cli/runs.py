"""`budwood runs`: what was trained here, and how it went."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from cyclopts import App

from budwood.cli.options import Talk
from budwood.cli.output import Table
from budwood.errors import BadCheckpoint
from budwood.records.words import method_line, quality_line, result_rows

if TYPE_CHECKING:
    from budwood.records import RunFolder

app = App(name="runs", group_commands="Verbs", help_epilogue="", help="List and show runs.")

FORMS = {
    **dict.fromkeys(("lora", "ia3"), "peft"),
    **dict.fromkeys(("adapter-h", "adapter-p", "parallel", "compacter"), "adapterhub"),
}
"""What `budwood export` writes an adapter of a method as, for other tools."""


@app.command
def ls(*, root: Path = Path("runs"), talk: Talk | None = None) -> int:
    """The runs of a folder, oldest first, then its comparisons and searches.

    Parameters
    ----------
    root: Path
        Folder of runs.
    """
    from budwood.records import ComparisonFolder, list_runs

    sink = (talk or Talk()).sink()
    listing = list_runs(root)
    rows: list[tuple[str, ...]] = []
    payload = []
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
    for path in sorted(root.glob("*/comparison.json")):
        record = ComparisonFolder(path.parent).read()
        runs = [one for one in record.items if one.label != "base"]
        done = f"{sum(one.status == 'finished' for one in runs)} of {len(runs)} runs"
        rows.append((path.parent.name, record.status, record.kind, record.model, record.data, done))
        payload.append({"name": path.parent.name, "path": str(path.parent), "status": record.status,
                        "method": {record.kind: {}}, "model": record.model, "data": record.data,
                        "started": record.started})  # fmt: skip
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
