"""The observer that writes a run's folder, and passes on what it hears."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from budwood.records import RunFolder, Score
from budwood.train.observer import Observer, StepPoint
from budwood.train.preflight import Preflight


class Recorder:
    """Lines of metrics.jsonl, samples.jsonl and log.txt as they happen."""

    def __init__(self, folder: RunFolder, listener: Observer) -> None:
        self.folder, self.listener = folder, listener
        self.taken = 0
        """Steps taken so far: samples are written with it."""

    def preflight(self, facts: Preflight) -> None:
        """To the log."""
        for line in facts.lines():
            self.folder.log(line)

    def note(self, text: str) -> None:
        """To the log."""
        self.folder.log(text)
        self.listener.note(text)

    def step(self, point: StepPoint) -> None:
        """One line."""
        self.taken = point.step
        line = {name: value for name, value in asdict(point).items() if value != {}}
        self.folder.add_metrics({**line, "tokens_per_s": point.tokens_per_s})
        self.listener.step(point)

    def validation(self, step: int, scores: Sequence[Score]) -> None:
        """One line, with intervals."""
        self.folder.add_metrics({"step": step, "validation": {score.name: asdict(score) for score in scores}})
        self.listener.validation(step, scores)

    def sample(self, sample: Mapping[str, str]) -> None:
        """One line."""
        self.folder.add_sample({"step": self.taken, **sample})
        self.listener.sample(sample)
