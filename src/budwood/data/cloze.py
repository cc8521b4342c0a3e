"""Labelled rows to what a language model reads: pattern, text and pseudo tokens, and where the class is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from budwood.data.batch import Blank, Example
from budwood.data.corpus import Labelled
from budwood.data.tokens import CHUNK, around, pieces
from budwood.data.verbalizer import word_ids
from budwood.errors import BadConfig, BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.corpus import Corpus, Row
    from budwood.data.pattern import Cloze


def encode_cloze(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Examples of labelled rows, and their lengths before cutting. Raises what `Writer` does."""
    writer = Writer.of(_cloze_of(corpus), tokenizer)
    examples: list[Example] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        values = [row.value for row in chunk if isinstance(row.value, Labelled)]
        for number, (example, length) in enumerate(writer.write(values, max_length)):
            if not any(id >= 0 for id in example.ids):
                raise BadData(f"{chunk[number].where}: neither its text nor the pattern has a word; write some into it")
            examples.append(replace(example, row=start + number))
            lengths.append(length)
    return examples, lengths


def _cloze_of(corpus: Corpus) -> Cloze:
    if corpus.cloze is None:
        raise BadConfig(
            "task cloze needs a pattern and a verbalizer; write them as "
            "--pattern '{text} It was <mask>.' --verbalizer negative=terrible,positive=great"
        )
    return corpus.cloze


@dataclass(frozen=True)
class Writer:
    """Writes rows by one cloze for one tokenizer."""

    cloze: Cloze
    tokenizer: PreTrainedTokenizerBase
    words: tuple[tuple[int, ...], ...]
    """Ids of each class' words."""
    lead: list[int]
    """Special tokens in front of the row."""
    tail: list[int]
    """Special tokens behind it: none where a decoder is to go on."""

    @classmethod
    def of(cls, cloze: Cloze, tokenizer: PreTrainedTokenizerBase) -> Writer:
        """Raises BadConfig for a masked LM's tokenizer without a mask token, and what `word_ids` does."""
        if cloze.is_masked and tokenizer.mask_token_id is None:
            raise BadConfig(f"{type(tokenizer).__name__} has no mask token for <mask>; take the model's own tokenizer")
        lead, tail = around(tokenizer)
        return cls(cloze, tokenizer, word_ids(cloze, tokenizer), lead, tail if cloze.is_masked else [])

    def write(self, values: Sequence[Labelled], max_length: int | None) -> list[tuple[Example, int]]:
        """An example for each value, and its length before its text was cut to fit; pattern and marks are kept.

        Raises BadConfig where the pattern alone is longer than max_length.
        """
        found = []
        for row, (value, whole) in enumerate(zip(values, self._read(values), strict=True)):
            ids, place = whole
            if max_length is not None and len(ids) > max_length:
                ids, place = self._cut(value, max_length)
            blank = Blank(place, self.words)
            found.append((Example(ids=ids, label=value.label, blank=blank, row=row), len(whole[0])))
        return found

    def _read(self, values: Sequence[Labelled]) -> list[tuple[list[int], int]]:
        """(ids with special tokens, where the class is read) of each row; what stands between two marks is one text."""
        marked = [self._marked(value) for value in values]
        texts = ["".join(stretches) for stretches, _ in marked]
        borders = [list(accumulate(map(len, stretches))) for stretches, _ in marked]
        parts = pieces(texts, borders, self.tokenizer)
        return [self._joined(read, marks) for read, (_, marks) in zip(parts, marked, strict=True)]

    def _marked(self, value: Labelled) -> tuple[list[str], list[int | None]]:
        """The stretches of text of a row, and the id between each two: below 0 a pseudo token, None the mask."""
        stretches, marks = [""], list[int | None]()
        for kind, text in self.cloze.pieces():
            if kind in ("mask", "pseudo"):
                stretches.append("")
                marks.append(None if kind == "mask" else -1 - sum(mark is not None for mark in marks))
            else:
                stretches[-1] += {"text": value.text, "pair": value.pair or ""}.get(kind, text)
        return [stretch.rstrip(" ") for stretch in stretches], marks

    def _joined(self, read: Sequence[Sequence[int]], marks: Sequence[int | None]) -> tuple[list[int], int]:
        ids, place = list(self.lead), -1
        for stretch, mark in zip(read, [*marks, 0], strict=True):
            ids += stretch
            if mark is None and self.cloze.is_masked:
                place = len(ids)
                ids.append(int(self.tokenizer.mask_token_id))
            elif mark:
                ids.append(mark)
        ids += self.tail
        return ids, place if self.cloze.is_masked else len(ids) - 1

    def _cut(self, value: Labelled, max_length: int) -> tuple[list[int], int]:
        """The row with as much of its texts as fits: each loses its end, the longer one first."""
        kept = self._read([replace(value, text="", pair=value.pair and "")])[0]
        if len(kept[0]) > max_length:
            raise BadConfig(
                f"the pattern alone has {len(kept[0])} tokens, and max_length is {max_length}; "
                "shorten the pattern, or allow more"
            )
        fits, too_long = 0, max(len(value.text), len(value.pair or ""))
        while too_long - fits > 1:
            most = (fits + too_long) // 2
            pair = value.pair and value.pair[:most]
            tried = self._read([replace(value, text=value.text[:most], pair=pair)])[0]
            if len(tried[0]) <= max_length:
                fits, kept = most, tried
            else:
                too_long = most
        return kept
