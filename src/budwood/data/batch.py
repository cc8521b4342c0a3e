"""Token rows, padded batches of them, and the order in which an epoch visits them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, TypeAlias

from budwood.errors import BadConfig, BadData

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

IGNORE = -100
"""The label of a position that is not learned."""

Part: TypeAlias = tuple[int, int]
"""What a token stands for in its row: [begin, end), counted in characters of a text or in words."""

GROUP_BATCHES = 50
"""How many batches are sorted by length together when an order groups by length."""


@lru_cache(maxsize=1 << 16)
def part(begin: int, end: int) -> Part:
    """The part, one object for all tokens that stand for the same places: a data set has millions."""
    return (begin, end)


@dataclass(frozen=True, slots=True)
class Blank:
    """Where the class of a row is read from a language model's logits, and at which tokens."""

    place: int
    """Position in the example's ids: the mask, or for a decoder the last one."""
    words: tuple[tuple[int, ...], ...]
    """Ids of each class' words, in the order of the corpus' labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One tokenised row: `labels` for tokens, `label` for the row, `span` for a piece of it, none for a prompt."""

    ids: list[int]
    """Token ids, without padding; -1-j stands for the j-th pseudo token of a cloze."""
    labels: list[int] | None = None
    """As long as `ids`, not shifted: the id (or the tag, where there are parts) that is learned, IGNORE elsewhere."""
    label: int | None = None
    """Index into the corpus' labels."""
    target: list[int] | None = None
    """What an encoder-decoder writes after reading `ids`, all of it learned."""
    blank: Blank | None = None
    """For a cloze, where and how the class is read."""
    whole: list[int] | None = None
    """For masked language modelling, the ids before tokens were hidden; labels then stand where they are predicted."""
    span: tuple[int, int] | None = None
    """First and last token of what answers a question; (0, 0) where nothing does."""
    parts: list[Part | None] | None = None
    """What each token stands for, where words are tagged or answers are found: words, or characters of the text."""
    types: list[int] | None = None
    """Segment of each token (0 or 1), for sentence pairs on models that read it."""
    row: int
    """0-based index into the rows of its split: `corpus.rows(split)[row]`, `corpus.where(split, row)`."""

    @property
    def size(self) -> int:
        """Tokens that a model reads and, an encoder-decoder, writes."""
        return len(self.ids) + len(self.target or ())

    @property
    def num_targets(self) -> int:
        """How many targets the loss is a sum over: learned tokens after the shift, or 1 for a class or a span."""
        if self.target is not None:
            return len(self.target)
        if self.labels is not None:
            return sum(label != IGNORE for label in self.labels[int(self.shift) :])
        return int(self.label is not None or self.span is not None)

    @property
    def shift(self) -> bool:
        """Whether position t predicts label t + 1; False where each label stands in its own place."""
        return self.whole is None and self.parts is None and self.target is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Examples side by side, padded to the longest."""

    input_ids: Tensor
    """[B, T] int64."""
    attention_mask: Tensor
    """[B, T] int64, 1 at tokens and 0 at padding."""
    labels: Tensor | None
    """[B, T] int64 with IGNORE where nothing is learned, or [B] int64 classes, or None for prompts and spans."""
    spans: Tensor | None = None
    """[B, 2] int64 first and last token of what answers, for questions about a text."""
    token_type_ids: Tensor | None = None
    """[B, T] int64 segments; only where some example has them."""
    rows: tuple[int, ...]
    """`Example.row` of each."""
    lengths: tuple[int, ...]
    """Tokens of each, without padding."""
    shift: bool = True
    """`Example.shift`."""
    parts: tuple[list[Part | None], ...] = ()
    """`Example.parts` of each, where there are any."""
    target_lengths: tuple[int, ...] | None = None
    """Labels of each row where they are what an encoder-decoder writes; None where they belong to the input."""
    decoder_input_ids: Tensor | None = None
    """[B, T'] int64, the labels shifted as the model at hand wants them."""
    places: Tensor | None = None
    """[B] int64, for a cloze: the position whose logits tell the class."""
    words: Tensor | None = None
    """[classes, most words] int64, for a cloze: ids of each class' words, -1 after the last."""
    pseudo: int = 0
    """Pseudo tokens (ids below 0) in each row."""
    index: tuple[int, ...] = ()
    """Places of the rows among the examples that they were taken from, where these are the same in each epoch."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_targets(self) -> int:
        """Targets the loss is a sum over: learned tokens after the shift, or rows for classes and spans."""
        if self.labels is None:
            return 0 if self.spans is None else len(self)
        if self.labels.ndim == 1:
            return len(self.labels)
        return int((self.labels[:, int(self.shift) :] != IGNORE).sum())

    def inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of the model's forward, without labels."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            inputs["token_type_ids"] = self.token_type_ids
        if self.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = self.decoder_input_ids
        return inputs

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=there(self.labels),
            spans=there(self.spans),
            token_type_ids=there(self.token_type_ids),
            decoder_input_ids=there(self.decoder_input_ids),
            places=there(self.places),
            words=there(self.words),
        )

    def repeated(self, times: int) -> Batch:
        """The whole batch several times, one after the other."""

        def again(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.repeat(times, *(1,) * (tensor.ndim - 1))

        return replace(
            self,
            input_ids=self.input_ids.repeat(times, 1),
            attention_mask=self.attention_mask.repeat(times, 1),
            labels=again(self.labels),
            spans=again(self.spans),
            token_type_ids=again(self.token_type_ids),
            rows=self.rows * times,
            lengths=self.lengths * times,
            parts=self.parts * times,
            target_lengths=None if self.target_lengths is None else self.target_lengths * times,
            decoder_input_ids=again(self.decoder_input_ids),
            places=again(self.places),
        )

    def without_pseudo(self) -> Batch:
        """The same rows for a model that has nothing to put in the place of pseudo tokens."""
        if not self.pseudo:
            return self
        gone = self.input_ids < 0  # [B, T], as many in each row
        shape = (len(self), self.input_ids.shape[1] - self.pseudo)
        places = self.places
        if places is not None:
            places = places - gone.cumsum(dim=1).gather(1, places[:, None])[:, 0]
        return replace(
            self,
            input_ids=self.input_ids[~gone].view(shape),
            attention_mask=self.attention_mask[~gone].view(shape),
            lengths=tuple(length - self.pseudo for length in self.lengths),
            places=places,
            pseudo=0,
        )


def collate(
    examples: Sequence[Example],
    pad_id: int,
    side: Literal["right", "left"] = "right",
    *,
    width: int | None = None,
) -> Batch:
    """One batch: pads on the right for training, on the left for generation.

    width: pad to this many tokens instead of the longest example's.
    Raises BadData if there are no examples or they are of different kinds.
    """
    import torch  # here, so that looking at data does not wait for it

    if not examples:
        raise BadData("a batch of no rows was asked for; give at least one row")
    kinds = {(e.labels is None, e.label is None, e.span is None, e.shift, e.target is None) for e in examples}
    if len(kinds) > 1:
        raise BadData(
            "a batch mixes token labels, hidden tokens, tags, class labels, spans and prompts; "
            "batch each kind by itself"
        )
    pseudo, words = _alike(examples)
    lengths = tuple(len(example.ids) for example in examples)
    width = max(max(lengths), width or 0)

    def padded(rows: Sequence[Sequence[int]], fill: int, width: int = width, side: str = side) -> Tensor:
        block = torch.full((len(rows), width), fill, dtype=torch.int64)  # [B, T]
        for target, row in zip(block, rows, strict=True):
            start = 0 if side == "right" else width - len(row)
            target[start : start + len(row)] = torch.tensor(row, dtype=torch.int64)
        return block

    labels, targets = None, [example.target for example in examples if example.target is not None]
    if targets:
        labels = padded(targets, IGNORE, max(map(len, targets)), "right")  # [B, T']
    elif examples[0].labels is not None:
        labels = padded([example.labels or [] for example in examples], IGNORE)
    elif examples[0].label is not None:
        labels = torch.tensor([example.label for example in examples], dtype=torch.int64)  # [B]
    places = [e.blank.place + (width - len(e.ids)) * (side == "left") for e in examples if e.blank is not None]
    spans = [example.span for example in examples if example.span is not None]
    types = None
    if any(example.types for example in examples):
        types = padded([example.types or [0] * len(example.ids) for example in examples], 0)
    return Batch(
        input_ids=padded([example.ids for example in examples], pad_id),
        attention_mask=padded([[1] * length for length in lengths], 0),
        labels=labels,
        spans=torch.tensor(spans, dtype=torch.int64) if spans else None,
        token_type_ids=types,
        rows=tuple(example.row for example in examples),
        lengths=lengths,
        shift=examples[0].shift,
        parts=tuple(example.parts for example in examples if example.parts is not None),
        target_lengths=tuple(map(len, targets)) or None,
        places=torch.tensor(places, dtype=torch.int64) if places else None,
        words=padded(words, -1, max(map(len, words)), "right") if words else None,
        pseudo=pseudo,
    )


def _alike(examples: Sequence[Example]) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """(pseudo tokens, words of each class) that all examples have. Raises BadData where they differ."""
    kinds = {(sum(id < 0 for id in e.ids), () if e.blank is None else e.blank.words) for e in examples}
    if len(kinds) > 1:
        raise BadData("a batch mixes rows of several patterns; batch those of one pattern by themselves")
    return kinds.pop()


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where an order stands: the batch that comes next. Two integers, to be saved with a run's state."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochOrder:
    """Which examples make up each batch of each epoch: a pure function of these fields and the epoch.

    Nothing is remembered between epochs, so a run resumes at a `Position` exactly as if it had not stopped.
    The last batch of an epoch may be smaller; every example is visited once per epoch.
    """

    num_examples: int
    batch_size: int
    """Rows of one optimiser step; split it into smaller pieces where memory asks for that."""
    seed: int = 0
    lengths: tuple[int, ...] | None = None
    """Tokens of each example: given, rows of like length share a batch (less padding); None, plain shuffling."""
    shuffle: bool = True
    """False keeps the given order (or goes from long to short, where lengths are given): for evaluation."""

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise BadData("there are no rows to put in order; give at least one row")
        if self.batch_size < 1:
            raise BadConfig(f"batch is {self.batch_size}; it must be at least 1")
        if self.lengths is not None and len(self.lengths) != self.num_examples:
            raise BadConfig(f"{len(self.lengths)} lengths for {self.num_examples} examples; give one for each")

    @property
    def batches_per_epoch(self) -> int:
        """Batches of one epoch, the smaller last one included."""
        return -(-self.num_examples // self.batch_size)

    def epoch(self, epoch: int) -> list[list[int]]:
        """The batches of one epoch, each a list of indices into the examples."""
        dice = random.Random(f"budwood order {self.seed} {epoch}")
        indices = list(range(self.num_examples))
        if self.shuffle:
            dice.shuffle(indices)
        if self.lengths is not None:
            indices = self._by_length(indices, self.lengths)
        size = self.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        if self.lengths is not None and self.shuffle:
            whole, rest = batches[: self.num_examples // size], batches[self.num_examples // size :]
            dice.shuffle(whole)
            batches = whole + rest
        return batches

    def batches(self, start: Position = Position()) -> Iterator[tuple[Position, list[int]]]:  # noqa: B008
        """Batches without end from `start` on, each with the position to resume at once it is done."""
        epoch, done = start.epoch, start.batch
        while True:
            batches = self.epoch(epoch)
            for number in range(done, len(batches)):
                last = number + 1 == len(batches)
                yield Position(epoch + 1, 0) if last else Position(epoch, number + 1), batches[number]
            epoch, done = epoch + 1, 0

    def _by_length(self, indices: list[int], lengths: tuple[int, ...]) -> list[int]:
        """Sorted from long to short: in groups of some batches when shuffling, all together otherwise."""
        group = GROUP_BATCHES * self.batch_size if self.shuffle else len(indices)
        ordered: list[int] = []
        for start in range(0, len(indices), group):
            ordered += sorted(indices[start : start + group], key=lambda i: (-lengths[i], i))
        return ordered
