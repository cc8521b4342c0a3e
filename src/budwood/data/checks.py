"""Repeats, leakage between splits, and splitting by group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from budwood.data.corpus import Corpus


def with_validation(
    corpus: Corpus, *, fraction: float = 0.1, seed: int = 0, group: str | None = None
) -> Corpus:
    """The corpus with a validation split: its own, or `fraction` of train carved off by group and noted.

    group: a column whose equal values stay together; None keeps rows with the same prompt or text together
    """
    raise NotImplementedError
