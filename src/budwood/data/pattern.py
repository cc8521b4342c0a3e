"""A cloze: the pattern that turns a labelled text into a question to a language model, and the words that answer it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from budwood.errors import BadConfig, did_you_mean

if TYPE_CHECKING:
    from budwood.data.corpus import Corpus

Kind: TypeAlias = Literal["literal", "text", "pair", "mask", "pseudo"]
Verbalizer: TypeAlias = str | Mapping[str, str | Sequence[str]]
"""'negative=terrible,positive=great|good', or {negative: terrible, positive: [great, good]}."""

PLACEHOLDERS: Mapping[str, Kind] = {
    "{text}": "text", "{sentence}": "text", "{sentence1}": "text", "{sentence2}": "pair", "<mask>": "mask",
    "<p>": "pseudo",
}  # fmt: skip
"""What a pattern may hold besides words."""


@dataclass(frozen=True, slots=True)
class Cloze:
    """How a class is asked for and answered in words; see `Cloze.of`."""

    pattern: str
    """Text with {text} (or {sentence1} and {sentence2}), <mask> where the word belongs, <p> for a pseudo token."""
    words: tuple[tuple[str, tuple[str, ...]], ...]
    """Each class with its words; in the order of the corpus' labels once it is in a corpus."""
    is_masked: bool = True
    """Whether a masked LM reads it; else a decoder goes on from the pattern's end."""

    @classmethod
    def of(cls, pattern: str | None, verbalizer: Verbalizer | None) -> Cloze:
        """A cloze as people write it. Raises BadConfig for either part that is wanting or no pattern or verbalizer."""
        if not pattern or not verbalizer:
            raise BadConfig(
                f"task cloze needs {'a pattern' if not pattern else 'a verbalizer'}; write them as "
                "--pattern '{text} It was <mask>.' --verbalizer negative=terrible,positive=great"
            )
        found = cls(pattern, parse_verbalizer(verbalizer))
        found.pieces()
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Cloze:
        """What `to_dict` gave. Raises BadConfig."""
        pattern, verbalizer = values.get("pattern"), values.get("verbalizer")
        if not isinstance(pattern, str) or not isinstance(verbalizer, Mapping):
            raise BadConfig(f"a cloze is stored as {dict(values)}; it needs a pattern and a verbalizer: train it again")
        return replace(cls.of(pattern, verbalizer), is_masked=bool(values.get("is_masked", True)))

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        verbalizer = {label: list(words) for label, words in self.words}
        return {"pattern": self.pattern, "verbalizer": verbalizer, "is_masked": self.is_masked}

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(label for label, _ in self.words)

    @property
    def pseudo(self) -> int:
        """How many pseudo tokens a row has."""
        return self.pattern.count("<p>")

    def pieces(self) -> list[tuple[Kind, str]]:
        """The pattern in order: words to be read as they are, and what stands for something else.

        Raises BadConfig for a placeholder that there is not, or one too many or too few.
        """
        found: list[tuple[Kind, str]] = []
        for part in re.split(r"(\{\w*\}|<\w+>)", self.pattern):
            if part in PLACEHOLDERS:
                found.append((PLACEHOLDERS[part], part))
            elif re.fullmatch(r"\{\w*\}|<\w+>", part):
                raise BadConfig(f"pattern {self.pattern!r} has {part}; {did_you_mean(part, PLACEHOLDERS)}")
            elif part:
                found.append(("literal", part))
        kinds = [kind for kind, _ in found]
        for kind, name in (("text", "{text}"), ("pair", "{sentence2}"), ("mask", "<mask>")):
            if kinds.count(kind) > 1:  # type: ignore[arg-type]  # a Kind
                raise BadConfig(f"pattern {self.pattern!r} has {kinds.count(kind)} {name}; write one")  # type: ignore[arg-type]
        if "text" not in kinds:
            raise BadConfig(f"pattern {self.pattern!r} has no {{text}}, so every row would be the same; write it in")
        return found

    def for_model(self, *, is_masked: bool) -> Cloze:
        """The cloze for a masked LM or a decoder. Raises BadConfig for a <mask> that it lacks or cannot read."""
        kinds = [kind for kind, _ in self.pieces()]
        if is_masked and "mask" not in kinds:
            raise BadConfig(
                f"pattern {self.pattern!r} has no <mask>, where this masked LM is to put the word; write it in, as "
                "'{text} It was <mask>.'"
            )
        if not is_masked and "mask" in kinds[:-1]:
            raise BadConfig(
                f"pattern {self.pattern!r} goes on after <mask>, and a decoder reads nothing after the word it is to "
                "say; put <mask> last, as '{text} It was <mask>'"
            )
        return replace(self, is_masked=is_masked)


def parse_verbalizer(verbalizer: Verbalizer) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each class with its words, in the order written. Raises BadConfig."""
    example = "write label=word pairs, as negative=terrible,positive=great|good"
    if isinstance(verbalizer, str):
        parts = [part.partition("=") for part in verbalizer.split(",")]
        said: list[tuple[str, Sequence[str]]] = [(label.strip(), words.split("|")) for label, _, words in parts]
    else:
        pairs = verbalizer.items()
        said = [(str(label), words.split("|") if isinstance(words, str) else words) for label, words in pairs]
    found: dict[str, tuple[str, ...]] = {}
    for label, words in said:
        if label in found:
            raise BadConfig(f"the verbalizer names {label!r} twice; name each label once, with words joined by |")
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise BadConfig(f"the verbalizer has {words!r} for {label!r}; {example}")
        found[label] = tuple(word.strip() for word in words)
        if not label or not all(found[label]) or not found[label]:
            raise BadConfig(f"the verbalizer has no word for {label!r}; {example}")
    return tuple(found.items())


def with_cloze(corpus: Corpus, cloze: Cloze) -> Corpus:
    """The corpus asked by this cloze. Raises BadConfig where its classes or columns do not fit."""
    labels, words = corpus.labels or (), dict(cloze.words)
    for label in labels:
        if label not in words:
            raise BadConfig(
                f"the verbalizer has no word for the label {label!r}; labels are {', '.join(labels)}: add {label}=WORD"
            )
    for label in words:
        if label not in labels:
            like = did_you_mean(label, labels)
            raise BadConfig(f"the verbalizer has a word for {label!r}, which is no label; {like}")
    has_pair, kinds = "sentence2" in corpus.used, [kind for kind, _ in cloze.pieces()]
    if has_pair and "pair" not in kinds:
        raise BadConfig(
            f"pattern {cloze.pattern!r} has no {{sentence2}}, and rows are {corpus.shape}; write it in, as "
            "'{sentence1}? <mask>, {sentence2}'"
        )
    if not has_pair and "pair" in kinds:
        raise BadConfig(f"pattern {cloze.pattern!r} has {{sentence2}}, and rows are {corpus.shape}; leave it out")
    return replace(corpus, cloze=replace(cloze, words=tuple((label, words[label]) for label in labels)))
