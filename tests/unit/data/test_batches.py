"""Batches and orders: padding loses nothing, an epoch visits all once, resuming changes nothing."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from budwood.data import IGNORE, EpochOrder, Example, Position, collate
from budwood.errors import BadConfig, BadData

ids = st.lists(st.integers(1, 99), min_size=1, max_size=9)


@given(st.lists(ids, min_size=1, max_size=5), st.sampled_from(["right", "left"]))
def test_padding_loses_nothing(rows, side):
    examples = [Example(ids=row, labels=[IGNORE, *row[1:]], row=n) for n, row in enumerate(rows)]
    batch = collate(examples, 0, side)
    width = max(map(len, rows))
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.labels.shape == (len(rows), width)
    assert batch.input_ids.dtype == batch.labels.dtype == torch.int64
    for place, row in enumerate(rows):
        real = batch.attention_mask[place].bool()
        assert batch.input_ids[place][real].tolist() == row
        assert (batch.labels[place][~real] == IGNORE).all() and (batch.input_ids[place][~real] == 0).all()
        assert real[0 if side == "right" else -1]
    assert batch.lengths == tuple(map(len, rows)) and batch.rows == tuple(range(len(rows)))
    assert batch.num_targets == sum(example.num_targets for example in examples)


def test_targets_are_counted_after_the_shift():
    example = Example(ids=[5, 6, 7], labels=[5, IGNORE, 7], row=0)
    assert example.num_targets == collate([example], 0).num_targets == 1


def test_classes_prompts_and_segments():
    batch = collate([Example(ids=[1, 2], label=3, types=[0, 1], row=4), Example(ids=[1], label=0, row=7)], 9)
    assert batch.labels.tolist() == [3, 0] and batch.num_targets == 2 and len(batch) == 2
    assert batch.inputs()["token_type_ids"].tolist() == [[0, 1], [0, 0]]
    prompt = collate([Example(ids=[1, 2], row=0), Example(ids=[3], row=1)], 9, "left", width=3)
    assert prompt.labels is None and prompt.num_targets == 0
    assert prompt.input_ids.tolist() == [[9, 1, 2], [9, 9, 3]]
    assert set(prompt.inputs()) == {"input_ids", "attention_mask"}
    assert prompt.to("cpu").rows == (0, 1)


def test_refused_batches():
    with pytest.raises(BadData, match="no rows"):
        collate([], 0)
    with pytest.raises(BadData, match="mixes"):
        collate([Example(ids=[1], row=0), Example(ids=[1], label=1, row=1)], 0)


orders = st.builds(
    lambda lengths, size, seed, grouped, shuffle: EpochOrder(
        num_examples=len(lengths),
        batch_size=size,
        seed=seed,
        lengths=tuple(lengths) if grouped else None,
        shuffle=shuffle,
    ),
    st.lists(st.integers(1, 50), min_size=1, max_size=60),
    st.integers(1, 7),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)


@given(orders, st.integers(0, 3))
def test_an_epoch_visits_every_example_once(order, epoch):
    batches = order.epoch(epoch)
    assert sorted(sum(batches, [])) == list(range(order.num_examples))
    assert len(batches) == order.batches_per_epoch
    assert all(len(batch) == order.batch_size for batch in batches[:-1])
    assert batches == order.epoch(epoch)


@settings(deadline=None)
@given(orders, st.integers(0, 25))
def test_resuming_changes_nothing(order, stop):
    straight = list(islice(order.batches(), 40))
    position = straight[stop - 1][0] if stop else Position()
    assert list(islice(order.batches(position), 40 - stop)) == straight[stop:]


def test_seed_and_epoch_change_the_order():
    orders = [EpochOrder(num_examples=50, batch_size=4, seed=seed).epoch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for n, a in enumerate(orders) for b in orders[:n])
    assert EpochOrder(num_examples=4, batch_size=3, shuffle=False).epoch(9) == [[0, 1, 2], [3]]


def test_the_order_is_the_same_on_every_machine():
    assert EpochOrder(num_examples=8, batch_size=4, seed=1).epoch(2) == [[7, 3, 0, 6], [2, 5, 4, 1]]


def test_grouping_by_length_saves_padding_and_still_shuffles():
    lengths = tuple((n * 37) % 100 + 1 for n in range(800))
    plain = EpochOrder(num_examples=800, batch_size=8)
    grouped = EpochOrder(num_examples=800, batch_size=8, lengths=lengths)

    def padding(batches):
        return sum(max(lengths[i] for i in batch) * len(batch) for batch in batches) - sum(lengths)

    assert padding(grouped.epoch(0)) < padding(plain.epoch(0)) / 5
    heads = [lengths[batch[0]] for batch in grouped.epoch(0)]
    assert heads != sorted(heads) and heads != sorted(heads, reverse=True)
    in_order = EpochOrder(num_examples=3, batch_size=2, lengths=(1, 3, 2), shuffle=False)
    assert in_order.epoch(0) == [[1, 2], [0]]


def test_refused_orders():
    with pytest.raises(BadData, match="no rows"):
        EpochOrder(num_examples=0, batch_size=1)
    with pytest.raises(BadConfig, match="at least 1"):
        EpochOrder(num_examples=1, batch_size=0)
    with pytest.raises(BadConfig, match="2 lengths for 1"):
        EpochOrder(num_examples=1, batch_size=1, lengths=(1, 2))
