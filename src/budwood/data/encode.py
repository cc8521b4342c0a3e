"""Rows to token ids: which tokens are learned, and what is cut."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from budwood.data.batch import IGNORE, Example
from budwood.data.cloze import encode_cloze
from budwood.data.corpus import Conversation, Labelled, Passage, Tagged, Task, Text
from budwood.data.encoded import Encoded, count
from budwood.data.masking import Masking
from budwood.data.seq2seq import encode_pairs
from budwood.data.spans import encode_passages
from budwood.data.tagging import encode_words, labels_of
from budwood.data.templates import Rendering, Style, Template, style_for
from budwood.data.tokens import CHUNK, pieces, tokens
from budwood.errors import BadConfig, BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.corpus import Corpus, Row, Turn

ENDLESS = 10**6
"""A tokenizer's own maximum above this means that it names none."""


def encode(
    corpus: Corpus,
    split: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int | None = None,
    stop_ids: Collection[int] = (),
) -> Encoded:
    """The examples of a split, and what became of its rows.

    template: 'chat' is the tokenizer's own, 'plain' is `prompt answer<eos>`, 'auto' is chat where there is one
    max_length: tokens an example keeps, from its beginning; None is the tokenizer's own limit, if it has one
    stop_ids: the model's `generation_config.eos_token_id`(s); the tokenizer's eos is always one
    Raises   BadConfig for a template the tokenizer does not have, no eos, or no mask token where one is needed;
             BadData if a row cannot be rendered, or nothing is left to learn (naming the max_length that works)
    """
    if max_length is not None and max_length < 2:
        raise BadConfig(f"max_length is {max_length}; it must be at least 2: one token to read, one to learn")
    if max_length is None and tokenizer.model_max_length < ENDLESS:
        max_length = int(tokenizer.model_max_length)
    rows = corpus.rows(split)
    used: Literal["chat", "plain", "none"] = "none"
    stops: tuple[int, ...] = ()
    if corpus.task in ENCODERS:
        examples, lengths = ENCODERS[corpus.task](corpus, rows, tokenizer, max_length)
        if corpus.task in NOTHING and not any(example.num_targets for example in examples):
            raise BadData(f"{corpus.origin}, {split}: none of {len(rows)} rows has {NOTHING[corpus.task]}")
    else:
        style = style_for(tokenizer, template, stop_ids)
        stops = tuple(sorted(set(style.stops.values())))
        if rows and isinstance(rows[0].value, Conversation):
            used = style.template
            whole = _conversations(rows, style)
        else:
            whole = _texts(rows, style)
        lengths = [len(example.ids) for example in whole]
        examples = [_cut(example, max_length) for example in whole]
        _refuse_nothing_learned(f"{corpus.origin}, {split}", whole, examples, max_length)
    kept = [example for example in examples if example.num_targets]
    report = count(rows, kept, examples, lengths, max_length)
    return Encoded(examples=kept, report=report, template=used, stop_ids=stops)


