"""Answers in place of labels: the teacher's, written once for all rows, or the student's own, batch by batch.

Kim & Rush 2016 (arXiv:1606.07947): a student that learns what the teacher writes. GKD (Agarwal et al. 2023,
arXiv:2306.13649): a student that learns what the teacher says about what the student writes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budwood.data import IGNORE, Batch, Conversation, Corpus, Example, Row, Turn, collate
from budwood.distill.cache import arithmetic_of, locked
from budwood.distill.content import hash_of_tokenizer
from budwood.distill.teacher import LiveTeacher
from budwood.errors import BadCheckpoint, BadConfig, BadData
from budwood.evaluate import Generation, Sampling, complete, evaluating
from budwood.evaluate.generate import continued, room_of
from budwood.evaluate.inputs import bare
from budwood.records.files import Json, append_line, read_lines
from budwood.train.randomness import same_randomness

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data import Template

ANSWERS = "answers.jsonl"
"""What was written: a line that says what it was made from, then one for each group of rows."""
GROUP = 64
"""Rows of a line: what a killed job has to write again, at most."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a teacher wrote for the rows of a split."""

    corpus: Corpus
    """The rows whose answers are whole, with those answers alone learned; notes say what was left out."""
    empty: int
    """Answers without a word, left out."""
    cut: int
    """Answers that came to no end within max_new_tokens, left out: who learns from them learns to stop anywhere."""


