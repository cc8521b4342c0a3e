"""Examples side by side, for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from budwood.data import Batch, Example, collate
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def batches(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, size: int) -> Iterator[Batch]:
    """All examples, those of like length together, the longest first: what does not fit shows at once."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise BadConfig("this tokenizer has neither a pad nor an eos token to fill rows with; set tokenizer.pad_token")
    ordered = sorted(examples, key=lambda example: -example.size)
    for start in range(0, len(ordered), size):
        yield collate(ordered[start : start + size], int(pad))
