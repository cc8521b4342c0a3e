"""What prompts and prefixes start from: a text, names of classes, or words of the vocabulary, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Method
from budwood.core.entrance import input_site
from budwood.errors import BadConfig

COMMON = 5000
"""Words are drawn from the first ids of a vocabulary, which tokenizers give to frequent pieces (Lester et al. 2021)."""


@dataclass(frozen=True, kw_only=True)
class FromWords(Method):
    """A method that trains rows for positions which hold no text."""

    weight_decay: ClassVar[float] = 0.0
    sizes_to_try: ClassVar[tuple[str, tuple[float, ...]]] = ("length", (20, 5, 50))

    length: int = 20
    """Rows in front of the text."""
    init: Literal["words", "text", "labels", "random"] = "words"
    """What it starts as: drawn words, `text`, names of the classes, or random numbers (as the paper's code)."""
    text: str | None = None
    """The text to start as, repeated up to `length` tokens."""
    ids: tuple[int, ...] = ()
    """Token ids of the text or the class names; found by the tokenizer when empty."""
    sizes: tuple[int, ...] = ()
    """How many of `ids` make a row (their mean does); one each when empty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise BadConfig(f"{self.name}.length is {self.length}; it must be at least 1")
        if (self.text is not None) != (self.init == "text") and not self.ids:
            found = "init=text without a text" if self.text is None else f"a text, and init={self.init}"
            raise BadConfig(f"{self.name}: {found}; write both, as init=text,text='Summarise:'")
        if self.sizes and sum(self.sizes) != len(self.ids):
            raise BadConfig(f"{self.name}: sizes add up to {sum(self.sizes)}, and ids are {len(self.ids)}")
        if min(self.sizes, default=1) < 1:
            raise BadConfig(f"{self.name}: sizes are {self.sizes}; a row is made of at least one token")
        rows = len(self.sizes or self.ids)
        if rows > self.length:
            what = "the text" if self.init == "text" else "what it starts from"
            raise BadConfig(f"{self.name}: {what} is {rows} tokens and length {self.length}; choose length={rows}")

    @property
    def is_additive(self) -> bool:
        """Rows in front of a text are no sum."""
        return False

    @property
    def is_stackable(self) -> bool:
        """Rows of several adapters stand side by side."""
        return True

    def worded(self, tokenizer: Any, labels: Sequence[str]) -> Self:
        """With token ids of the text or the classes, or of drawn words that are words."""
        if self.ids or self.init == "random" or (self.init == "words" and tokenizer is None):
            return self
        if tokenizer is None:
            raise BadConfig(f"{self.name} with init={self.init} needs a tokenizer: attach(..., tokenizer=tokenizer)")
        if self.init == "words":
            return replace(self, ids=_drawn(_words(tokenizer), self.length))
        if self.init == "labels" and not labels:
            raise BadConfig(
                f"{self.name}: init=labels needs names of classes: rows with labels, or in Python "
                "attach(..., labels=('no', 'yes')); other rows start well from init=words"
            )
        pieces = [_pieces(tokenizer, text) for text in (labels if self.init == "labels" else (str(self.text),))]
        if self.init == "text":
            return replace(self, ids=tuple(pieces[0]))
        rows = pieces[: self.length]
        spare = _drawn(_words(tokenizer), self.length - len(rows))
        ids = tuple(i for row in rows for i in row) + spare
        return replace(self, ids=ids, sizes=tuple(len(row) for row in rows) + (1,) * len(spare))

    def row_ids(self, vocabulary: int) -> list[list[int]]:
        """Token ids of each of the `length` rows. Raises BadConfig where the vocabulary has no such id."""
        ids = self.ids or _drawn(range(min(vocabulary, COMMON)), self.length)
        strange = next((number for number in ids if not 0 <= number < vocabulary), None)
        if strange is not None:
            raise BadConfig(f"{self.name}: ids hold {strange}, and the vocabulary is {vocabulary} tokens")
        ends = torch.tensor(self.sizes or (1,) * len(ids)).cumsum(0).tolist()
        rows = [list(ids[end - size : end]) for end, size in zip(ends, self.sizes or (1,) * len(ids), strict=True)]
        return [rows[place % len(rows)] for place in range(self.length)]

    def embedded(self, embedding: nn.Module, vocabulary: int) -> Tensor:
        """What the model's input embedding gives for the rows: [length, d]."""
        device = next(embedding.parameters()).device
        with torch.no_grad():
            rows = [embedding.forward(torch.tensor(ids, device=device)).mean(dim=0) for ids in self.row_ids(vocabulary)]
        return torch.stack(rows).float()


@dataclass(frozen=True, kw_only=True)
class InText(FromWords):
    """A method that trains embeddings at positions of the text of its own."""

    learning_rate = 3e-2
    rates = (1e-2, 3e-2, 1e-1)
    rates_why = "a prompt's rate goes with the scale of the model's embeddings, which differs by orders of magnitude"
    unused: ClassVar[tuple[str, ...]] = ("targets", "layers")
    place: Literal["front", "after-first", "inside"] | None = None
    """Where they stand: in front, behind the first token ([CLS]), or wherever the text has pseudo tokens; by default
    behind the first token in encoders, and in front in every other model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets or self.layers is not None:
            raise BadConfig(
                f"{self.name} acts at the input embedding alone; leave targets and layers out, or use prefix-tuning"
            )

    @property
    def positions_taken(self) -> int:
        """Pseudo tokens inside a text are a part of it."""
        return 0 if self.place == "inside" else self.length

    def resolved(self, model: nn.Module, anatomy: Anatomy) -> Self:
        """With a place."""
        if self.place is not None:
            return self
        reads_first = {site.stack for site in anatomy.sites if site.layer is not None} == {"encoder"}
        return replace(self, place="after-first" if reads_first else "front")

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """The input embedding: of the encoder, where there are two. Raises BadConfig where `trained` names it."""
        site = input_site(model, anatomy)
        if any(other.path == site.path for other in self.trained_sites(anatomy)):
            raise BadConfig(
                f"{self.name}: trained names {site.path}, where the prompt itself stands; leave it out of trained"
            )
        return (site,)


def starting_rows(site: Site, base: nn.Module, method: FromWords) -> Tensor:
    """What a prompt starts as: [length, d] float32, no view of the embedding table."""
    weight = base.get_parameter("weight")
    if weight.is_meta:
        return torch.empty(method.length, site.out_features, device="meta")
    if method.init != "random":
        return method.embedded(base, site.in_features)
    return torch.randn(method.length, site.out_features) * float(weight.detach().float().std())


def _words(tokenizer: Any) -> Sequence[int]:
    """Frequent ids that stand for something in a text."""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), COMMON))))
    found = [
        number
        for number, token in enumerate(tokens)
        if number not in special and isinstance(token, str) and any(map(str.isalpha, token)) and token[0] not in "[<"
    ]
    return found or range(min(len(tokenizer), COMMON))


def _drawn(words: Sequence[int], count: int) -> tuple[int, ...]:
    """Without repeating any, as long as there are enough."""
    order = torch.cat([torch.randperm(len(words)) for _ in range(1 + count // max(len(words), 1))])[:count]
    return tuple(words[int(place)] for place in order)


def _pieces(tokenizer: Any, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise BadConfig(f"the tokenizer makes nothing of {text!r}; write a text with words in it")
    return [int(i) for i in ids]
