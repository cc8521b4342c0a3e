"""Rows in, scores out: what a model is asked, what it answered, how good that was."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from budwood.data import IGNORE, Corpus, Example, Passage, Row, Tagged, Turn, encode
from budwood.data.encode import ENDLESS
from budwood.data.spans import LENGTH, has_unanswered
from budwood.data.tags import OUTSIDE
from budwood.errors import BadConfig, BadData, did_you_mean
from budwood.evaluate.batches import batches
from budwood.evaluate.classify import classify
from budwood.evaluate.ensemble import Ensemble
from budwood.evaluate.generate import Generation, complete, longest_of, stop_tokens
from budwood.evaluate.loss import evaluate_loss
from budwood.evaluate.overlap import best, bleu, exact_match, exact_of, f1_of, rouge_l, rouge_l_of, token_f1
from budwood.evaluate.sampling import Sampling
from budwood.evaluate.spans import locate
from budwood.evaluate.tagging import tag
from budwood.records import Score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data import Template
    from budwood.records import Json

LOSS = ("loss", "perplexity", "token_accuracy")
CLASSES = ("accuracy", "macro_f1", "mcc", "loss")
OF_ANSWERS = {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l, "bleu": bleu}
OF_ANSWER = {"exact_match": exact_of, "token_f1": f1_of, "rouge_l": rouge_l_of}
OF_HIDDEN = ("loss", "masked_perplexity", "token_accuracy")
OF_TAGS = ("span_f1", "span_precision", "span_recall", "token_accuracy", "loss")
OF_SPANS = ("exact_match", "token_f1", "loss")
METRICS: Mapping[str, tuple[str, ...]] = {
    "causal-lm": (*LOSS, *OF_ANSWERS),
    "classification": CLASSES,
    "masked-lm": OF_HIDDEN,
    "seq2seq": (*LOSS, *OF_ANSWERS),
    "cloze": CLASSES,
    "token-classification": (*OF_TAGS, "strict_span_f1"),
    "question-answering": OF_SPANS,
}
"""What can be asked for, by the task of a corpus."""

DEFAULT: Mapping[str, tuple[str, ...]] = {
    **METRICS,
    "causal-lm": LOSS,
    "seq2seq": LOSS,
    "token-classification": OF_TAGS,
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate."""

    metrics: tuple[str, ...] = ()
    """Names of METRICS; none given, those that need no generation."""
    batch: int = 8
    """Rows evaluated at once."""
    max_length: int | None = None
    """Tokens a row keeps; None is the tokenizer's limit or the model's context."""
    max_new_tokens: int = 128
    """Tokens an answer may have."""
    answers: int | None = None
    """How many prompts are answered for the metrics of answers: the first ones; None answers all."""
    template: Template = "auto"
    """How turns are written: "chat", "plain", or "auto"."""
    sampling: Sampling | None = None
    """None answers greedily."""
    ensemble: Ensemble | None = None
    """Adapters on the model that answer together; None asks the model with its adapters as they are."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model made of one row: a line of predictions.jsonl."""

    row: int
    """Index into the split's rows; the first of those that ask the same."""
    where: str
    """'faq.jsonl, row 3'."""
    prompt: str
    """What it was asked."""
    prediction: str | None
    """What it answered, or the class's name; None where no answer was wanted."""
    references: tuple[str, ...]
    """What would have been right."""
    values: Mapping[str, float]
    """This row's part in the scores; runs are compared by them."""

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return {**vars(self), "references": list(self.references), "values": dict(self.values)}


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Scores, and the rows behind them."""

    scores: tuple[Score, ...]
    """In the order asked for."""
    predictions: tuple[Prediction, ...]
    """In row order."""
    notes: tuple[str, ...] = ()
    """What was left out or cut on the way."""

    def score(self, name: str) -> Score:
        """The score of that name.  Raises BadConfig, with the names there are."""
        found = {score.name: score for score in self.scores}
        if name not in found:
            raise BadConfig(f"there is no score {name!r} in this evaluation; {did_you_mean(name, found)}")
        return found[name]


@dataclass(frozen=True)
class Task:
    """What any model can be asked: the rows of a split, and how they are scored."""

    corpus: Corpus
    split: str
    options: Options = Options()

    def __call__(self, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
        """Scores of a model with its adapters as they are.

        For metrics of answers, rows that ask the same become one prompt, for which each of their answers is right.
        Raises BadConfig for a metric that the task does not have; BadData for a split that is not there or cannot
        be evaluated.
        """
        names = self.metrics()
        if (whole := WHOLE.get(self.corpus.task)) is not None:
            parts = [whole(self, model, tokenizer)]
        else:
            parts = [_losses(self, model, tokenizer)] if set(names) & {*LOSS, *OF_HIDDEN} else []
            parts += [_answers(self, model, tokenizer)] if set(names) & set(OF_ANSWERS) else []
        scores = {score.name: score for part in parts for score in part.scores}
        return EvaluationResult(
            scores=tuple(scores[name] for name in names),
            predictions=_together([prediction for part in parts for prediction in part.predictions]),
            notes=tuple(note for part in parts for note in part.notes),
        )

    def metrics(self) -> tuple[str, ...]:
        """The metrics asked for, each once, or those that need no generation."""
        known = METRICS[self.corpus.task]
        for name in self.options.metrics:
            if name not in known:
                raise BadConfig(f"there is no metric {name!r} for {self.corpus.task}; {did_you_mean(name, known)}")
        return tuple(dict.fromkeys(self.options.metrics or DEFAULT[self.corpus.task]))

    def prediction(self, row: int, said: str | None, right: Sequence[str], values: Mapping[str, float]) -> Prediction:
        """The record of one row of the split."""
        asked = self.corpus.rows(self.split)[row]
        return Prediction(
            row=row, where=asked.where, prompt=asked.prompt, prediction=said, references=tuple(right), values=values
        )


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    split: str = "test",
    *,
    options: Options | None = None,
) -> EvaluationResult:
    """Scores of a model on one split: `Task(corpus, split, options)(model, tokenizer)`, and raises what that does."""
    return Task(corpus, split, options or Options())(model, tokenizer)


def _encoded(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> tuple[list[Example], tuple[str, ...]]:
    """The examples of the split, and what was cut or left out of it."""
    options = task.options
    limit = _limit(task, model, tokenizer)
    is_text = task.corpus.task == "causal-lm"
    encoded = encode(
        task.corpus,
        task.split,
        tokenizer,
        template=options.template,
        max_length=limit,
        stop_ids=stop_tokens(model, tokenizer, options.template) if is_text else (),
    )
    report = encoded.report
    notes = []
    if report.rows_cut:
        notes.append(f"{report.rows_cut} of {report.rows} rows were cut to {report.max_length} tokens")
    if report.rows_empty:
        notes.append(f"{report.rows_empty} of {report.rows} rows had nothing to score and were left out")
    return encoded.examples, tuple(notes)


def _limit(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    said = task.options.max_length
    return longest_row(task.corpus, model, tokenizer, task.options.ensemble) if said is None else said


def longest_row(
    corpus: Corpus, model: Any, tokenizer: PreTrainedTokenizerBase, ensemble: Ensemble | None = None
) -> int | None:
    """Tokens a row keeps where nobody says: what the model reads beside the prompts in force, less for passages."""

    def longest(one: Any) -> int:
        return longest_of(one, tokenizer) or ENDLESS

    found = min(ensemble.each(model, longest)) if ensemble else longest(model)
    limit = found if found < ENDLESS else None
    return limit if corpus.task != "question-answering" else min(LENGTH, limit or LENGTH)


def _classes(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    names, places = class_names({} if task.corpus.cloze else model.config.id2label, task.corpus)
    examples, notes = _encoded(task, model, tokenizer)
    examples = [replace(example, label=places[example.label or 0]) for example in examples]
    found = classify(model, batches(examples, tokenizer, task.options.batch), ensemble=task.options.ensemble)
    columns = (found.rows, found.predictions, found.labels, found.losses, found.confidences)
    predictions = tuple(
        task.prediction(
            int(row),
            names[guess],
            (names[label],),
            {"accuracy": float(guess == label), "loss": float(loss), "confidence": float(confidence)},
        )
        for row, guess, label, loss, confidence in zip(*columns, strict=True)
    )
    return EvaluationResult(scores=found.scores, predictions=predictions, notes=notes)


def class_names(known: Mapping[int, str], corpus: Corpus) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(name of each class of the model, the model's class for each label of the corpus), matched by name.

    A model that never named its classes (LABEL_0, ...), and labels that are plain numbers, are matched by number.
    known: of a model's head; empty for a cloze, whose words are the corpus' own classes
    Raises BadData where the data has a class that the model does not know.
    """
    labels = corpus.labels or ()
    if not known:
        return labels, tuple(range(len(labels)))
    names = tuple(known[place] for place in range(len(known)))
    if set(labels) <= set(names):
        return names, tuple(names.index(label) for label in labels)
    numbers = tuple(str(place) for place in range(len(names)))
    if set(labels) <= set(numbers):
        return names, tuple(numbers.index(label) for label in labels)
    if names == tuple(f"LABEL_{number}" for number in numbers) and len(labels) == len(names):
        return labels, tuple(range(len(labels)))
    strange = [label for label in labels if label not in names]
    raise BadData(
        f"{corpus.origin} has the class {strange[0]!r}, which the model does not know; "
        f"its {len(names)} classes are {', '.join(names)}: use data with these"
    )


