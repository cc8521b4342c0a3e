"""Can this teacher teach this student: the same task, the same classes, the same tokens, and what to do where not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from budwood.distill.align import num_tokens, vocabulary_difference
from budwood.distill.config import Distillation
from budwood.distill.supervised import Columns
from budwood.errors import BadConfig
from budwood.train.material import check_kind

TOKENS = ("causal-lm", "seq2seq", "masked-lm")
"""Tasks that predict tokens."""
CLASSES = ("classification", "token-classification")
"""Tasks with a head that has a column for each class."""
ALIGNED = "uld"
"""The loss that needs no common vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a teacher's words are compared with a student's."""

    config: Distillation
    """With the loss that it comes to."""
    own: Columns = None
    """Of the student's logits."""
    other: Columns = None
    """Of the teacher's logits."""
    reads_apart: bool = False
    """Whether the teacher reads its own tokens of each row."""
    lines: tuple[str, ...] = ()
    """What a person should know."""


def match(
    config: Distillation,
    task: str,
    labels: Sequence[str] | None,
    student: Any,
    tokenizer: Any,
    teacher: Any,
    words: Any,
) -> Match:
    """tokenizer, words: of the student and of the teacher; None is the student's.

    Raises BadConfig, saying what to do, where the two cannot be matched under these settings.
    """
    _check_task(teacher, task)
    columns, lines = _classes(teacher, task, labels)
    difference = "" if words is None or words is tokenizer else vocabulary_difference(tokenizer, words)
    if difference:
        config = _apart(config, task, difference)
        return Match(
            config=config, other=columns, reads_apart=True,
            lines=(*lines, f"two vocabularies: {difference}; the teacher reads its own tokens"),
        )  # fmt: skip
    if task not in TOKENS:
        return Match(config=config, other=columns, lines=lines)
    tokens = _common_columns(student, teacher, tokenizer)
    return Match(config=config, own=tokens, other=tokens, lines=lines)


def class_order(teacher: Sequence[str], labels: Sequence[str], shown: str) -> Columns:
    """Where the teacher has each of the student's classes; None for the same order.

    Raises BadConfig where the two do not name the same classes.
    """
    if tuple(teacher) == tuple(labels):
        return None
    if sorted(teacher) != sorted(labels):
        raise BadConfig(
            f"{shown} knows the classes {', '.join(teacher)}, and the student {', '.join(labels)}; "
            "take a teacher that was trained on data with the same classes"
        )
    return tuple(list(teacher).index(label) for label in labels)


def _check_task(teacher: Any, task: str) -> None:
    """Raises BadConfig for a model of another form than the task needs."""
    name = type(teacher).__name__
    if isinstance(teacher, PreTrainedModel):
        try:
            check_kind(teacher, task)
        except BadConfig as error:
            raise BadConfig(f"the teacher cannot teach {task}: {error}") from error
    if task == "causal-lm" and teacher.get_output_embeddings() is None:
        raise BadConfig(f"the teacher is a {name}, which says no tokens; load it with AutoModelForCausalLM")
    kind = type(teacher.config)
    if task == "classification":
        known = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
        if kind in known and type(teacher) is not known[kind]:
            raise BadConfig(
                f"the teacher is a {name}, which does not classify texts; load it with "
                "AutoModelForSequenceClassification, or name a run that was trained for it"
            )


def _classes(teacher: Any, task: str, labels: Sequence[str] | None) -> tuple[Columns, tuple[str, ...]]:
    """(the teacher's columns in the student's order, what to say)."""
    if task not in CLASSES or labels is None:
        return None, ()
    names = tuple(str(teacher.config.id2label[number]) for number in range(teacher.config.num_labels))
    if names == tuple(f"LABEL_{number}" for number in range(len(names))) and len(names) == len(labels):
        if tuple(labels) == names:
            return None, ()
        return None, (
            f"the teacher does not name its classes; they are taken to be {', '.join(labels)}, in this order",
        )
    columns = class_order(names, labels, "the teacher")
    return columns, () if columns is None else (f"the teacher has the classes in another order: {', '.join(names)}",)


def _apart(config: Distillation, task: str, difference: str) -> Distillation:
    """The settings for a teacher with other tokens. Raises BadConfig for those that need the same."""
    instead = "take a teacher with the student's tokenizer"
    if task in ("masked-lm", "question-answering"):
        raise BadConfig(f"{difference}; the targets of {task} are other tokens in each: {instead}")
    for name, is_on, mend in (
        ("top_k", config.top_k is not None, "leave top_k out: the teacher is asked in every step"),
        ("on_policy", bool(config.on_policy), "leave on_policy out"),
        ("hidden_weight", bool(config.hidden_weight), "leave it at 0"),
        ("attention_weight", bool(config.attention_weight), "leave it at 0"),
        ("relation_weight", bool(config.relation_weight), "leave it at 0"),
    ):
        if is_on:
            raise BadConfig(f"{difference}; {name} needs the same tokens: {mend}, or {instead}")
    if task not in TOKENS:
        return config
    if config.loss not in (None, ALIGNED):
        raise BadConfig(
            f"{difference}; {config.loss} compares token by token: leave loss out (it is {ALIGNED} then), or {instead}"
        )
    return replace(config, loss=ALIGNED)


def _common_columns(student: Any, teacher: Any, tokenizer: Any) -> Columns:
    """Columns that stand for tokens, where one of the two has rows of padding behind them that the other has not."""
    own, other = (model.get_output_embeddings().weight.shape[0] for model in (student, teacher))
    if own == other:
        return None
    tokens = num_tokens(tokenizer)
    for name, width in (("student", own), ("teacher", other)):
        if width < tokens:
            raise BadConfig(
                f"the {name} has {width} output rows and its tokenizer {tokens} tokens: they do not belong together; "
                "give the tokenizer that the model was trained with"
            )
    return tokens
