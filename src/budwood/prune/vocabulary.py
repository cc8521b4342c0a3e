"""Tokens that some texts never need are taken out of a model and its tokenizer; what is left is proved equal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from budwood.errors import BadConfig, VerificationFailed
from budwood.evaluate.inputs import forward_arguments
from budwood.evaluate.mode import evaluating
from budwood.prune.ids import ids_in
from budwood.prune.rows import fewer_rows, rows_of
from budwood.prune.tokenizer import differing, fewer_tokens, touching
from budwood.prune.tokens import Texts, Used, backend, chunks, used

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRIES = 2
"""Once with the tokens that texts use, once with all that differing texts touch."""
TOKENS = 32
"""Length of the text on which the two models are compared,"""
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""and by how much they may differ, as a share of the largest output; in 16 bits by 0.03."""


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    """A model and its tokenizer without the tokens that some texts do not need."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    kept: tuple[int, ...]
    """Ids of the old vocabulary, ascending; the place of each is its new id."""
    used: Used
    """What the texts use."""
    rows: tuple[int, int]
    """Tokens that the model had rows for, and has."""
    parameters: tuple[int, int]
    """Of the model, before and after."""

    @property
    def is_whole(self) -> bool:
        """True where every token is needed: model and tokenizer are then the ones that were given."""
        return self.rows[0] == self.rows[1]

    def __str__(self) -> str:
        before, after = self.rows
        unknown = f"; {self.used.unknown:,} texts have parts that it cannot encode" if self.used.unknown else ""
        if self.is_whole:
            return f"the vocabulary stays whole: all {before:,} tokens are needed{unknown}"
        return (
            f"vocabulary {before:,} -> {after:,} tokens (the texts use {self.used.different:,}), "
            f"{self.parameters[1] / self.parameters[0]:.0%} of the parameters; "
            f"{self.used.texts:,} texts encode as before{unknown}"
        )


def trim(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Trimmed:
    """A new model and a new tokenizer with the tokens that the texts need, proved on them; the old ones are left alone.

    texts:  as the model reads them, chat template and all
    Raises  BadConfig for a model or tokenizer whose vocabulary cannot be cut, WrongOrder where adapters are attached,
            BadData where there are no texts; VerificationFailed where a text would be encoded otherwise, or the new
            model answers otherwise.
    """
    rows = rows_of(model)
    found = used(tokenizer, texts)
    if found.kept[-1] >= rows:
        raise BadConfig(
            f"the tokenizer has {found.vocabulary:,} tokens and the model rows for {rows:,}, so it cannot read token "
            f"{found.kept[-1]}; use the model's own tokenizer"
        )
    kept = tuple(sorted({*found.kept, *ids_in(model, rows)}))
    before = model.num_parameters()
    if len(kept) == rows:
        return Trimmed(
            model=model, tokenizer=tokenizer, kept=kept, used=found, rows=(rows, rows), parameters=(before, before)
        )
    kept, fewer = _encoding(tokenizer, texts, kept)
    smaller = fewer_rows(model, kept)
    _check_answers(model, smaller, kept, next(chunks(texts)), fewer)
    return Trimmed(
        model=smaller,
        tokenizer=fewer,
        kept=kept,
        used=found,
        rows=(rows, len(kept)),
        parameters=(before, smaller.num_parameters()),
    )


def _encoding(
    tokenizer: PreTrainedTokenizerBase, texts: Texts, kept: tuple[int, ...]
) -> tuple[tuple[int, ...], PreTrainedTokenizerBase]:
    """(ids, a tokenizer with them that encodes the texts as before); what differing texts touch is kept as well."""
    wrong: list[str] = []
    for _ in range(TRIES):
        kept = tuple(sorted({*kept, *touching(tokenizer, wrong)})) if wrong else kept
        smaller = fewer_tokens(tokenizer, kept)
        wrong = list(differing(tokenizer, smaller, {old: new for new, old in enumerate(kept)}, texts))
        if not wrong:
            return kept, smaller
    raise VerificationFailed(
        f"with {len(kept):,} of its tokens the tokenizer encodes {len(wrong):,} texts otherwise than before, "
        f"{wrong[0][:80]!r} among them; nothing was changed; leave the vocabulary whole"
    )


def _check_answers(
    model: PreTrainedModel,
    smaller: PreTrainedModel,
    kept: Sequence[int],
    texts: list[str],
    fewer: PreTrainedTokenizerBase,
) -> None:
    """Raises VerificationFailed where the two models say different things of the first text."""
    place = {"device": model.device}
    new = torch.tensor([backend(fewer).encode(max(texts, key=len)).ids[:TOKENS]], **place)
    old = torch.tensor(kept, **place)[new]
    with evaluating(model), evaluating(smaller):
        was, now = _answer(model, old), _answer(smaller, new)
    if was.shape != now.shape:
        was = was[..., torch.tensor(kept, **place)]
    difference = float((was.float() - now.float()).abs().max() / was.float().abs().max())
    if not difference <= TOLERANCE.get(was.dtype, 0.03):
        raise VerificationFailed(
            f"the {type(model).__name__} with fewer tokens answers otherwise than before (by {difference:.1e} of its "
            "largest output), so it depends on the vocabulary in some other way; nothing was changed; leave it whole"
        )


def _answer(model: PreTrainedModel, ids: Tensor) -> Tensor:
    takes = forward_arguments(type(model).forward)
    decoder = {"decoder_input_ids": ids} if "decoder_input_ids" in takes else {}
    output: Tensor = model(input_ids=ids, **decoder)[0]
    return output
