"""What the tests of reading share: an expected refusal, and a conversation as tuples."""

from __future__ import annotations

import pytest

from budwood import data


def refusal(error: type[Exception], *words: str, **reading: object) -> str:
    with pytest.raises(error) as caught:
        data.read(**reading)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    return message


def turns(corpus: data.Corpus, split: str = "train", row: int = 0) -> list[tuple[str, str, bool]]:
    value = corpus.rows(split)[row].value
    assert isinstance(value, data.Conversation)
    return [(turn.role, turn.content, turn.learned) for turn in value.turns]
