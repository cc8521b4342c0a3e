"""Which tokens of a vocabulary some texts need: those they are written in, and those from which these are formed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from tokenizers import Tokenizer
from tokenizers.models import BPE

from budwood.data import Turn
from budwood.data.templates import style_for
from budwood.errors import BadConfig, BadData
from budwood.prune.closure import closure, unknown_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KINDS = ("BPE", "WordPiece", "Unigram")
"""The models of the tokenizers library whose vocabulary can be cut."""
Texts = Sequence[str] | Callable[[], Iterable[str]]
"""Texts that are gone through more than once: in memory, or begun anew by each call."""
CHUNK = 2048
"""Texts that are encoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """What texts use of a vocabulary."""

    texts: int
    tokens: int
    """Of all texts together, without special tokens."""
    different: int
    """Tokens of the vocabulary that stand in the texts."""
    unknown: int
    """Texts with a part that the tokenizer cannot encode."""
    vocabulary: int
    """Tokens that the tokenizer has."""
    kept: tuple[int, ...]
    """Ids, ascending, of all tokens that the texts need, and of those that always stay: special and added tokens, what
    the chat template writes, single characters or bytes, and the tokens from which those of the texts are merged."""


def used(tokenizer: PreTrainedTokenizerBase, texts: Texts) -> Used:
    """What the texts, as the model reads them, use of the vocabulary.  Nothing is changed.

    Raises BadConfig for a tokenizer whose vocabulary cannot be cut; BadData where there are no texts.
    """
    inner = backend(tokenizer)
    description = json.loads(inner.to_str())
    unknown = unknown_id(description)
    met: set[int] = set()
    number = tokens = strange = 0
    for chunk in chunks(texts):
        for encoding in inner.encode_batch_fast(chunk, add_special_tokens=False):
            ids = encoding.ids
            met.update(ids)
            number, tokens = number + 1, tokens + len(ids)
            strange += unknown is not None and unknown in ids
    if not number:
        raise BadData("there are no texts, so no token of the vocabulary would be left; give the texts of your data")
    needed = met | {token for text in _written(tokenizer) for token in inner.encode(text).ids}
    return Used(
        texts=number,
        tokens=tokens,
        different=len(met),
        unknown=strange,
        vocabulary=len(tokenizer),
        kept=tuple(sorted(closure(description, needed | set(tokenizer.all_special_ids)))),
    )


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of what encodes for this tokenizer, which cuts no text short and fills none up."""
    if not tokenizer.is_fast:
        raise BadConfig(
            f"{type(tokenizer).__name__} is a slow tokenizer, written in Python, whose vocabulary cannot be cut; "
            "load one with a tokenizer.json, or leave the vocabulary whole"
        )
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = tokenizer.split_special_tokens
    if (kind := type(inner.model).__name__) not in KINDS:
        raise BadConfig(
            f"the tokenizer's vocabulary is of the kind {kind}, and only {', '.join(KINDS)} can be cut; "
            "leave the vocabulary whole"
        )
    if isinstance(inner.model, BPE) and inner.model.dropout:
        raise BadConfig("the tokenizer encodes at random (BPE dropout), so nothing can be proved; set its dropout to 0")
    return inner


def chunks(texts: Texts) -> Iterator[list[str]]:
    """The texts, begun anew, some at a time.  Raises BadData for what is no text."""
    ahead = iter(texts() if callable(texts) else texts)
    while chunk := list(islice(ahead, CHUNK)):
        for text in chunk:
            if not isinstance(text, str):
                raise BadData(f"among the texts is {text!r:.80}, which is no text; give strings")
        yield chunk


def _written(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Short conversations as the tokenizer's chat template writes them; none where it has none."""
    if not tokenizer.chat_template:
        return
    style = style_for(tokenizer, "chat")
    ask, answer, system = Turn("user", "a"), Turn("assistant", "a", learned=True), Turn("system", "a")
    for turns in ((ask,), (system, ask), (ask, answer, ask), (system, ask, answer, ask)):
        try:
            yield style.prompt(turns)
        except BadData:  # a template may refuse a system message, and then writes none
            continue
