"""Every error Budwood raises on purpose: one base class, one child per thing a caller can do about it.

A message says what was found, what was expected, and what to type or change next.
`exit_code` is what the command line returns for it (see docs/howto/exit-codes.md).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


class BudwoodError(Exception):
    """Base of every error of ours."""

    exit_code: ClassVar[int] = 1


class BadConfig(BudwoodError):
    """A setting, flag, field or method name is wrong: change what was typed."""

    exit_code = 2


class NoSuchSite(BadConfig):
    """The targets match no place in this model."""


class NoSuchAdapter(BadConfig):
    """No adapter of that name is attached, or the name is taken."""


class CannotFold(BadConfig):
    """This adapter cannot be merged into the base's weights."""


class WrongOrder(BadConfig):
    """Something was done before what has to come first (load, quantise, attach, compile, shard)."""


class BadData(BudwoodError):
    """The data cannot be learned from as it is: mend the rows that the message names."""

    exit_code = 3


class NotAvailable(BudwoodError):
    """A model, a data set or an optional package is not to be had."""

    exit_code = 4


class BadCheckpoint(NotAvailable):
    """A saved adapter or state is damaged, incomplete, or was made for another base."""


class OutOfMemory(BudwoodError):
    """The run does not fit in memory."""

    exit_code = 5


class Diverged(BudwoodError):
    """The loss or a gradient stopped being a finite number."""

    exit_code = 6


class VerificationFailed(BudwoodError):
    """What was trained, saved or merged is not what runs."""

    exit_code = 7


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A sentence for the end of a message: the nearest of `choices` to `word`, or all of them."""
    known = sorted(choices)
    near = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