def write_answers(
    teacher: LiveTeacher,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    folder: str | Path,
    *,
    split: str = "train",
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    max_source: int | None = None,
    batch_size: int = 8,
    template: Template = "auto",
    stop_ids: Collection[int] = (),
    say: Callable[[str], None] = lambda line: None,
) -> Written:
    """The corpus with the last answer of each row of a split written by the teacher; greedy without `sampling`.

    What is written is kept in `folder`, and a job that was stopped goes on there; rows need no answer of their own.
    tokenizer, max_source, template, stop_ids: as `evaluate.complete` has them
    say     called with a line for people after each group of rows
    Raises  BadData for rows that ask nothing, prompts that do not fit, and where no answer is whole; BadConfig for a
            folder with other answers; WrongOrder while another process is writing them.
    """
    rows, folder = corpus.rows(split), Path(folder)
    asking = next((row for row in rows if not row.asked), None)
    if asking is not None:
        raise BadData(f"{asking.where}: nothing is asked, so a teacher cannot answer; give rows with a prompt")
    how: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "max_source": max_source,
        "template": template,
        "stop_ids": sorted(stop_ids),
    }
    made_of = {
        "teacher": teacher.fingerprint(),
        "tokenizer": hash_of_tokenizer(tokenizer),
        "prompts": replace(corpus, splits={split: tuple(_asked(row) for row in rows)}).hash(),
        "sampling": None if sampling is None else asdict(sampling),
        "arithmetic": arithmetic_of(teacher.model.device),
        **how,
    }

    def ask(group: int) -> list[Generation]:
        some = rows[group * GROUP : (group + 1) * GROUP]
        drawn = _of_group(sampling, group)
        prompts = [row.asked for row in some]
        try:
            with teacher.speaking():
                return complete(teacher.model, tokenizer, prompts, sampling=drawn, batch_size=batch_size, **how)
        except BadData as error:
            raise BadData(f"{some[0].where} to {some[-1].where}: {error}") from error

    with locked(folder, "the teacher's answers"):
        answers = [
            line for group in _groups(folder / ANSWERS, made_of, -(-len(rows) // GROUP), ask, say) for line in group
        ]
    return _written(corpus, split, answers)


def answered(
    model: Any,
    batch: Batch,
    *,
    stops: tuple[int, ...],
    pad_id: int,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
) -> Batch:
    """The same prompts with the model's own answers as labels, which end with a stop token unless they are cut.

    A prompt is what stands before the first learned token, or what an encoder-decoder reads; padding may be on either
    side. Modes and random state of the model stay as they are.
    stops    `evaluate.generate.stop_tokens`
    sampling greedy without it; rows of a batch differ, batches of one seed do not: give each step its own
    Raises   BadConfig for a batch without prompts and answers, BadData for a row without a prompt, or
             with one that is too long.
    """
    own = bare(model)
    reads_apart = batch.target_lengths is not None
    if batch.labels is None or batch.labels.ndim != 2 or not (batch.shift or reads_apart) or not own.can_generate():
        raise BadConfig("only rows with prompts and answers can be answered by the student; leave on-policy out")
    prompts = list(_prompts(batch))
    room = None if reads_apart else room_of(own)
    for prompt in prompts:
        if not prompt.ids:
            raise BadData(f"row {prompt.row + 1} has no prompt for the student to answer; leave on-policy out")
        if room is not None and len(prompt.ids) >= room:
            raise BadData(
                f"row {prompt.row + 1} has a prompt of {len(prompt.ids)} tokens, which leaves no room in {room}"
            )
    if room is not None:
        max_new_tokens = min(max_new_tokens, room - max(len(prompt.ids) for prompt in prompts))
    with same_randomness(), evaluating(own):
        new = continued(own, prompts, range(len(prompts)), stops, max_new_tokens, sampling)
    made = [_labelled(prompt, ids, stops, reads_apart) for prompt, ids in zip(prompts, new, strict=True)]
    return collate(made, pad_id).to(batch.input_ids.device)


def _prompts(batch: Batch) -> Iterator[Example]:
    assert batch.labels is not None
    for number, length in enumerate(batch.lengths):
        start = int(batch.attention_mask[number].argmax())
        end = length
        if batch.target_lengths is None:
            learned = batch.labels[number, start : start + length] != IGNORE
            end = int(learned.int().argmax()) if bool(learned.any()) else length
        ids: list[int] = batch.input_ids[number, start : start + end].tolist()
        yield Example(ids=ids, row=batch.rows[number])


def _labelled(prompt: Example, new: list[int], stops: Collection[int], reads_apart: bool) -> Example:
    """The answer up to and with its stop token."""
    end = next((place for place, token in enumerate(new, start=1) if token in stops), len(new))
    answer = new[:end]
    if reads_apart:
        return replace(prompt, target=answer)
    return replace(prompt, ids=prompt.ids + answer, labels=[IGNORE] * len(prompt.ids) + answer)


def _asked(row: Row) -> Row:
    return replace(row, value=Conversation(row.asked))


def _of_group(sampling: Sampling | None, group: int) -> Sampling | None:
    """Each group's own streams, which do not hang on where a job was stopped."""
    if sampling is None:
        return None
    return replace(sampling, seed=random.Random(f"budwood written {sampling.seed} {group}").getrandbits(32))


def _groups(
    file: Path,
    made_of: dict[str, Json],
    count: int,
    ask: Callable[[int], list[Generation]],
    say: Callable[[str], None],
) -> Iterator[list[Json]]:
    """The answers of each group: those that are there, then those that are asked for."""
    lines = read_lines(file)
    if not lines:
        append_line(file, made_of)
    other = [f"other {key}" for key, value in made_of.items() if lines and lines[0].get(key) != value]
    if other:
        raise BadConfig(
            f"{file} holds answers to something else ({', '.join(other)}); choose a new folder, or delete it"
        )
    for number, line in enumerate(lines[1:]):
        if line.get("group") != number:
            raise BadCheckpoint(f"{file}, line {number + 2} is not of group {number}; delete it from there on")
        yield line["answers"]
    for number in range(len(lines[1:]), count):
        answers = [{"text": one.text.strip(), "stopped": one.stopped} for one in ask(number)]
        append_line(file, {"group": number, "answers": answers})
        say(f"answers: {number + 1} of {count} groups of {GROUP} rows")
        yield answers


def _written(corpus: Corpus, split: str, answers: Sequence[Json]) -> Written:
    kept: list[Row] = []
    for row, answer in zip(corpus.rows(split), answers, strict=True):
        if answer["text"] and answer["stopped"]:
            turn = Turn("assistant", answer["text"], learned=True)
            kept.append(replace(row, value=Conversation((*(replace(t, learned=False) for t in row.asked), turn))))
    empty = sum(not answer["text"] for answer in answers)
    cut = len(answers) - len(kept) - empty
    if not kept:
        raise BadData(
            f"none of {len(answers)} answers of the teacher is whole: {empty} are empty and {cut} came to no end; "
            "give more max_new_tokens, or a teacher that answers such prompts"
        )
    notes = [f"{split}: {len(kept)} answers written by the teacher"]
    notes += [f"{split}: {empty} rows left out, whose answer by the teacher is empty"] * bool(empty)
    notes += [f"{split}: {cut} rows left out, whose answer by the teacher came to no end"] * bool(cut)
    return Written(corpus=corpus.replace_splits({**corpus.splits, split: tuple(kept)}, *notes), empty=empty, cut=cut)
