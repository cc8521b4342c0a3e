"""Placeholder until the report is merged."""

from collections.abc import Sequence

from budwood.records import RunFolder
from budwood.shrink.stage import Stage


def write_report(folder: RunFolder, stages: Sequence[Stage]) -> None:
    """Nothing yet."""
