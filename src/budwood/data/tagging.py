"""Words and their tags: from a row to a label at the first token of each word."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from budwood.data.batch import IGNORE, Example, Part, part
from budwood.data.corpus import Tagged
from budwood.data.fields import BadValue, Fields, clean
from budwood.data.tags import OUTSIDE
from budwood.errors import BadConfig, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_tagged(fields: Fields) -> Tagged:
    """Words as they are, and a place for the number of each tag, which `numbered` fills in."""
    words, tags = fields.get("tokens"), fields.get("tags")
    for name, found in (("tokens", words), ("tags", tags)):
        if not isinstance(found, list) or not found:
            raise BadValue(f"{name} is {str(found)[:40]!r}, expected a list with one entry for each word")
    assert isinstance(words, list) and isinstance(tags, list)
    for place, word in enumerate(words):
        if not isinstance(word, str) or not word.strip():
            raise BadValue(f"tokens[{place}] is {word!r}, expected a word; leave empty ones out, with their tags")
    if len(words) != len(tags):
        raise BadValue(
            f"it has {len(words)} tokens and {len(tags)} tags; write one tag for each token, {OUTSIDE} for words "
            "that belong to nothing"
        )
    return Tagged(tuple(clean(word, "tokens") for word in words), (-1,) * len(words))


def tag_names(tags: object, names: Sequence[str] | None = None) -> list[str]:
    """A row's tags as text; whole numbers are places in `names`. Raises BadValue."""
    found = []
    for place, tag in enumerate(tags if isinstance(tags, list) else []):
        if isinstance(tag, int) and not isinstance(tag, bool):
            if names is None or not 0 <= tag < len(names):
                raise BadValue(
                    f"tags[{place}] is the number {tag}, and nothing says what it stands for; write the tag's name, "
                    "such as B-PER, or give a datasets.Dataset whose features name the tags"
                )
            tag = names[tag]
        if not isinstance(tag, str) or not tag.strip():
            raise BadValue(f"tags[{place}] is {tag!r}, expected a tag such as B-PER or {OUTSIDE}")
        found.append(tag.strip())
    return found


def in_order(tags: set[str]) -> tuple[str, ...]:
    """Tags as they are numbered: outside first, then by what they mark, a beginning before what follows it."""
    return tuple(sorted(tags, key=lambda tag: (tag != OUTSIDE, tag.partition("-")[2] or tag, tag)))


def numbered(value: Tagged, tags: Sequence[str], names: Sequence[str]) -> Tagged:
    """The words with the numbers of their tags. Raises BadValue for a tag that is none of `names`."""
    for place, tag in enumerate(tags):
        if tag not in names:
            raise BadValue(
                f"tags[{place}] is {tag!r}, which is not a tag of the train split or the model; "
                f"{did_you_mean(tag, names)}"
            )
    return Tagged(value.words, tuple(names.index(tag) for tag in tags))


def encode_words(
    texts: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> tuple[list[Example], list[int]]:
    """(examples without labels whose parts are words, their lengths before cutting).

    Words stand with a space between, as a model has read them before. Raises BadConfig for a slow tokenizer.
    """
    needs_offsets(tokenizer)
    joined = [" ".join(words) for words in texts]
    whole = tokenizer(joined, return_offsets_mapping=True, verbose=False)
    lengths = [len(ids) for ids in whole["input_ids"]]
    if max_length is not None and max(lengths, default=0) > max_length:
        whole = tokenizer(joined, truncation=True, max_length=max_length, return_offsets_mapping=True, verbose=False)
    examples = []
    for row, words in enumerate(texts):
        starts = [0, *accumulate(len(word) + 1 for word in words)]
        parts = [_word(offsets, starts, words) for offsets in whole["offset_mapping"][row]]
        examples.append(Example(ids=whole["input_ids"][row], parts=parts, row=row))
    return examples, lengths


def firsts(parts: Sequence[Part | None]) -> list[tuple[int, int]]:
    """(token, word) for the first token of each word."""
    places = {word[0]: token for token, word in reversed(list(enumerate(parts))) if word is not None}
    return [(token, word) for word, token in sorted(places.items())]


def labels_of(parts: Sequence[Part | None], tags: Sequence[int]) -> list[int]:
    """The tag of each word at its first token, IGNORE elsewhere."""
    labels = [IGNORE] * len(parts)
    for token, word in firsts(parts):
        labels[token] = tags[word]
    return labels


def needs_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises BadConfig for a tokenizer that does not say which characters a token stands for."""
    if not tokenizer.is_fast:
        raise BadConfig(
            f"{type(tokenizer).__name__} does not say where its tokens stand in the text; tags and answers need a "
            "tokenizer with a tokenizer.json"
        )


def _word(offsets: tuple[int, int], starts: Sequence[int], words: Sequence[str]) -> Part | None:
    """The word that a token of these characters stands for; one over two words stands for the first."""
    begin, end = offsets
    if begin == end:
        return None
    word = bisect_right(starts, begin) - 1
    if begin == starts[word] + len(words[word]):  # it begins with the space behind a word
        word += 1
    return part(word, word + 1) if word < len(words) and end > starts[word] else None
