"""The vocabulary's cut of a shrinking: what the data needs of it, and the proof that every row is read as before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from budwood.data import Example, Template, encode
from budwood.errors import VerificationFailed
from budwood.train.material import Material


def texts_of(material: Material, template: Template = "auto") -> list[str]:
    """Everything that the model reads of the data: rows as they are written, and as they are encoded."""
    rows = [row for split in material.corpus.splits.values() for row in split]
    written = [text for row in rows for text in (row.prompt, row.answer) if text]
    encoded = [[token for token in ids if token >= 0] for one in examples_of(material, template) for ids in _ids(one)]
    return [*written, *material.tokenizer.batch_decode(encoded)]


def examples_of(material: Material, template: Template = "auto") -> Iterator[Example]:
    """The rows of all splits, encoded."""
    for split in material.corpus.splits:
        if split == "train":
            yield from material.train.examples
        else:
            yield from encode(
                material.corpus, split, material.tokenizer, template=template,
                max_length=material.max_length,
            ).examples  # fmt: skip


def check_same_tokens(before: Iterable[Example], after: Iterable[Example], kept: Sequence[int]) -> None:
    """Raise VerificationFailed unless every row is encoded to the same tokens as with the whole vocabulary.

    kept: for each token of the smaller vocabulary, its number in the whole one
    """
    for old, new in zip(before, after, strict=True):
        if _ids(old) != [[kept[token] if token >= 0 else token for token in ids] for ids in _ids(new)]:
            raise VerificationFailed(
                f"row {old.row + 1} would be encoded otherwise in the smaller vocabulary; leave vocabulary out of cut, "
                "and please report this"
            )


def _ids(example: Example) -> list[list[int]]:
    """What a model reads of a row, hidden words among it, what it is to write, and the words of a cloze."""
    own = example.ids if example.whole is None else example.whole
    words = () if example.blank is None else example.blank.words
    return [list(own), list(example.target or ()), *(list(word) for word in words)]
