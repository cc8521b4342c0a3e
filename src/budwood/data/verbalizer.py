"""The words that answer a cloze, as ids: each one token, and none of two classes."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from budwood.data.tokens import tokens
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from budwood.data.pattern import Cloze

USUAL = ("yes", "no", "true", "false", "good", "bad", "great", "terrible")
"""Words that most tokenizers have whole: proposed where no other is near."""


def word_ids(cloze: Cloze, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], ...]:
    """The id of each word of each class, in the cloze's order, as it stands at the end of the question.

    Raises BadConfig for a word that is not one token, naming words that would do, or that means two classes.
    """
    spaced = has_space(cloze)

    def read(word: str) -> list[int]:
        return _after_text(word, tokenizer) if spaced else tokens(tokenizer, [word])[0]

    found: dict[int, tuple[str, str]] = {}
    ids: list[tuple[int, ...]] = []
    for label, words in cloze.words:
        of_label = []
        for word in words:
            here = read(word)
            if not _is_one(here, tokenizer):
                raise BadConfig(_not_one(label, word, here, tokenizer, read))
            if here[0] in found:
                other, like = found[here[0]]
                raise BadConfig(
                    f"the verbalizer's word {word!r} for {label!r} is the same token as {like!r} for {other!r} "
                    f"({tokenizer.convert_ids_to_tokens(here[0])!r}); give each label words of its own"
                )
            found[here[0]] = (label, word)
            of_label.append(here[0])
        ids.append(tuple(of_label))
    return tuple(ids)


def has_space(cloze: Cloze) -> bool:
    """Whether the word stands behind a space: where the pattern says so, and behind a pattern that a decoder ends."""
    before, mask, _ = cloze.pattern.partition("<mask>")
    if not mask:
        return not before.rstrip(" ").endswith("\n")
    return bool(before.replace("<p>", "")) and before.endswith((" ", "<p>"))


def _after_text(word: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a word behind other text and a space."""
    alone, followed = tokens(tokenizer, ["a", f"a {word}"])
    return followed[len(alone) :] if followed[: len(alone)] == alone else tokens(tokenizer, [f" {word}"])[0]


def _is_one(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id


def _not_one(
    label: str, word: str, ids: list[int], tokenizer: PreTrainedTokenizerBase, read: Callable[[str], list[int]]
) -> str:
    became = ", ".join(repr(str(token)) for token in tokenizer.convert_ids_to_tokens(ids)) or "nothing"
    vocabulary = {token.lstrip("Ġ▁") for token in tokenizer.get_vocab()}
    near = get_close_matches(word, [one for one in vocabulary if one.isalpha() and len(one) > 2], n=20, cutoff=0.5)
    good = [one for one in dict.fromkeys((*near, *USUAL)) if _is_one(read(one), tokenizer)]
    proposed = f"; words that would do: {', '.join(good[:4])}" if good else ""
    return f"the verbalizer's word {word!r} for {label!r} becomes {became}, and must be one known token{proposed}"
