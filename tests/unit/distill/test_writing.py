"""Answers by the teacher for whole corpora, and by the student for a batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from budwood.data import IGNORE, Conversation, Corpus, Example, Row, Text, Turn, collate, encode
from budwood.distill import writing
from budwood.distill.teacher import LiveTeacher
from budwood.distill.writing import ANSWERS, answered, write_answers
from budwood.errors import BadCheckpoint, BadConfig, BadData, WrongOrder
from budwood.evaluate import Sampling, complete
from budwood.evaluate.generate import stop_tokens
from small_models import save_llama, save_t5
from tiny_tokenizers import make_tokenizer
from training import PAD, labelled, rows, tiny

STOPS = (3,)


@pytest.fixture
def teacher(tmp_path: Path) -> Any:
    """A tiny teacher with random weights, which goes on for ever, and says its stop token after 'the'."""
    model = save_llama(tmp_path / "teacher", num_key_value_heads=2)
    return LiveTeacher(model, "causal-lm"), make_tokenizer()


def corpus(count: int = 5, **settings: Any) -> Corpus:
    made = []
    for number in range(count):
        turns = [Turn("user", f"name : {number} area"), Turn("assistant", "city centre", learned=True)]
        if number % 2:
            turns += [Turn("user", "What is it ?"), Turn("assistant", "An answer", learned=True)]
        value = Conversation(tuple(turns))
        made.append(Row(value=value, raw={}, file="faq.jsonl", number=number + 1))
    plain: dict[str, Any] = {"origin": "faq.jsonl", "shape": "messages", "task": "causal-lm"}
    return Corpus(**{**plain, "columns": (), "used": {}, "splits": {"train": tuple(made)}, **settings})


def stopping(monkeypatch: pytest.MonkeyPatch, texts: Any) -> list[int]:
    """`complete` that answers from a table instead, and the rows it was asked."""
    asked: list[int] = []

    def from_table(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[writing.Generation]:
        numbers = [int(prompt[0].content.split()[2]) for prompt in prompts]
        asked.extend(numbers)
        return [writing.Generation(text=t, ids=(), stopped=s) for t, s in map(texts, numbers)]

    monkeypatch.setattr(writing, "complete", from_table)
    return asked


def test_the_teacher_writes_what_it_generates(teacher: Any, tmp_path: Path) -> None:
    live, tokenizer = teacher
    source = corpus()
    live.model.train()
    expected = complete(live.model, tokenizer, [row.asked for row in source.rows("train")], max_new_tokens=60)
    stops = {answer.ids[7] for answer in expected}  # so that answers end early
    whole = complete(live.model, tokenizer, [r.asked for r in source.rows("train")], max_new_tokens=60, stop_ids=stops)
    written = write_answers(live, tokenizer, source, tmp_path / "new", max_new_tokens=60, stop_ids=stops, batch_size=2)
    assert all(m.training for m in live.model.modules())
    kept = [answer.text.strip() for answer in whole if answer.stopped and answer.text.strip()]
    new = written.corpus.rows("train")
    assert [row.answer for row in new] == kept and len(kept) == 5 - written.empty - written.cut > 0
    for row in new:
        assert isinstance(row.value, Conversation)
        assert [turn.learned for turn in row.value.turns] == [False] * (len(row.value.turns) - 1) + [True]
    assert written.corpus.hash() != source.hash() and "answers written by the teacher" in written.corpus.notes[0]
    assert encode(written.corpus, "train", tokenizer).report.learned_tokens > 0


def test_a_stopped_job_goes_on(teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, tokenizer = teacher
    monkeypatch.setattr(writing, "GROUP", 2)
    asked = stopping(monkeypatch, lambda n: (f"answer {n}", True))
    lines: list[str] = []
    whole = write_answers(live, tokenizer, corpus(), tmp_path / "whole", say=lines.append)
    assert asked == [0, 1, 2, 3, 4] and lines[-1] == "answers: 3 of 3 groups of 2 rows"
    before = (tmp_path / "whole" / ANSWERS).read_bytes()

    def killed(number: int) -> tuple[str, bool]:
        if number == 3:
            raise KeyboardInterrupt
        return f"answer {number}", True

    folder = tmp_path / "killed"
    stopping(monkeypatch, killed)
    with pytest.raises(KeyboardInterrupt):
        write_answers(live, tokenizer, corpus(), folder)
    with (folder / ANSWERS).open("ab") as file:
        file.write(b'{"group": 1, "answ')  # torn
    asked = stopping(monkeypatch, lambda n: (f"answer {n}", True))
    again = write_answers(live, tokenizer, corpus(), folder)
    assert asked == [2, 3, 4] and again == whole and (folder / ANSWERS).read_bytes() == before
    asked.clear()
    write_answers(live, tokenizer, corpus(), folder)
    assert asked == []
    for settings in ({"max_new_tokens": 7}, {"sampling": Sampling()}, {"stop_ids": (5,)}):
        with pytest.raises(BadConfig, match=r"answers to something else \(other \w+\); choose a new folder"):
            write_answers(live, tokenizer, corpus(), folder, **settings)
    with pytest.raises(BadConfig, match=r"other prompts"):
        write_answers(live, tokenizer, corpus(4), folder)
    content = before.splitlines(keepends=True)
    (folder / ANSWERS).write_bytes(content[0] + content[2])
    with pytest.raises(BadCheckpoint, match=r"answers.jsonl, line 2 is not of group 0; delete it from there on"):
        write_answers(live, tokenizer, corpus(), folder)


def test_sampled_answers_hang_on_the_seed_alone(teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live, tokenizer = teacher
    monkeypatch.setattr(writing, "GROUP", 2)
    texts = []
    for number, (seed, size) in enumerate([(1, 1), (1, 8), (2, 8)]):
        folder = tmp_path / str(number)
        with pytest.raises(BadData, match="none of 5 answers"):
            write_answers(
                live, tokenizer, corpus(), folder, sampling=Sampling(seed=seed), batch_size=size, max_new_tokens=3
            )
        texts.append((folder / ANSWERS).read_text().split("\n", 1)[1])
    assert texts[0] == texts[1] != texts[2]


def test_empty_and_cut_answers_are_left_out_and_told(
    teacher: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, tokenizer = teacher
    stopping(monkeypatch, lambda n: ("" if n == 1 else f" fine {n} ", n != 2))
    written = write_answers(live, tokenizer, corpus(), tmp_path)
    assert (written.empty, written.cut) == (1, 1)
    assert [row.answer for row in written.corpus.rows("train")] == ["fine 0", "fine 3", "fine 4"]
    assert written.corpus.notes == (
        "train: 3 answers written by the teacher",
        "train: 1 rows left out, whose answer by the teacher is empty",
        "train: 1 rows left out, whose answer by the teacher came to no end",
    )
    stopping(monkeypatch, lambda n: ("", True))
    with pytest.raises(BadData, match="none of 5 answers of the teacher is whole: 5 are empty and 0 came to no end"):
        write_answers(live, tokenizer, corpus(), tmp_path / "none")


def test_rows_that_cannot_be_answered_are_named(teacher: Any, tmp_path: Path) -> None:
    live, tokenizer = teacher
    text = Row(value=Text("abc"), raw={}, file="faq.txt", number=3)
    with pytest.raises(BadData, match="faq.txt, row 3: nothing is asked, so a teacher cannot answer"):
        write_answers(live, tokenizer, corpus(splits={"train": (text,)}), tmp_path)
    live.model.config.max_position_embeddings = 40
    with pytest.raises(BadData, match=r"faq.jsonl, row 1 to faq.jsonl, row 5: prompt 1 has \d+ tokens"):
        write_answers(live, tokenizer, corpus(), tmp_path, max_new_tokens=39)
    with FileLock(tmp_path / ".lock"), pytest.raises(WrongOrder, match="is writing the teacher's answers in"):
        write_answers(live, tokenizer, corpus(), tmp_path)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_student_answers_the_prompts_of_a_batch(family: str, side: Any) -> None:
    model, examples = tiny(family), rows(5)
    model.train()
    before = torch.get_rng_state()
    batch = answered(model, collate(examples, PAD, side), stops=STOPS, pad_id=PAD, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), before) and all(m.training for m in model.modules())
    assert batch.rows == tuple(range(5)) and batch.labels is not None
    model.eval()
    for number, example in enumerate(examples):
        prompt = example.ids[: (example.labels or []).index(next(x for x in example.labels or [] if x != IGNORE))]
        ids = list(prompt)
        while len(ids) < len(prompt) + 4 and ids[-1] not in STOPS:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert batch.input_ids[number, : batch.lengths[number]].tolist() == ids
        assert batch.labels[number, : batch.lengths[number]].tolist() == [IGNORE] * len(prompt) + ids[len(prompt) :]


def test_answers_end_with_their_stop_token_and_are_drawn_by_the_seed() -> None:
    model, batch = tiny(), collate(rows(6), PAD)
    free = answered(model, batch, stops=STOPS, pad_id=PAD, max_new_tokens=6)
    assert free.labels is not None
    stop = int(free.labels[0][free.labels[0] != IGNORE][1])
    cut = answered(model, batch, stops=(stop,), pad_id=PAD, max_new_tokens=6)
    assert cut.labels is not None
    assert cut.labels[0][cut.labels[0] != IGNORE].tolist()[-1] == stop and cut.lengths[0] < free.lengths[0]
    drawn = [
        answered(model, batch, stops=STOPS, pad_id=PAD, sampling=Sampling(seed=s), max_new_tokens=6).input_ids
        for s in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1]) and drawn[0].tolist() != drawn[2].tolist()


def test_an_encoder_decoder_answers_its_sources(tmp_path: Path) -> None:
    model, tokenizer = save_t5(tmp_path), make_tokenizer()
    dice = random.Random(0)
    pairs = [Example(ids=dice.choices(range(9, 400), k=3 + n), target=[8, 9, 1], row=n) for n in range(3)]
    stops = stop_tokens(model, tokenizer)
    batch = answered(model, collate(pairs, 2), stops=stops, pad_id=2, max_new_tokens=4)
    assert batch.target_lengths is not None and batch.labels is not None
    assert batch.input_ids.tolist() == collate(pairs, 2).input_ids.tolist()
    for number, pair in enumerate(pairs):
        ids = [0]
        while len(ids) < 5 and ids[-1] not in stops:
            logits = model(input_ids=torch.tensor([pair.ids]), decoder_input_ids=torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
        assert batch.labels[number, : batch.target_lengths[number]].tolist() == ids[1:]


def test_batches_that_cannot_be_answered_are_refused() -> None:
    model = tiny()
    with pytest.raises(BadConfig, match="only rows with prompts and answers can be answered by the student"):
        answered(tiny("bert-classify"), collate(labelled(2), PAD), stops=STOPS, pad_id=PAD)
    bare = collate([Example(ids=[5, 6], labels=[5, 6], row=8)], PAD)
    with pytest.raises(BadData, match="row 9 has no prompt for the student to answer"):
        answered(model, bare, stops=STOPS, pad_id=PAD)
    long = collate([Example(ids=[5] * 65, labels=[IGNORE] * 64 + [5], row=8)], PAD)
    with pytest.raises(BadData, match="row 9 has a prompt of 64 tokens, which leaves no room in 64"):
        answered(model, long, stops=STOPS, pad_id=PAD)
    short = collate([Example(ids=[5] * 64, labels=[IGNORE] * 62 + [5, 5], row=8)], PAD)
    assert answered(model, short, stops=STOPS, pad_id=PAD, max_new_tokens=9).lengths[0] <= 64
