"""Ctrl-C and SIGTERM: the running step is finished and saved before the program goes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """A run was stopped from outside; its state is saved.

    exit_code       130 after Ctrl-C, 143 after SIGTERM
    resume_command  what to type to go on, None where nothing was saved
    """

    def __init__(self, *, signum: int, step: int, state: Path | None, resume_command: str | None) -> None:
        self.signum, self.step, self.state, self.resume_command = signum, step, state, resume_command
        self.exit_code = 128 + signum
        how = f"go on with: {resume_command}" if resume_command else "nothing was saved, as no folder was given"
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; {how}")


@dataclass
class StopRequest:
    """Whether someone asked to stop, and how."""

    signum: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note Ctrl-C and SIGTERM instead of dying of them; a second one acts at once, as if we were not here.

    Outside the main thread, where Python has no signals, nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def noted(number: int, frame: FrameType | None) -> None:
        request.signum = number
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, noted)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