def encode_prompts(
    prompts: Sequence[Sequence[Turn]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template = "auto",
    max_length: int | None = None,
) -> list[Example]:
    """Examples without labels for `collate(..., side="left")`: what precedes an answer, exactly as in training.

    prompts: the turns to answer: `row.asked` of a corpus' rows, or `(Turn("user", "..."),)`
    max_length: longer prompts lose their beginning (the end is what is answered); None cuts nothing
    """
    style = style_for(tokenizer, template)
    lead = _lead(style)
    texts = tokens(tokenizer, [style.prompt(turns) for turns in prompts])
    return [
        Example(ids=(lead + ids)[-max_length if max_length else None :], row=place) for place, ids in enumerate(texts)
    ]


def _conversations(rows: Sequence[Row], style: Style) -> list[Example]:
    """Uncut examples; a row without an answer gives one in which nothing is learned."""
    numbered: list[tuple[int, Rendering]] = []
    for place, row in enumerate(rows):
        assert isinstance(row.value, Conversation)
        try:
            renderings = style.render(row.value.turns)
        except BadData as error:
            raise BadData(f"{row.where}: {error}") from error
        numbered += [(place, rendering) for rendering in renderings or [Rendering("", ())]]
    lead = _lead(style)
    examples: list[Example] = []
    for start in range(0, len(numbered), CHUNK):
        chunk = numbered[start : start + CHUNK]
        borders = [[place for span in rendering.spans for place in span] for _, rendering in chunk]
        found = pieces([rendering.text for _, rendering in chunk], borders, style.tokenizer)
        for (place, rendering), parts in zip(chunk, found, strict=True):
            examples.append(_example(place, lead, parts))
            _check_stops(rows[place], rendering, parts, style)
    return examples


def _example(place: int, lead: list[int], parts: list[list[int]]) -> Example:
    ids, labels = list(lead), [IGNORE] * len(lead)
    for number, part in enumerate(parts):
        ids += part
        labels += part if number % 2 else [IGNORE] * len(part)
    return Example(ids=ids, labels=labels, row=place)


def _check_stops(row: Row, rendering: Rendering, parts: list[list[int]], style: Style) -> None:
    """Raises BadConfig if an answer does not end with the id of a stop token: its model would never stop."""
    for (start, end), part in zip(rendering.spans, parts[1::2], strict=True):
        if not part or part[-1] not in style.stops.values():
            raise BadConfig(
                f"{row.where}: the answer {rendering.text[start:end][-40:]!r} does not end with one of the stop "
                f"tokens {', '.join(style.stops)} after tokenising; mend the tokenizer's special tokens"
            )


def _texts(rows: Sequence[Row], style: Style) -> list[Example]:
    """Uncut examples of plain text: every token learned, and the eos at its end."""
    lead, eos = _lead(replace(style, template="plain")), style.stops[style.eos]
    texts = [row.value.text for row in rows if isinstance(row.value, Text)]
    return [
        Example(ids=[*lead, *ids, eos], labels=[IGNORE] * len(lead) + [*ids, eos], row=place)
        for place, ids in enumerate(tokens(style.tokenizer, texts))
    ]


def _lead(style: Style) -> list[int]:
    """The bos, where the tokenizer puts one in front by itself; a chat template writes its own."""
    if style.template == "chat":
        return []
    added = style.tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return [int(id) for id in added if id == style.tokenizer.bos_token_id]


def _classified(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Examples of labelled texts with the tokenizer's special tokens, and their lengths before cutting."""
    examples: list[Example] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        values = [row.value for row in rows[start : start + CHUNK] if isinstance(row.value, Labelled)]
        texts = [value.text for value in values]
        pairs = [value.pair or "" for value in values] if values[0].pair is not None else None
        whole = tokenizer(texts, pairs, verbose=False)
        lengths += [len(ids) for ids in whole["input_ids"]]
        if max_length is not None and max(lengths[start:]) > max_length:
            whole = tokenizer(texts, pairs, truncation="longest_first", max_length=max_length, verbose=False)
        types = whole["token_type_ids"] if pairs and "token_type_ids" in whole else [None] * len(values)
        for number, value in enumerate(values):
            ids = whole["input_ids"][number]
            examples.append(Example(ids=ids, label=value.label, types=types[number], row=start + number))
    return examples, lengths


def _masked(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Plain texts as an encoder reads them, with the words hidden that scores are computed on."""
    masking = Masking.of(tokenizer)
    examples: list[Example] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        texts = [row.value.text for row in rows[start : start + CHUNK] if isinstance(row.value, Text)]
        whole = masking.encode(texts, tokenizer)
        lengths += [len(ids) for ids in whole]
        if max_length is not None and max(lengths[start:]) > max_length:
            whole = masking.encode(texts, tokenizer, max_length=max_length)
        examples += [masking.fixed(Example(ids=ids, row=start + number)) for number, ids in enumerate(whole)]
    return examples, lengths


def _tagged(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Examples of tagged words, and their lengths before cutting."""
    examples: list[Example] = []
    lengths: list[int] = []
    for start in range(0, len(rows), CHUNK):
        values = [row.value for row in rows[start : start + CHUNK] if isinstance(row.value, Tagged)]
        found, long = encode_words([value.words for value in values], tokenizer, max_length=max_length)
        lengths += long
        for example, value in zip(found, values, strict=True):
            labels = labels_of(example.parts or (), value.tags)
            examples.append(replace(example, labels=labels, row=start + example.row))
    return examples, lengths


def _asked(
    corpus: Corpus, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[Example], list[int]]:
    """Windows over the texts that questions are about, and their lengths: nothing is cut."""
    passages = [row.value for row in rows if isinstance(row.value, Passage)]
    where = [row.where for row in rows]
    examples = encode_passages(passages, tokenizer, max_length=max_length, where=where)
    return examples, [len(example.ids) for example in examples]


Encoder: TypeAlias = Callable[
    ["Corpus", "Sequence[Row]", "PreTrainedTokenizerBase", "int | None"], tuple[list[Example], list[int]]
]
"""(corpus, its rows, tokenizer, max_length) to an example for each row, and the lengths before cutting."""
ENCODERS: Mapping[Task, Encoder] = {
    "classification": _classified,
    "masked-lm": _masked,
    "seq2seq": encode_pairs,
    "cloze": encode_cloze,
    "token-classification": _tagged,
    "question-answering": _asked,
}
"""How rows become examples, for the tasks that have no chat template and no stop tokens."""
NOTHING: Mapping[Task, str] = {
    "masked-lm": "a word to hide; give rows with text",
    "token-classification": "a word with a tag left; raise max_length, or give rows with words",
    "question-answering": "an answer that stands in a token; give answers that are words of the text",
    "seq2seq": "an answer to learn from; give each row a target",
}
"""What rows may turn out to lack."""


def _cut(example: Example, max_length: int | None) -> Example:
    if max_length is None or len(example.ids) <= max_length:
        return example
    labels = example.labels
    return replace(example, ids=example.ids[:max_length], labels=labels and labels[:max_length])


def _refuse_nothing_learned(
    where: str, whole: Sequence[Example], cut: Sequence[Example], max_length: int | None
) -> None:
    """Raises BadData if no example has a token left to learn."""
    if any(example.num_targets for example in cut):
        return
    answered = [example for example in whole if example.num_targets]
    if not answered:
        raise BadData(
            f"{where}: none of {len(whole)} rows has an answer to learn from, every label would be masked; "
            "give each row an assistant message, a completion, or text"
        )
    first = min(_first_learned(example) for example in answered) + 1
    longest = max(len(example.ids) for example in answered)
    raise BadData(
        f"{where}: every one of {len(whole)} answers is cut away at max_length {max_length}, nothing is left to "
        f"learn. max_length {longest} keeps every row whole (from {first} on, some answers begin to be learned)"
    )


def _first_learned(example: Example) -> int:
    labels = example.labels or []
    return next(place for place, label in enumerate(labels) if place and label != IGNORE)
