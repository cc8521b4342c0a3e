"""Questions about a text: from a row to windows over the text, each with the tokens that answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budwood.data.batch import Example, Part, part
from budwood.data.corpus import Answer, Passage
from budwood.data.fields import BadValue, Fields, text_of
from budwood.data.tagging import needs_offsets
from budwood.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.corpus import Corpus, Row

LENGTH = 384
"""Tokens of a window, question included, where nobody says and the model can read so many."""
STRIDE = 128
"""Tokens that a window shares with the one before it, at most half of what it shows of the text."""
LEAST = 2
"""Tokens of the text that a window has to have room for."""


def read_passage(fields: Fields) -> Passage:
    """A text, a question and its answers in any of the forms that SQuAD is published in, or simply as text."""
    context, question = text_of(fields, "context"), text_of(fields, "question").strip()
    if not context.strip() or not question:
        raise BadValue("the context or the question is empty; write both, or leave the row out")
    given = list(_given(fields.get("answers") if "answers" in fields else fields.get("answer")))
    answers = tuple(_placed(text, start, context) for text, start in given)
    several = any(start is None and context.count(text.strip()) > 1 for text, start in given)
    return Passage(context, question, tuple(dict.fromkeys(answers)), several)


def squad_rows(articles: Sequence[Any]) -> Iterator[Mapping[str, object]]:
    """The rows of a file as SQuAD publishes it: articles of paragraphs of questions."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                yield {"context": paragraph["context"], **asked, "answers": asked.get("answers", [])}


def has_unanswered(corpus: Corpus) -> bool:
    """Whether some question has no answer in its text: only then may a model say nothing."""
    return any(isinstance(row.value, Passage) and not row.value.answers for _, row in corpus.all_rows())


def notes(rows: Sequence[Row]) -> list[str]:
    """What was decided about answers, and deserves to be seen."""
    values = [row.value for row in rows if isinstance(row.value, Passage)]
    bare, several = sum(not value.answers for value in values), sum(value.is_first_of_several for value in values)
    found = [f"{bare} of {len(values)} questions have no answer in their text: to say so is learned"] if bare else []
    if several:
        found.append(
            f"{several} answers came without answer_start and stand in their text more than once: the first place "
            "is taken"
        )
    return found


def encode_passages(
    passages: Sequence[Passage],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    where: Sequence[str] = (),
) -> list[Example]:
    """Windows over each text, whose parts are characters of it; the span is that of the first answer in the window.

    A window without the answer, and each of a question that has none, points at its first token. One that holds the
    answer, but in no token, has no span and is not learned.
    where: where each stands, for messages
    Raises BadConfig for a slow tokenizer, BadData for a question that leaves no room for the text.
    """
    needs_offsets(tokenizer)
    limit = LENGTH if max_length is None else max_length
    asked = tokenizer([passage.question for passage in passages], add_special_tokens=False, verbose=False)["input_ids"]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    examples = []
    for row, (passage, question) in enumerate(zip(passages, asked, strict=True)):
        room = limit - special - len(question)
        if room < LEAST:
            place = f"{where[row]}: " if where else ""
            raise BadData(
                f"{place}the question {passage.question[:40]!r} has {len(question)} tokens, so nothing of the "
                f"text fits in max_length {limit}; shorten it, or set max_length: {len(question) + special + STRIDE}"
            )
        windows = tokenizer(
            passage.question, passage.context, truncation="only_second", max_length=limit,
            stride=min(STRIDE, room // 2), return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        for number, ids in enumerate(windows["input_ids"]):
            places = zip(windows["offset_mapping"][number], windows.sequence_ids(number), strict=True)
            parts = [part(a, b) if side == 1 and a < b else None for (a, b), side in places]
            types = windows["token_type_ids"][number] if "token_type_ids" in windows else None
            examples.append(Example(ids=ids, parts=parts, types=types, span=_span(parts, passage), row=row))
    return examples


def _span(parts: Sequence[Part | None], passage: Passage) -> tuple[int, int] | None:
    """(first, last) token of the first answer that the window holds whole; (0, 0) where it holds none."""
    shown = [(token, shown) for token, shown in enumerate(parts) if shown is not None]
    for answer in passage.answers:
        end = answer.start + len(answer.text)
        if shown and shown[0][1][0] <= answer.start and end <= shown[-1][1][1]:
            tokens = [token for token, (a, b) in shown if a < end and b > answer.start]
            return (tokens[0], tokens[-1]) if tokens else None
    return (0, 0)


def _given(answers: object) -> Iterator[tuple[str, int | None]]:
    """(text, start or None) of each answer as it is written."""
    if answers is None or answers == "":
        return
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        texts, starts = answers["text"], answers.get("answer_start")
        if starts is None:
            starts = [None] * len(texts)
        if not isinstance(starts, list) or len(starts) != len(texts):
            raise BadValue(f"answers has {len(texts)} texts and answer_start {str(starts)[:40]}; write one for each")
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    for one in answers if isinstance(answers, list) else [answers]:
        text, start = (one.get("text"), one.get("answer_start")) if isinstance(one, dict) else (one, None)
        if not isinstance(text, str) or not text.strip() or not (start is None or type(start) is int):
            raise BadValue(
                f'an answer is {str(one)[:60]!r}; write {{"text": ["..."], "answer_start": [0]}}, or the text alone'
            )
        yield text, start


def _placed(text: str, start: int | None, context: str) -> Answer:
    """The answer at its place, without white space around it. Raises BadValue where it does not stand there."""
    bare = text.strip()
    found = context.find(bare)
    if found < 0:
        raise BadValue(
            f"the answer {bare[:60]!r} does not stand in the context; copy it letter by letter, or write no answers "
            "where the text has none"
        )
    if start is None:
        return Answer(bare, found)
    start += len(text) - len(text.lstrip())
    there = context[start : start + len(bare)] if start >= 0 else ""
    if there != bare:
        raise BadValue(
            f"answer_start {start} points at {there!r}, not at {bare!r}, which stands at {found}; "
            "count characters from 0, or leave answer_start out"
        )
    return Answer(bare, start)
