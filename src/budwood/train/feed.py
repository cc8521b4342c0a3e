"""From examples to the padded pieces of each step, in an order that depends on the seed and the epoch only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from budwood.data import Batch, EpochOrder, Example, Masking, Position, collate
from budwood.train.config import Budget


def _row(row: int) -> str:
    return f"row {row}"


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Training examples with their order."""

    examples: Sequence[Example]
    order: EpochOrder
    pad_id: int
    """Token id that fills short rows."""
    where: Callable[[int], str] = _row
    """Says where the row of an `Example` stands, for messages."""
    masking: Masking | None = None
    """Hides other tokens in each epoch; None leaves examples as they are."""

    @classmethod
    def of(
        cls,
        examples: Sequence[Example],
        *,
        batch: int,
        pad_id: int,
        seed: int = 0,
        group_by_length: bool = True,
        where: Callable[[int], str] = _row,
        masking: Masking | None = None,
    ) -> Feed:
        """Steps of `batch` rows over the examples, shuffled by `seed`."""
        lengths = tuple(example.size for example in examples) if group_by_length else None
        order = EpochOrder(num_examples=len(examples), batch_size=batch, seed=seed, lengths=lengths)
        return cls(examples=examples, order=order, pad_id=pad_id, where=where, masking=masking)

    @property
    def steps_per_epoch(self) -> int:
        """Steps that visit every row once."""
        return self.order.batches_per_epoch

    def steps_of(self, budget: Budget) -> int | None:
        """Optimizer steps that a budget amounts to; None if it is a time."""
        tokens = max(1, sum(example.size for example in self.examples)) if budget.unit == "tokens" else 1
        return budget.steps(self.steps_per_epoch, tokens)

    def steps(self, start: Position) -> Iterator[tuple[Position, list[int]]]:
        """The steps from `start` on, each with the position after it and the examples it consists of."""
        return self.order.batches(start)

    def pieces(self, indices: Sequence[int], count: int, *, epoch: int = 0) -> list[Batch]:
        """The examples of a step as at most `count` batches of nearly equal numbers of rows, none empty."""
        count = min(count, len(indices))
        ends = [len(indices) * number // count for number in range(count + 1)]
        return [self.batch(indices[a:b], epoch=epoch) for a, b in zip(ends, ends[1:], strict=False)]

    def batch(self, indices: Sequence[int], *, epoch: int = 0) -> Batch:
        """These examples side by side, as they are in an epoch."""
        examples = [self.examples[index] for index in indices]
        if self.masking is None:
            return replace(collate(examples, self.pad_id), index=tuple(indices))
        seed = self.order.seed
        return collate([self.masking.for_epoch(one, seed=seed, epoch=epoch) for one in examples], self.pad_id)

    def longest(self, count: int) -> list[int]:
        """The `count` longest examples: what memory is measured on."""
        lengths = [example.size for example in self.examples]
        return sorted(range(len(lengths)), key=lambda index: -lengths[index])[:count]
