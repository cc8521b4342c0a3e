"""Everything that can go wrong, said in one place: the message, the way out, and the exit code."""

from __future__ import annotations

import errno
import traceback
from importlib.metadata import PackageNotFoundError, metadata
from typing import TYPE_CHECKING

from cyclopts import CycloptsError

from budwood.errors import BudwoodError

if TYPE_CHECKING:
    from budwood.cli.output import Sink

USAGE, OUR_BUG, INTERRUPTED, TERMINATED = 2, 1, 130, 143
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived: unwind as Ctrl-C does, exit as the system expects."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.exit_code = TERMINATED


def report(error: BaseException, sink: Sink, *, verb: str = "") -> int:
    """Say what went wrong, on stderr and with --json as the JSON object; returns the exit code."""
    code, kind, lines = _explained(error, verb, verbose=sink.level > 1)
    is_stop = code in (INTERRUPTED, TERMINATED)
    for number, line in enumerate(lines):
        sink.complain(
            line if number or is_stop else f"error: {line}", "yellow" if is_stop else "red" if not number else ""
        )
    sink.result({"error": {"kind": kind, "message": lines[0], "hint": lines[1:], "exit_code": code}})
    return code


def _explained(error: BaseException, verb: str, *, verbose: bool) -> tuple[int, str, list[str]]:
    """(exit code, kind of error, lines)."""
    kind = type(error).__name__
    match error:
        case CycloptsError():
            return USAGE, "Usage", [_usage(error), f"`{f'budwood {verb}'.strip()} --help` shows what can be typed"]
        case BudwoodError():
            return error.exit_code, kind, [str(error)]
        case KeyboardInterrupt():
            code = vars(error).get("exit_code", TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
            return code, "Interrupted", [str(error) or "stopped"]
        case OSError() if error.errno in _REFUSED:
            place = f"{error.filename}: " if error.filename else ""
            return USAGE, kind, [f"{place}{error.strerror}; make room or rights there, or name another place"]
        case MemoryError():
            return 5, "OutOfMemory", ["out of memory; try a smaller --batch, a shorter --max-length or a smaller model"]
        case _:
            return OUR_BUG, kind, _bug(error, verbose=verbose)


def _usage(error: CycloptsError) -> str:
    return " ".join(str(error).split())


def _bug(error: BaseException, *, verbose: bool) -> list[str]:
    first = (str(error).strip().splitlines() or [""])[0]
    lines = [f"this is a bug in Budwood: {type(error).__name__}: {first[:400]}"]
    if verbose:
        lines += "".join(traceback.format_exception(error)).rstrip().splitlines()
    else:
        lines.append("-v shows the traceback")
    return [*lines, f"please report it, with the traceback and `budwood doctor --json`, at {_tracker()}"]


def _tracker() -> str:
    """Where the package's own metadata says that problems go."""
    try:
        urls = metadata("budwood").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    places = dict(entry.split(", ", 1) for entry in urls)
    return places.get("Issues", "the issue tracker of the project you have Budwood from")
