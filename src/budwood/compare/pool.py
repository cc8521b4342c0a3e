"""Where the tasks of a comparison are done: one process after another on this machine, or Ray's workers on several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from budwood.compare.work import Task, perform
from budwood.errors import BadConfig, NotAvailable
from budwood.records.files import Json
from budwood.records.manifest import this_process

Outcome = dict[str, Json]
Hear = Callable[[Task, Mapping[str, Json]], None]
"""Told what a task tells."""


class Pool(Protocol):
    """Does tasks."""

    def outcomes(self, tasks: Sequence[Task], hear: Hear) -> Iterator[tuple[Task, Outcome]]:
        """Each task with what came of it, as they end. Raises KeyboardInterrupt, once what runs has saved itself."""

    def close(self) -> None:
        """Let go of what it holds."""


@dataclass
class Local:
    """One process after another, each fresh, so that what it measures is its own."""

    log: Path
    """File for whatever the processes print."""
    _server: subprocess.Popen[str] | None = field(default=None, repr=False)

    def outcomes(self, tasks: Sequence[Task], hear: Hear) -> Iterator[tuple[Task, Outcome]]:
        """In order."""
        for task in tasks:
            yield task, self._done(task, hear)

    def close(self) -> None:
        """The process that others are forked from ends."""
        if self._server is not None:
            with self._server as server:  # closes its pipes, which ends it, and waits
                assert server.stdin is not None
                server.stdin.close()
            self._server = None

    def _done(self, task: Task, hear: Hear) -> Outcome:
        server = self._running()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps({"task": asdict(task), "for": this_process()}) + "\n")
        server.stdin.flush()
        return _Conversation(task, hear, server.stdout).held()

    def _running(self) -> subprocess.Popen[str]:
        if self._server is not None and self._server.poll() is not None:
            self.close()
        if self._server is None:
            with self.log.open("a", encoding="utf-8") as log:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", "budwood.compare.work"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C reaches it through us
                )
        return self._server


@dataclass
class _Conversation:
    """What one task tells until its process has ended."""

    task: Task
    hear: Hear
    stdout: IO[str]
    pid: int | None = None
    outcome: Outcome | None = None
    asked: list[int] = field(default_factory=list)
    """Signals that were passed on."""

    def held(self) -> Outcome:
        """Read to the end, passing Ctrl-C and SIGTERM on; then raise what was asked for."""
        before = {}
        if _in_main_thread():
            before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            found = self._read()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked:
            stop = KeyboardInterrupt()
            stop.exit_code = 128 + self.asked[0]  # type: ignore[attr-defined]  # the command line exits with it
            raise stop
        return found

    def _read(self) -> Outcome:
        for line in iter(self.stdout.readline, ""):
            event = json.loads(line)
            if event["event"] == "begin":
                self.pid = event["pid"]
                for number in self.asked:
                    self._send(number)
            elif event["event"] == "outcome":
                self.outcome = event["outcome"]
            elif event["event"] == "end":
                return self.outcome or _died(event["status"])
            else:
                self.hear(self.task, event)
        return self.outcome or {"error": "its process is gone without a word; log.txt may say more", "kind": "died"}

    def _pass_on(self, number: int, frame: Any) -> None:
        self.asked.append(number)
        if self.pid is not None:
            self._send(signal.SIGKILL if len(self.asked) > 2 else number)

    def _send(self, number: int) -> None:
        try:
            os.kill(self.pid or 0, number)
        except ProcessLookupError:  # it has just ended
            return


def _died(status: int) -> Outcome:
    """The outcome of a process that could not say one."""
    if status == -signal.SIGKILL:
        why = "its process was killed, most likely because memory ran out: a smaller --batch needs less"
        return {"error": why, "kind": "OutOfMemory"}
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return {"error": f"its process ended by {name}; log.txt may say more", "kind": "died"}


def _in_main_thread() -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


@dataclass
class OnRay:
    """One Ray task each, with a device of its own where there are some; every machine must see the same folders."""

    device: str = "auto"
    address: str | None = None
    """Of a running cluster; None takes the one that RAY_ADDRESS names, or starts Ray on this machine."""

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError as missing:
            raise NotAvailable("--ray needs Ray: pip install 'budwood[ray]'") from missing
        if not ray.is_initialized():
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False)

    def outcomes(self, tasks: Sequence[Task], hear: Hear) -> Iterator[tuple[Task, Outcome]]:
        """As they end, in whatever order; what they tell on the way is not heard."""
        import ray

        gpus = ray.cluster_resources().get("GPU", 0)
        if self.device.startswith("cuda") and not gpus:
            raise BadConfig(f"device is {self.device} and Ray's machines have no GPU; use --device cpu")
        needs = {"num_gpus": 1} if gpus and self.device != "cpu" else {"num_cpus": _cores(ray)}
        remote = ray.remote(max_calls=1, max_retries=0, **needs)(_on_ray)
        waiting = {remote.remote(asdict(task)): task for task in tasks}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            task = waiting.pop(ready[0])
            try:
                outcome: Outcome = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                outcome = {"error": f"Ray lost it: {error}".splitlines()[0], "kind": "died"}
            yield task, outcome

    def close(self) -> None:
        """Ray stays as it was found: other work may be using it."""


def _cores(ray: Any) -> int:
    """Cores of the smallest machine: a task gets all of one, as it would alone, so that times compare."""
    return int(min(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"]))


def _on_ray(task: Mapping[str, Any]) -> Outcome:
    import time

    began = time.monotonic()
    found = perform(Task(**task), lambda event: None)
    return {**found, "seconds": time.monotonic() - began}
