"""`budwood train`."""

from __future__ import annotations

from budwood.cli.options import Machine, Talk, Training


def train(
    model: str | None = None, data: str | None = None, /, *,
    training: Training | None = None, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Train one method on one data set.

    Parameters
    ----------
    model: str
        A folder, a hub id, a .gguf file or a demo name.
    data: str
        A file, a folder of splits, a hub id or a demo name.
    """
    print(training, talk)
    return 0
