"""Masked language modelling: which tokens are hidden, and what stands in their place (Devlin et al. 2018)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from budwood.data.batch import IGNORE, Example
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedTokenizerBase

SHARE = 0.15
"""Of the tokens that are not special, so many are chosen, and at least one."""
MASKED, RANDOM = 0.8, 0.1
"""Of the chosen tokens, so many become the mask token and so many a random one; the rest stay as they are."""


@dataclass(frozen=True)
class Masking:
    """Hides tokens: the same ones for the same seed, epoch and row, in whatever order rows come."""

    mask_id: int
    """What stands in the place of most hidden tokens."""
    words: Sequence[int]
    """Tokens that may be hidden, and that random ones are drawn from: all but the special ones."""
    known: Collection[int]
    """The same, to look up."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Masking:
        """For a tokenizer. Raises BadConfig where it has no mask token."""
        if tokenizer.mask_token_id is None:
            raise BadConfig(
                f"{type(tokenizer).__name__} has no mask token, so no token can be hidden: masked-lm needs an encoder "
                "such as BERT with its own tokenizer; a decoder learns plain text with --task causal-lm"
            )
        special = set(tokenizer.all_special_ids)
        words = tuple(number for number in range(len(tokenizer)) if number not in special)
        return cls(int(tokenizer.mask_token_id), words, frozenset(words))

    def encode(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
    ) -> list[list[int]]:
        """Texts as an encoder reads them, with its special tokens; max_length: longer ones lose their end."""
        ids: list[list[int]] = tokenizer(
            list(texts), truncation=max_length is not None, max_length=max_length, verbose=False
        )["input_ids"]
        return ids

    def for_epoch(self, example: Example, *, seed: int, epoch: int) -> Example:
        """The example with the tokens hidden that this epoch hides."""
        return self._hidden(example, f"budwood masks {seed} {epoch} {example.row}")

    def fixed(self, example: Example) -> Example:
        """The example with tokens hidden that depend on its own tokens only: what scores are computed on."""
        whole = example.ids if example.whole is None else example.whole
        return self._hidden(example, f"budwood masks {whole}")

    def open(self, example: Example) -> Example:
        """The example with every chosen token shown as the mask, for people."""
        labels = example.labels or []
        shown = [id if label == IGNORE else self.mask_id for id, label in zip(example.ids, labels, strict=True)]
        return replace(example, ids=shown)

    def _hidden(self, example: Example, seed: str) -> Example:
        whole = example.ids if example.whole is None else example.whole
        places = [place for place, id in enumerate(whole) if id in self.known]
        dice = random.Random(seed)
        chosen = dice.sample(places, min(len(places), max(1, round(SHARE * len(places)))))
        ids, labels = list(whole), [IGNORE] * len(whole)
        for place in chosen:
            labels[place] = whole[place]
            draw = dice.random()
            if draw < MASKED:
                ids[place] = self.mask_id
            elif draw < MASKED + RANDOM:
                ids[place] = dice.choice(self.words)
        return replace(example, ids=ids, labels=labels, whole=whole)
