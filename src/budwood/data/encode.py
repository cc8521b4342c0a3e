"""Rows to token ids: which tokens are learned, what is cut, and the counts that say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedTokenizerBase

    from budwood.data.batch import Example
    from budwood.data.corpus import Corpus, Turn

Template = Literal["auto", "chat", "plain"]


@dataclass(frozen=True, kw_only=True)
class EncodingReport:
    """Counts over one encoded split."""

    rows: int
    """Rows read."""
    examples: int
    """Examples made of them: without the empty rows, with the unrolled turns."""
    learned_tokens: int
    total_tokens: int
    rows_cut: int
    """Rows longer than max_length, which lost their end."""
    rows_empty: int
    """Rows left out because nothing to learn was left (their whole answer was cut, or they have none)."""
    rows_unrolled: int
    """Conversations split into one example per answer, because the template rewrites earlier turns."""
    duplicates: int
    """Rows that repeat an earlier row of the split."""
    longest: int
    """Tokens of the longest row before cutting: the max_length that cuts nothing."""
    percentiles: tuple[tuple[int, int], ...]
    """(percent, tokens) of the rows' lengths before cutting, for 50, 90 and 99."""
    max_length: int | None


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Examples of one split, how they were written, and the counts."""

    examples: list[Example]
    report: EncodingReport
    template: Literal["chat", "plain", "none"]
    """What 'auto' came to; 'none' for text and classification."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer in these examples: what generation has to stop at."""


def encode(
    corpus: Corpus,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int | None = None,
    stop_ids: Collection[int] = (),
) -> Encoded:
    """The examples of a split, and what became of its rows.

    template: 'chat' is the tokenizer's own template, 'plain' is `prompt answer<eos>`, 'auto' takes chat if there is one
    stop_ids: the model's `generation_config.eos_token_id`(s); the tokenizer's eos is always one
    Raises   BadConfig for a template the tokenizer does not have;
             BadData if a row cannot be rendered, or if nothing is left to learn (naming the max_length that works)
    """
    raise NotImplementedError


def encode_prompts(
    prompts: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int | None = None,
) -> list[Example]:
    """Examples without labels, ready for `collate(..., side="left")`: what precedes an answer, as in training.

    prompts: the turns to answer: `row.asked` of a corpus' rows, or `(Turn("user", "..."),)`
    max_length: longer prompts lose their beginning (the end is what is answered)
    """
    raise NotImplementedError
