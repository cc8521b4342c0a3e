"""What a run shows while it runs: one line that is redrawn on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.cli.output import Sink, amount, duration, size

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from budwood.records import Score
    from budwood.train.observer import StepPoint
    from budwood.train.preflight import Preflight

EVERY_S = 10.0
"""Seconds between plain lines."""
SMOOTH = 0.9
"""Share of the shown loss and speed that comes from the steps before."""
SHOWN = 72
"""Characters of a prompt or answer on one line."""


@dataclass
class Progress:
    """Listens to a run (`budwood.train.Observer`) and tells the human."""

    sink: Sink
    peak_bytes: Callable[[], int | None] | None = None
    """The most memory held so far, on top of what was held when this was made."""
    predicted_bytes: int | None = None
    """Peak memory that preflight expects."""
    shows_end: bool = True
    """Whether the answers at the end are shown here; False leaves them to whoever asked."""
    clock: Callable[[], float] = time.monotonic
    every_s: float = EVERY_S
    _live: Live | None = field(default=None, repr=False)
    _said_at: float = float("-inf")
    _loss: float | None = None
    _speed: float | None = None
    _score: str = ""
    _last: StepPoint | None = None

    def __post_init__(self) -> None:
        if self.peak_bytes is None:
            self.peak_bytes = PeakMemory()

    def preflight(self, facts: Preflight) -> None:
        """Everything that the run is about to do."""
        self.predicted_bytes = facts.predicted_bytes
        tell_preflight(facts, self.sink)
        self.sink.say()
        self._doing("trying learning rates, and scoring the base" if facts.rates else "scoring the base")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.sink.say(text)

    def step(self, point: StepPoint) -> None:
        """Redraw the line, or say one when it is time."""
        if self._last is not None and point.step <= self._last.step:  # another training has begun
            self._loss = self._speed = None
        self._loss = _smoothed(self._loss, point.loss)
        self._speed = _smoothed(self._speed, point.tokens_per_s)
        self._last = point
        if self._live is not None:
            self._live.update(self._rich_line(point))
            if point.progress >= 1.0:
                self.sink.say(self.line(point))
                self._doing("checking what was trained")
        elif self.clock() - self._said_at >= self.every_s or point.progress >= 1.0:
            self._say_line(point)

    def validation(self, step: int, scores: Sequence[Score]) -> None:
        """Held-out scores: kept for the line, and said once."""
        self._score = ", ".join(f"{score.name} {score.value:.4g}" for score in scores[:2])
        self.sink.say(f"held-out rows after step {step}: {self._score}")

    def sample(self, sample: Mapping[str, str]) -> None:
        """A held-out prompt, answered by the base and by now; those of the end come with the data's own answer."""
        if "reference" in sample and not self.shows_end:
            return
        self.sink.say(f"  asked  {one_line(sample['prompt'])}", "dim")
        self.sink.say(f"  base   {one_line(sample['base'])}", "dim")
        self.sink.say(f"  now    {one_line(sample['now'])}")

    @contextmanager
    def shown(self) -> Iterator[Progress]:
        """While the run runs. On a terminal the line stays at the bottom, and goes when the run ends."""
        console = self.sink.console
        if console is None or not self.sink.is_live:
            yield self
            return
        from rich.live import Live

        with Live(console=console, refresh_per_second=4, transient=True) as self._live:
            self._doing("loading, and trying a few steps")
            try:
                yield self
            finally:
                self._live = None

    def line(self, point: StepPoint) -> str:
        """Step, time left, loss, held-out score, speed, memory."""
        total = f"/{point.total_steps}" if point.total_steps else ""
        parts = [
            f"step {point.step}{total}",
            f"{point.progress:.0%}",
            f"{duration(point.remaining_s)} left" if 0 < point.progress < 1 else duration(point.elapsed_s),
            f"loss {self._loss:.3f}" if self._loss is not None else "",
            self._score and f"held-out {self._score}",
            f"{amount(self._speed)} tokens/s" if self._speed else "",
            self._memory(),
        ]
        return "  ".join(part for part in parts if part)

    def _memory(self) -> str:
        held = self.peak_bytes() if self.peak_bytes else None
        if held is None:
            return ""
        return size(held) + (f" of {size(self.predicted_bytes)} predicted" if self.predicted_bytes else "")

    def _say_line(self, point: StepPoint) -> None:
        self._said_at = self.clock()
        self.sink.say(self.line(point))

    def _doing(self, what: str) -> None:
        """Between steps: what takes the time."""
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(f"... {what}", "dim"))
        else:
            self.sink.detail(f"{what} ...")

    def _rich_line(self, point: StepPoint) -> Text:
        from rich.text import Text

        width = 20
        done = round(width * point.progress)
        return Text.assemble(
            ("━" * done, "green"),
            ("━" * (width - done), "grey37"),
            f"  {self.line(point)}",
            no_wrap=True,
            overflow="crop",
        )


@dataclass
class PeakMemory:
    """The most this process has held since now: of CUDA memory once that is used, else resident."""

    floor: int = field(default_factory=lambda: _resident("VmRSS") or 0)
    highest: int = 0

    def __call__(self) -> int | None:
        """Bytes; None where the system does not tell."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            return int(torch.cuda.max_memory_allocated())
        held = _resident("VmHWM")
        if held is None:
            return None
        self.highest = max(self.highest, held - self.floor)
        return self.highest


def tell_preflight(facts: Preflight, sink: Sink) -> None:
    """The lines of a preflight; what is learned stands out."""
    for line in facts.lines():
        sink.say_marked(line)


def _resident(kind: str) -> int | None:
    """Bytes of VmRSS or VmHWM; None where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), None)


def one_line(text: str, width: int = SHOWN) -> str:
    """A text on one line, cut with dots where it is longer."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def _smoothed(before: float | None, now: float) -> float:
    return now if before is None else SMOOTH * before + (1 - SMOOTH) * now
