"""Hidden words, filled in: what people are shown of a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from budwood.data import IGNORE, Example, Masking, collate
from budwood.errors import BadConfig
from budwood.evaluate.mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def gaps(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> list[Example]:
    """Texts with some words hidden, the same ones every time. Raises BadConfig where there is no mask token."""
    masking = Masking.of(tokenizer)
    encoded = masking.encode(texts, tokenizer, max_length=max_length)
    return [masking.open(masking.fixed(Example(ids=ids, row=row))) for row, ids in enumerate(encoded)]


def typed(text: str, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None) -> Example:
    """A text in which someone wrote the mask token. Raises BadConfig where nobody did, or it is too long."""
    masking = Masking.of(tokenizer)
    (ids,) = masking.encode([text], tokenizer)
    if masking.mask_id not in ids:
        mask = tokenizer.mask_token
        raise BadConfig(f"{text[:60]!r} hides no word; write {mask} in the place of one, as in 'The sky is {mask} .'")
    if max_length is not None and len(ids) > max_length:
        raise BadConfig(f"{text[:60]!r} has {len(ids)} tokens and the model reads {max_length}; shorten it")
    return Example(ids=ids, labels=[id if id == masking.mask_id else IGNORE for id in ids], whole=ids, row=0)


def fill(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], *, batch_size: int = 8
) -> list[str]:
    """The likeliest word for each gap of each example, in order, separated by commas."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.mask_token_id
    found: list[str] = []
    with evaluating(model):
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size], int(pad)).to(model.device)
            assert batch.labels is not None
            likeliest = model(**batch.inputs()).logits.argmax(dim=-1)  # [B, T]
            chosen = batch.labels != IGNORE
            found += [_words(row[places].tolist(), tokenizer) for row, places in zip(likeliest, chosen, strict=True)]
    return found


def shown(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with its gaps, without other special tokens."""
    special = set(tokenizer.all_special_ids) - {tokenizer.mask_token_id}
    return str(tokenizer.decode([id for id in example.ids if id not in special])).strip()


def hidden(example: Example, tokenizer: PreTrainedTokenizerBase) -> str:
    """The words that stood in the gaps, separated by commas."""
    return _words([label for label in example.labels or () if label != IGNORE], tokenizer)


def _words(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    return ", ".join(str(tokenizer.decode([id])).strip() for id in ids)
