"""`budwood report`: what runs or a comparison came to, as files that people and papers read."""

from __future__ import annotations

from pathlib import Path

from budwood.cli.options import Talk
from budwood.errors import BadConfig, NotAvailable


def report(*runs: str, to: str = "html", out: Path | None = None, talk: Talk | None = None) -> int:
    """Write what a comparison, or several runs, came to.

    Parameters
    ----------
    runs: str
        A comparison's folder, or several run folders.
    to: str
        html, md, csv, json, tex, png, pdf; several joined by commas. [html]
    out: Path
        Folder for the files. [that of the comparison, or here]
    """
    from budwood.report.write import write

    sink = (talk or Talk()).sink()
    if not runs:
        raise BadConfig("name a comparison's folder or run folders, as budwood report runs/a runs/b")
    paths = [_found(one) for one in runs]
    place = out or (paths[0] if len(paths) == 1 else Path())
    written = write(paths[0] if len(paths) == 1 else paths, place, tuple(to.split(",")))
    for path in written:
        sink.say(str(path))
    if not sink.is_live:
        for path in written:
            sink.data(str(path))
    sink.result({"files": [str(path) for path in written]})
    return 0


def _found(where: str) -> Path:
    """A comparison's folder as it is, a run by whatever names it."""
    from budwood.records import RunFolder

    path = Path(where)
    if (path / "comparison.json").is_file():
        return path
    try:
        return RunFolder.open(where).path
    except NotAvailable as missing:
        raise NotAvailable(f"{where} is neither a comparison's folder nor a run; {missing}") from missing
