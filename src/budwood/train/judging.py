"""How good a model is on a job's held-out rows, before, while and after it is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from budwood.core import adapters, using
from budwood.data import Batch, Conversation, Example, Labelled, Passage, Row, Tagged, Task, collate, encode, marked
from budwood.data.spans import has_unanswered
from budwood.evaluate import (
    answer_passages,
    classify,
    evaluate,
    evaluate_loss,
    fill,
    gaps,
    hidden,
    locate,
    shown,
    tag,
    tag_sentences,
)
from budwood.evaluate.generate import complete, context_of
from budwood.evaluate.task import EvaluationResult, Options, class_names
from budwood.records import Score
from budwood.train.job import Job
from budwood.train.material import Material, spread
from budwood.train.setup import Bare, Prepared

ANSWER_TOKENS = 48
"""Most tokens of an answer shown to people."""

CANDIDATES = 64
"""Rows that samples are chosen from."""

OPENING = 40
"""Characters of a plain text that a model is asked to go on from."""


@dataclass(frozen=True)
class Judge:
    """Scores and answers of one job's model, in the run's own arithmetic."""

    job: Job
    material: Material
    prepared: Prepared | Bare

    def scores(self) -> list[Score]:
        """The short validation: loss, and what else the task is followed by, on at most `eval_rows` rows."""
        rows = self.batches(self.material.valid, self.job.config.batch)
        with self.prepared.arithmetic():
            return QUICK[self.material.corpus.task](self.prepared.model, rows)

    def examine(self) -> EvaluationResult | None:
        """The full scores on at most `test_rows` rows; None where no row is held out."""
        if self.material.held_split is None:
            return None
        options = Options(batch=self.job.config.batch, max_length=self.material.max_length, template=self.job.template)
        held = self.material.held(self.job.config.test_rows)
        with self.prepared.arithmetic():
            return evaluate(
                self.prepared.model, self.material.tokenizer, held, self.material.held_split, options=options
            )

    def answers(self, rows: Sequence[Row]) -> list[str]:
        """What the model says to some rows: generated text, the likeliest class, or the likeliest words."""
        if not rows:
            return []
        if isinstance(rows[0].value, Labelled):
            return self._classes(rows)
        if isinstance(rows[0].value, Tagged):
            return self._tags([row.value.words for row in rows if isinstance(row.value, Tagged)])
        if isinstance(rows[0].value, Passage):
            return self._pieces([row.value for row in rows if isinstance(row.value, Passage)])
        if self.is_masked:
            with self.prepared.arithmetic():
                return fill(self.prepared.model, self.material.tokenizer, [self._gap(row) for row in rows])
        room = ANSWER_TOKENS if self.room is None else min(ANSWER_TOKENS, self.room // 2)
        prompts = [row.asked if isinstance(row.value, Conversation) else row.prompt[:OPENING] for row in rows]
        with self.prepared.arithmetic():
            found = complete(
                self.prepared.model,
                self.material.tokenizer,
                prompts,
                max_new_tokens=room,
                max_source=self.material.max_length,
                template=self.job.template,
            )
        return [answer.text.strip() for answer in found]

    @property
    def room(self) -> int | None:
        """Positions that a text has beside the prompts that are trained or stand below, for the base as well."""
        context, attached = context_of(self.prepared.model), adapters(self.prepared.model)
        taken = sum(attached[name].method.positions_taken for name in self.prepared.names)
        return None if context is None else context - taken

    @property
    def is_masked(self) -> bool:
        """Whether words are hidden and filled in."""
        return self.material.corpus.task == "masked-lm"

    def asked(self, row: Row) -> str:
        """What people are shown as the question: the prompt, or the text with its gaps."""
        return shown(self._gap(row), self.material.tokenizer) if self.is_masked else row.prompt

    def right(self, row: Row) -> str:
        """What would have been right."""
        if self.is_masked:
            return hidden(self._gap(row), self.material.tokenizer)
        return reference(row, self.material.corpus.labels)

    def samples(self) -> list[Row]:
        """The held-out rows that are answered for people: different prompts, evenly spread, not too long."""
        material = self.material
        if material.held_split is None:
            return []
        context = self.room or material.max_length
        rows = {row.prompt: row for row in material.corpus.rows(material.held_split) if row.prompt.strip()}
        few = spread(list(rows.values()), CANDIDATES)
        short = [row for row in few if len(material.tokenizer(row.prompt)["input_ids"]) < context // 3]
        return spread(short, self.job.config.samples) if short else []

    def batches(self, examples: Sequence[Example], size: int) -> Iterator[Batch]:
        """The examples in batches, the longest first."""
        ordered = sorted(examples, key=lambda example: -example.size)
        for start in range(0, len(ordered), size):
            yield collate(ordered[start : start + size], self.material.pad_id)

    @contextmanager
    def base(self) -> Iterator[None]:
        """The base alone, as long as nothing was trained yet in place."""
        if self.prepared.is_in_place:
            yield
            return
        with using(self.prepared.model, None):
            yield

    def _gap(self, row: Row) -> Example:
        return gaps([row.prompt], self.material.tokenizer, max_length=self.material.max_length)[0]

    def _tags(self, sentences: Sequence[Sequence[str]]) -> list[str]:
        with self.prepared.arithmetic():
            tags = tag_sentences(
                self.prepared.model, self.material.tokenizer, sentences, max_length=self.material.max_length
            )
        return [marked(words, said) for words, said in zip(sentences, tags, strict=True)]

    def _pieces(self, passages: Sequence[Passage]) -> list[str]:
        with self.prepared.arithmetic():
            found = answer_passages(
                self.prepared.model, self.material.tokenizer, passages, max_length=self.material.max_length
            )
        may_say_nothing = has_unanswered(self.material.corpus)
        return ["" if is_nothing and may_say_nothing else text for text, is_nothing in found]

    def _classes(self, rows: Sequence[Row]) -> list[str]:
        few = self.material.corpus.replace_splits({"test": tuple(rows)})
        examples = encode(few, "test", self.material.tokenizer, max_length=self.material.max_length).examples
        names, _ = class_names({} if few.cloze else self.prepared.model.config.id2label, few)
        with self.prepared.arithmetic():
            guesses = classify(self.prepared.model, (collate([one], self.material.pad_id) for one in examples))
        return [str(names[int(guess)]) for guess in guesses.predictions]


def reference(row: Row, labels: Sequence[str] | None) -> str:
    """What would have been right."""
    if isinstance(row.value, Labelled):
        return str(row.value.label if labels is None else labels[row.value.label])
    if isinstance(row.value, Tagged):
        return marked(row.value.words, [(labels or ())[number] for number in row.value.tags])
    if isinstance(row.value, Passage):
        return row.answer
    return row.answer if isinstance(row.value, Conversation) else row.prompt[OPENING:]


def _of_losses(model: Any, batches: Iterator[Batch]) -> list[Score]:
    report = evaluate_loss(model, batches)
    return [report.loss, report.perplexity]


def _of_classes(model: Any, batches: Iterator[Batch]) -> list[Score]:
    found = {score.name: score for score in classify(model, batches).scores}
    return [found["accuracy"], found["loss"]]


def _of_tags(model: Any, batches: Iterator[Batch]) -> list[Score]:
    found = {score.name: score for score in tag(model, batches).scores}
    return [found["span_f1"], found["loss"]]


def _of_spans(model: Any, batches: Iterator[Batch]) -> list[Score]:
    found = locate(model, batches)
    return [found.accuracy, found.loss]


QUICK: Mapping[Task, Callable[[Any, Iterator[Batch]], list[Score]]] = {
    "causal-lm": _of_losses,
    "classification": _of_classes,
    "masked-lm": _of_losses,
    "seq2seq": _of_losses,
    "cloze": _of_classes,
    "token-classification": _of_tags,
    "question-answering": _of_spans,
}
"""What is looked at while training."""
