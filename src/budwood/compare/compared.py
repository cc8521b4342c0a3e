"""A comparison on disk, for Python and notebooks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from budwood.records import Comparison, ComparisonFolder
from budwood.report.page import page
from budwood.report.read import read_table
from budwood.report.recommend import recommend
from budwood.report.table import Pick, Table
from budwood.report.text import markdown


@dataclass(frozen=True)
class Compared:
    """What a comparison came to."""

    folder: ComparisonFolder

    @property
    def path(self) -> Path:
        """The folder of the comparison."""
        return self.folder.path

    @property
    def report(self) -> Path:
        """The page for people."""
        return self.path / "report.html"

    @property
    def record(self) -> Comparison:
        """comparison.json."""
        return self.folder.read()

    @property
    def table(self) -> Table:
        """Every number, with its interval."""
        return read_table(self.path)

    def recommend(
        self,
        *,
        memory: str | float | None = None,
        parameters: str | float | None = None,
        stored: str | float | None = None,
        train_time: str | float | None = None,
        answer_time: str | float | None = None,
        quality: float | None = None,
    ) -> Pick:
        """What to use within limits: memory="6GiB", parameters="1M", train_time="10m", answer_time="50ms"."""
        return recommend(
            self.table, memory=memory, parameters=parameters, stored=stored, train_time=train_time,
            answer_time=answer_time, quality=quality,
        )  # fmt: skip

    def __str__(self) -> str:
        return markdown(self.table)

    def _repr_html_(self) -> str:
        """The page, in a frame of its own, so that it does not meet the notebook's styles."""
        from html import escape

        text = escape(page(self.table, self.recommend()), quote=True)
        return f'<iframe srcdoc="{text}" width="100%" height="720" style="border:0" title="comparison"></iframe>'