def _tags(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    names, places = class_names(model.config.id2label, task.corpus)
    examples, notes = _encoded(task, model, tokenizer)
    examples = [replace(one, labels=[x if x == IGNORE else places[x] for x in one.labels or ()]) for one in examples]
    found = tag(model, batches(examples, tokenizer, task.options.batch), ensemble=task.options.ensemble)
    rows, predictions = task.corpus.rows(task.split), []
    columns = (found.rows, found.words, found.said, found.right, found.counts(), found.correct, found.losses)
    for row, words, said, right, counts, correct, loss in zip(*columns, strict=True):
        value = rows[row].value
        assert isinstance(value, Tagged)
        values = {
            **dict(zip(("spans_right", "spans_said", "spans"), map(float, counts), strict=True)),
            "tokens": float(len(words)), "tokens_right": float(correct), "loss_sum": float(loss),
        }  # fmt: skip
        full = [dict(zip(words, tags, strict=True)) for tags in (said, right)]
        shown = [" ".join(tags.get(place, OUTSIDE) for place in range(len(value.words))) for tags in full]
        predictions.append(task.prediction(row, shown[0], (shown[1],), values))
    return EvaluationResult(scores=found.scores, predictions=tuple(predictions), notes=notes)


def _spans(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    examples, notes = _encoded(task, model, tokenizer)
    found = locate(model, batches(examples, tokenizer, task.options.batch), ensemble=task.options.ensemble)
    rows, may_say_nothing = task.corpus.rows(task.split), has_unanswered(task.corpus)
    asked = {row: value for row in sorted(found.found) if isinstance(value := rows[row].value, Passage)}
    texts = [
        "" if may_say_nothing and found.found[row].is_nothing else found.found[row].text(value)
        for row, value in asked.items()
    ]
    references = [list(dict.fromkeys(one.text for one in value.answers)) or [""] for value in asked.values()]
    predictions = tuple(
        task.prediction(row, text, right, {name: best(OF_ANSWER[name], text, right) for name in OF_SPANS[:2]})
        for row, text, right in zip(asked, texts, references, strict=True)
    )
    scores = (exact_match(texts, references), token_f1(texts, references), found.loss)
    return EvaluationResult(scores=scores, predictions=predictions, notes=notes)


def _losses(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    examples, notes = _encoded(task, model, tokenizer)
    report = evaluate_loss(model, batches(examples, tokenizer, task.options.batch), ensemble=task.options.ensemble)
    rows = task.corpus.rows(task.split)
    predictions = tuple(
        task.prediction(
            int(row),
            None,
            (rows[row].answer,) if rows[row].answer else (),
            {"loss_sum": float(loss), "tokens": float(tokens), "tokens_right": float(right)},
        )
        for row, loss, tokens, right in zip(*report.by_row(), strict=True)
    )
    scores = (report.loss, report.perplexity, report.token_accuracy)
    return EvaluationResult(scores=scores, predictions=predictions, notes=notes)


def _answers(task: Task, model: Any, tokenizer: PreTrainedTokenizerBase) -> EvaluationResult:
    rows, options = task.corpus.rows(task.split), task.options
    questions = _questions(rows)
    asked = list(questions.items())[: options.answers]
    if not asked:
        raise BadData(
            f"{task.corpus.origin}, {task.split} has no questions with answers, which {', '.join(OF_ANSWERS)} need; "
            f"ask for {', '.join(LOSS)}"
        )
    answers = complete(
        model,
        tokenizer,
        [turns for turns, _ in asked],
        max_source=_limit(task, model, tokenizer),
        max_new_tokens=options.max_new_tokens,
        sampling=options.sampling,
        batch_size=options.batch,
        template=options.template,
        ensemble=options.ensemble,
    )
    texts = [answer.text.strip() for answer in answers]
    references = [list(dict.fromkeys(rows[row].answer for row in same)) for _, same in asked]
    scores = [OF_ANSWERS[name](texts, references) for name in task.metrics() if name in OF_ANSWERS]
    predictions = tuple(
        task.prediction(same[0], text, right, _values(text, right, answer, task.metrics()))
        for (_, same), text, answer, right in zip(asked, texts, answers, references, strict=True)
    )
    notes = [f"the first {len(asked)} of {len(questions)} prompts were answered"] if len(asked) < len(questions) else []
    return EvaluationResult(scores=tuple(scores), predictions=predictions, notes=tuple(notes))


WHOLE: Mapping[str, Callable[[Task, Any, Any], EvaluationResult]] = {
    "classification": _classes,
    "cloze": _classes,
    "token-classification": _tags,
    "question-answering": _spans,
}
"""The tasks whose metrics all come from the same forwards."""


def _questions(rows: Sequence[Row]) -> dict[tuple[Turn, ...], list[int]]:
    """What is asked, to the rows that ask it and have an answer, in row order."""
    found: dict[tuple[Turn, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if row.asked and row.answer:
            found.setdefault(row.asked, []).append(place)
    return found


def _values(text: str, references: Sequence[str], answer: Generation, metrics: Sequence[str]) -> dict[str, float]:
    values = {name: best(of, text, references) for name, of in OF_ANSWER.items() if name in metrics}
    return {**values, "new_tokens": float(len(answer.ids)), "stopped": float(answer.stopped)}


def _together(predictions: Sequence[Prediction]) -> tuple[Prediction, ...]:
    """One record for each row, in row order: what a later one adds to an earlier one of the same row."""
    found: dict[int, Prediction] = {}
    for prediction in predictions:
        old = found.get(prediction.row)
        values = {**(old.values if old else {}), **prediction.values}
        found[prediction.row] = replace(prediction, values=values)
    return tuple(found[row] for row in sorted(found))
