"""Which tokens are hidden, how often, and what stands in their place."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import pytest

from budwood.assets import load as assets
from budwood.data import IGNORE, TASKS, Example, Masking, collate
from budwood.errors import BadConfig, BadData
from budwood.evaluate import METRICS, gaps, hidden, shown, typed
from budwood.evaluate.task import DEFAULT
from budwood.train.card import PIPELINES
from budwood.train.feed import Feed
from budwood.train.objective import OBJECTIVES
from tiny_tokenizers import make_tokenizer


def with_mask() -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|im_start|>"})
    return tokenizer


MASK = 3
WORDS = Masking.of(with_mask())


def rows(count: int, length: int) -> list[Example]:
    return [
        Example(ids=[0, *(20 + (7 * row + 3 * place) % 300 for place in range(length)), 1], row=row)
        for row in range(count)
    ]


def test_shares_are_those_of_bert() -> None:
    kinds: Counter[str] = Counter()
    for example in rows(400, 100):
        found = WORDS.for_epoch(example, seed=0, epoch=0)
        assert found.labels is not None and found.whole == example.ids and len(found.ids) == 102
        assert found.num_targets == 15 and found.labels[0] == found.labels[-1] == IGNORE
        for new, old, label in zip(found.ids, example.ids, found.labels, strict=True):
            if label == IGNORE:
                assert new == old
            else:
                assert label == old
                kinds["mask" if new == MASK else "same" if new == old else "random"] += 1
                assert new == MASK or new >= 7  # never another special token
    total = sum(kinds.values())
    assert abs(kinds["mask"] / total - 0.8) < 0.02
    assert abs(kinds["random"] / total - 0.1) < 0.015 and abs(kinds["same"] / total - 0.1) < 0.015


def test_every_place_is_hidden_as_often_as_any_other() -> None:
    (example,) = rows(1, 20)
    counts = Counter(
        place
        for epoch in range(2000)
        for place, label in enumerate(WORDS.for_epoch(example, seed=3, epoch=epoch).labels or ())
        if label != IGNORE
    )
    assert set(counts) == set(range(1, 21)) and all(220 < count < 380 for count in counts.values())


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_a_short_row_hides_at_least_one(length: int) -> None:
    for example in rows(20, length):
        assert WORDS.fixed(example).num_targets == max(1, round(0.15 * length))


def test_special_tokens_alone_hide_nothing() -> None:
    assert WORDS.fixed(Example(ids=[0, 2, 1], row=0)).num_targets == 0


def test_masks_depend_on_seed_epoch_and_row_alone() -> None:
    one, two = rows(2, 40)
    first = WORDS.for_epoch(one, seed=1, epoch=2)
    assert WORDS.for_epoch(WORDS.for_epoch(one, seed=9, epoch=9), seed=1, epoch=2) == first
    others = [WORDS.for_epoch(one, seed=2, epoch=2), WORDS.for_epoch(one, seed=1, epoch=3)]
    assert all(other.labels != first.labels for other in others)
    same_text = Example(ids=one.ids, row=two.row)
    assert WORDS.for_epoch(same_text, seed=1, epoch=2).labels != first.labels
    assert WORDS.fixed(same_text).labels == WORDS.fixed(one).labels == WORDS.fixed(first).labels


def test_the_feed_hides_anew_in_each_epoch_whatever_the_pieces() -> None:
    examples = [WORDS.fixed(example) for example in rows(6, 30)]
    feed = Feed.of(examples, batch=6, pad_id=2, seed=5, masking=WORDS)
    (whole,) = feed.pieces(range(6), 1, epoch=1)
    parts = feed.pieces(range(6), 3, epoch=1)
    assert whole.shift is False and whole.num_targets == sum(part.num_targets for part in parts)
    assert whole.input_ids.tolist() == [row for part in parts for row in part.input_ids.tolist()]
    assert feed.batch(range(6), epoch=2).input_ids.tolist() != whole.input_ids.tolist()


def test_hidden_and_other_rows_do_not_share_a_batch() -> None:
    example = WORDS.fixed(rows(1, 5)[0])
    with pytest.raises(BadData, match="mixes token labels, hidden tokens"):
        collate([example, Example(ids=[5, 6], labels=[5, 6], row=1)], 2)


def test_the_first_token_counts_where_nothing_is_shifted() -> None:
    example = Example(ids=[MASK, 9], labels=[8, IGNORE], whole=[8, 9], row=0)
    assert example.num_targets == collate([example], 2).num_targets == 1


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(BadConfig, match=r"has no mask token.*--task causal-lm"):
        Masking.of(make_tokenizer())


def test_gaps_for_people() -> None:
    tokenizer = with_mask()
    (gap,) = gaps(["There is a place in the city centre ."], tokenizer)
    text, right = shown(gap, tokenizer), hidden(gap, tokenizer)
    assert text.count("<|im_start|>") == gap.num_targets and "</s>" not in text
    assert all(word in "There is a place in the city centre ." for word in right.split(", "))
    asked = typed("There is a <|im_start|> in the city", tokenizer)
    assert asked.num_targets == 1 and asked.whole == asked.ids
    with pytest.raises(BadConfig, match=r"'There is .*' hides no word; write <\|im_start\|>"):
        typed("There is a place", tokenizer)


def test_every_list_of_tasks_has_every_task() -> None:
    for found in (get_args(assets.Task), OBJECTIVES, METRICS, DEFAULT, PIPELINES):
        assert set(found) == set(TASKS)
