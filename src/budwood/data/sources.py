"""Where data comes from: files, folders of splits, hub ids and dataset objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from budwood.data.corpus import Corpus, Task


def read(
    source: str | Path | object,
    *,
    columns: Mapping[str, str] | None = None,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
) -> Corpus:
    """The corpus in a file, a folder of splits, a hub id ('owner/name' or 'owner/name:config') or a Dataset.

    columns: canonical name to the column that holds it, {'prompt': 'q', 'completion': 'a'}; see `parse_columns`
    task:    None takes what the columns say: text with a label is classification
    labels:  the class names of a trained model, in order; None takes those of the train split
    Raises   NotAvailable if it is not to be had; BadData naming file and row; BadConfig for wrong columns
    """
    raise NotImplementedError
