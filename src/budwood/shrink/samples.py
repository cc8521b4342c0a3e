"""What a model on the way says to a few held-out prompts: texts, or classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budwood.data import Conversation, Row, Task, collate, encode
from budwood.evaluate import classify, complete
from budwood.evaluate.task import class_names
from budwood.train.judging import ANSWER_TOKENS, CANDIDATES, reference
from budwood.train.material import Material, spread

TEXTS: tuple[Task, ...] = ("causal-lm", "seq2seq")
CLASSES: tuple[Task, ...] = ("classification", "cloze")


def asked(material: Material, count: int) -> list[Row]:
    """Held-out rows that are answered for people: different prompts, evenly spread, the short ones of many."""
    if material.held_split is None or material.corpus.task not in (*TEXTS, *CLASSES):
        return []
    rows = {row.prompt: row for row in material.corpus.rows(material.held_split) if row.prompt.strip()}
    few = sorted(spread(list(rows.values()), CANDIDATES), key=lambda row: len(row.prompt))
    return spread(few[: max(count, len(few) // 2)], count)


def answers(model: Any, material: Material, rows: Sequence[Row], template: Any = "auto") -> list[str]:
    """What the model says to each."""
    if not rows:
        return []
    if material.corpus.task in CLASSES:
        few = material.corpus.replace_splits({"test": tuple(rows)})
        examples = encode(few, "test", material.tokenizer, max_length=material.max_length).examples
        names, _ = class_names({} if few.cloze else model.config.id2label, few)
        guesses = classify(model, (collate([one], material.pad_id) for one in examples))
        return [str(names[int(guess)]) for guess in guesses.predictions]
    prompts = [row.asked if isinstance(row.value, Conversation) else row.prompt for row in rows]
    found = complete(
        model,
        material.tokenizer,
        prompts,
        max_new_tokens=ANSWER_TOKENS,
        max_source=material.max_length,
        template=template,
    )
    return [answer.text.strip() for answer in found]


def right(row: Row, material: Material) -> str:
    """What would have been right."""
    return reference(row, material.corpus.labels)
