"""How a run stands: what is written to run.json when it ends, and what is left to go on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from shlex import quote

from budwood.errors import BudwoodError
from budwood.records import RunFolder
from budwood.train.checkpoint import has_state
from budwood.train.interrupt import Interrupted


@dataclass
class Status:
    """Who may say how the run stands: a resumed run is ours only once its state was found to fit."""

    folder: RunFolder
    is_claimed: bool

    def claim(self, step: int) -> None:
        """Take the run up again. Raises WrongOrder if another process did meanwhile."""
        self.folder.resume(step=step)
        self.is_claimed = True

    def interrupt(self, reason: str) -> None:
        """Note that it was stopped, if it is ours."""
        if self.is_claimed:
            self.folder.interrupt(reason)

    def fail(self, error: str) -> None:
        """Note what went wrong, if it is ours."""
        if self.is_claimed:
            self.folder.fail(error)


@contextmanager
def told_status(folder: RunFolder, *, is_claimed: bool) -> Iterator[Status]:
    """Finished, interrupted or failed: whatever happens inside to a claimed run is written to run.json."""
    status = Status(folder, is_claimed)
    try:
        yield status
    except Interrupted as stop:
        status.interrupt(str(stop))
        raise
    except KeyboardInterrupt as stop:
        status.interrupt("stopped outside of training steps")
        if not has_state(folder.state):
            raise
        signum = int(vars(stop).get("exit_code", 130)) - 128
        step, command = _saved_step(folder), resume_command(folder)
        raise Interrupted(signum=signum, step=step, state=folder.state, resume_command=command) from stop
    except BudwoodError as error:
        status.fail(str(error))
        raise
    except BaseException as error:
        status.fail(f"{type(error).__name__}: {error}")
        raise
    folder.finish()


def resume_command(folder: RunFolder) -> str:
    """What to type to go on, from wherever one is."""
    said = folder.config()
    verb = "distill" if "teacher" in said else "shrink" if "shrink" in said else "train"
    return f"budwood {verb} --resume {quote(str(folder.path.absolute()))}"


def what_is_saved(folder: RunFolder) -> str:
    """What is left of a run that diverged."""
    if has_state(folder.state):
        return f"The state saved after step {_saved_step(folder)} is kept in {folder.state}"
    return "No state had been saved yet: start the run again"


def _saved_step(folder: RunFolder) -> int:
    return int(json.loads((folder.state / "state.json").read_text(encoding="utf-8"))["step"])
