"""What encoding gives: the examples, and the counts that say what became of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from budwood.data.checks import repeats

if TYPE_CHECKING:
    from budwood.data.batch import Example
    from budwood.data.corpus import Row


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """Counts over one encoded split."""

    rows: int
    """Rows read."""
    examples: int
    """Examples made of them: without the empty rows, with the unrolled turns."""
    learned_tokens: int
    """Targets of the loss: learned tokens, or rows for classification."""
    total_tokens: int
    """Tokens of all examples, without padding."""
    rows_cut: int
    """Rows longer than max_length, which lost their end."""
    rows_empty: int
    """Rows left out because nothing to learn was left (their whole answer was cut, or they have none)."""
    rows_unrolled: int
    """Conversations made into one example per answer, because the template rewrites earlier turns."""
    rows_windowed: int
    """Texts longer than max_length, which are read in several windows."""
    duplicates: int
    """Rows that repeat an earlier row of the split."""
    longest: int
    """Tokens of the longest example before cutting: the max_length that cuts nothing."""
    percentiles: tuple[tuple[int, int], ...]
    """(percent, tokens) of the lengths before cutting, for 50, 90 and 99."""
    max_length: int | None
    """The limit that held: the one asked for, else the tokenizer's own, else None."""

    def describe(self) -> tuple[str, ...]:
        """Lines for people: what is learned, how long rows are, and whatever was lost or repeated."""
        share = self.learned_tokens / max(1, self.total_tokens)
        lengths = ", ".join(f"{percent}% within {tokens}" for percent, tokens in self.percentiles)
        lines = [
            f"{self.rows} rows, {self.learned_tokens} learned of {self.total_tokens} tokens ({share:.0%})",
            f"tokens per row: {lengths}, longest {self.longest}",
        ]
        if self.rows_cut:
            whole = f"max_length {self.longest} keeps every row whole"
            lines.append(f"{self.rows_cut} rows cut at max_length {self.max_length}; {whole}")
        if self.rows_empty:
            lines.append(f"{self.rows_empty} rows left out: nothing to learn is left in them")
        if self.rows_unrolled:
            lines.append(f"{self.rows_unrolled} conversations became one example per answer (chat template)")
        if self.rows_windowed:
            lines.append(f"{self.rows_windowed} texts are longer than max_length and are read in several windows")
        if self.duplicates:
            lines.append(f"{self.duplicates} rows repeat an earlier one")
        return tuple(lines)


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples of one split, how they were written, and the counts."""

    examples: list[Example]
    report: EncodingReport
    template: Literal["chat", "plain", "none"]
    """What 'auto' came to; 'none' for text and classification."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer in these examples: what generation has to stop at. Empty for classification."""


def count(
    rows: Sequence[Row],
    kept: Sequence[Example],
    examples: Sequence[Example],
    lengths: Sequence[int],
    max_length: int | None,
) -> EncodingReport:
    """The counts over one split.

    kept:    the examples in which something is learned, out of `examples`
    lengths: tokens of each of `examples` before it was cut
    """
    ordered = sorted(lengths)
    seen = [example.row for example in examples]
    again = len({a for a, b in zip(seen, seen[1:], strict=False) if a == b})
    in_windows = any(example.span for example in examples)
    cut = {row for row, n in zip(seen, lengths, strict=True) if max_length is not None and n > max_length}
    return EncodingReport(
        rows=len(rows),
        examples=len(kept),
        learned_tokens=sum(example.num_targets for example in kept),
        total_tokens=sum(example.size for example in kept),
        rows_cut=len(cut),
        rows_empty=len(rows) - len({example.row for example in kept}),
        rows_unrolled=0 if in_windows else again,
        rows_windowed=again if in_windows else 0,
        duplicates=len(repeats(rows)),
        longest=ordered[-1],
        percentiles=tuple((p, ordered[max(0, -(-len(ordered) * p // 100) - 1)]) for p in (50, 90, 99)),
        max_length=max_length,
    )
