"""What a teacher said, kept on disk: found again in any batch, gone on with after a kill, and never half read."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor

import budwood as bw
from budwood.data import Batch, Example, collate
from budwood.distill.cache import MANIFEST, cache_teacher, cost, name_of
from budwood.distill.cached import CachedTeacher
from budwood.distill.coarse import coarsened
from budwood.distill.content import Origin, fingerprint_of, hash_of_tokenizer, keys_of
from budwood.distill.losses import forward_kl
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher, Said, SameModel
from budwood.errors import BadCheckpoint, BadConfig, BadData, NotAvailable, WrongOrder
from budwood.methods import LoRA
from budwood.records.files import read_json, write_json
from families import VOCABULARY
from tiny_tokenizers import CHATML, make_tokenizer
from training import PAD, labelled, rows, tiny

ALL = slice(None)
ORIGIN = Origin(tokenizer="a" * 64, template="chat")


def made(folder: Path, *, teacher: Any = None, examples: Any = None, **settings: Any) -> Path:
    """A cache of 20 rows in shards of about three rows."""
    plain: dict[str, Any] = {"origin": ORIGIN, "pad_id": PAD, "k": 8, "batch_size": 2, "shard_tokens": 12}
    teacher = teacher or LiveTeacher(tiny(), "causal-lm")
    cache_teacher(teacher, rows() if examples is None else examples, folder, **{**plain, **settings})
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def kl(student: Tensor, said: Said) -> Tensor:
    """Forward KL to a teacher, live or cached."""
    mask = torch.ones(len(said), dtype=torch.bool)
    if said.ids is None or said.log_probs is None:
        return forward_kl(student, said.at(ALL), mask)
    return forward_kl(*coarsened(student, said.ids, said.log_probs), mask)


@pytest.mark.parametrize("side", ["right", "left"])
def test_all_choices_are_what_the_live_teacher_says_in_any_batch(tmp_path: Path, side: Any) -> None:
    live, examples = LiveTeacher(tiny(), "causal-lm"), rows()
    cached = CachedTeacher(made(tmp_path, k=VOCABULARY, teacher=live))
    for chosen in ([3], [17, 2, 9, 2], range(19, -1, -1)):
        batch = collate([examples[place] for place in chosen], PAD, side, width=20)
        said, expected = cached.say(batch), live.say(batch).at(ALL).log_softmax(-1)
        assert said.ids is not None and said.log_probs is not None and len(said) == batch.num_targets
        found = torch.zeros_like(expected).scatter(-1, said.ids, said.log_probs)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


def test_gradients_of_the_loss_are_the_live_teachers(tmp_path: Path) -> None:
    live, examples = LiveTeacher(tiny(), "causal-lm"), rows()
    student, batch = tiny(), collate(examples[:6], PAD)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = []
    for k in (None, VOCABULARY, 8):
        teacher = live if k is None else CachedTeacher(made(tmp_path / str(k), k=k, teacher=live))
        student.zero_grad()
        loss = kl(Reader("causal-lm")(student, batch).at(ALL), teacher.say(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        grad = torch.cat([parameter.grad.flatten() for parameter in student.parameters()])
        found.append((loss.item(), grad))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-3) and 0 < found[2][0] < found[0][0]
    assert (found[1][1] - found[0][1]).norm() < 1e-3 * found[0][1].norm()


def test_the_tail_is_not_lost_in_rounding(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.lm_head.weight.mul_(12.0)
    live, batch = LiveTeacher(model, "causal-lm"), collate(rows()[:5], PAD)
    said = CachedTeacher(made(tmp_path, k=60, teacher=live)).say(batch)
    p = live.say(batch).at(ALL).softmax(-1)
    tail = 1 - said.log_probs.exp().sum(-1)  # type: ignore[union-attr]
    expected = p.scatter(-1, said.ids, 0.0).sum(-1)  # type: ignore[arg-type]
    torch.testing.assert_close(tail, expected, rtol=5e-3, atol=3e-7)
    naive = 1 - p.gather(-1, said.ids).log().half().float().exp().sum(-1)  # type: ignore[arg-type]
    assert (naive / expected - 1).abs().median() > 0.05


def test_other_tasks(tmp_path: Path) -> None:
    classes = LiveTeacher(tiny("bert-classify"), "classification")
    cached = CachedTeacher(made(tmp_path / "classes", teacher=classes, examples=labelled()))
    batch = collate([replace(labelled()[4], label=0), labelled()[1]], PAD)  # the label is not what it was asked about
    said = cached.say(batch)
    found = torch.zeros(2, 3).scatter(-1, said.ids, said.log_probs)  # type: ignore[arg-type]
    torch.testing.assert_close(found, classes.say(batch).at(ALL).log_softmax(-1), rtol=1e-3, atol=1e-4)

    pairs = [Example(ids=[5 + n, 6, 7][: 2 + n % 2], target=[8, 9 + n, 3][n % 2 :], row=n) for n in range(8)]
    t5 = LiveTeacher(tiny("t5"), "seq2seq")
    cached = CachedTeacher(made(tmp_path / "pairs", teacher=t5, examples=pairs, k=VOCABULARY))
    batch = collate(pairs[5:] + pairs[:2], PAD)
    said = cached.say(batch)
    found = torch.zeros(len(said), VOCABULARY).scatter(-1, said.ids, said.log_probs)  # type: ignore[arg-type]
    torch.testing.assert_close(found, t5.say(batch).at(ALL).log_softmax(-1), rtol=1e-3, atol=1e-4)

    hidden = [Example(ids=e.ids, labels=e.labels, whole=e.ids, row=e.row) for e in rows()]
    cached = CachedTeacher(
        made(tmp_path / "hidden", teacher=LiveTeacher(tiny("bert"), "masked-lm"), examples=hidden)
    )  # fmt: skip
    assert len(cached.say(collate(hidden[:3], PAD))) == sum(e.num_targets for e in hidden[:3])
    other = replace(hidden[0], ids=[4, *hidden[0].ids[1:]])
    with pytest.raises(BadData, match=r"row 1 is not in the teacher cache .*each epoch hides other words"):
        cached.say(collate([other], PAD))
    with pytest.raises(BadConfig, match="about places in a window; give the teacher itself"):
        made(tmp_path / "ends", teacher=LiveTeacher(tiny("bert"), "question-answering"))


class Killed(LiveTeacher):
    """Stops the process, as it were, after some batches."""

    left = 5

    def say(self, batch: Batch) -> Said:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().say(batch)


def test_a_killed_job_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    lines: list[str] = []
    whole = content(made(tmp_path / "whole", say=lines.append))
    assert len(whole) > 5 and lines[0].endswith(f"0 of {len(whole) - 1} shards are there")
    assert lines[0].startswith(f"teacher cache in {tmp_path / 'whole'}: 50 bytes a token, ")
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        made(folder, teacher=Killed(tiny(), "causal-lm"))
    there = content(folder)
    assert 0 < len(there) - 1 < len(whole) - 1
    with pytest.raises(NotAvailable, match=rf"is not finished: {len(there) - 1} of {len(whole) - 1} shards; .*goes on"):
        CachedTeacher(folder)
    (folder / f".{name_of(3)}-x").write_bytes(b"half a sha")
    (folder / name_of(len(whole) - 2)).write_bytes(b"whole, but not in the manifest")
    examples = rows()
    examples.reverse()  # their order makes no difference
    made(folder, examples=examples, say=lines.append)
    assert content(folder) == whole
    assert f"{len(there) - 1} of {len(whole) - 1} shards are there" in lines[-1 - (len(whole) - len(there))]
    made(folder, teacher=Killed(tiny(), "causal-lm"), examples=[*examples, *examples])  # nothing is asked again
    assert content(folder) == whole


def test_damage_is_named_and_made_good_only_when_asked(tmp_path: Path) -> None:
    whole = content(made(tmp_path))
    damaged = tmp_path / name_of(1)
    damaged.write_bytes(whole[name_of(1)][:-1] + b"x")
    with pytest.raises(BadCheckpoint, match=r"shard-00001.safetensors is damaged; delete it and run the job"):
        CachedTeacher(tmp_path)
    with pytest.raises(BadCheckpoint, match=rf"shard-00001.safetensors is damaged \(1 of {len(whole) - 1} shards are"):
        made(tmp_path)
    made(tmp_path, redo=True)
    assert content(tmp_path) == whole
    damaged.unlink()
    with pytest.raises(BadCheckpoint, match=r"shard-00001.safetensors is gone; delete it and run"):
        CachedTeacher(tmp_path)
    made(tmp_path)
    assert content(tmp_path) == whole
    (tmp_path / MANIFEST).write_text('{"version"')
    with pytest.raises(BadCheckpoint, match=r"manifest.json cannot be read as JSON"):
        CachedTeacher(tmp_path)


def test_another_teacher_tokenizer_template_or_data_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path)
    other = LiveTeacher(tiny("gpt2"), "causal-lm")
    for settings, name in (
        ({"teacher": other}, "teacher"),
        ({"origin": replace(ORIGIN, tokenizer="b")}, "tokenizer aaaaaaaaaaaa instead of b"),
        ({"origin": replace(ORIGIN, template="plain")}, "template chat instead of plain"),
        ({"examples": rows(19)}, "data"),
        ({"k": 9}, "k 8 instead of 9"),
    ):
        with pytest.raises(BadConfig, match=f"holds another teacher cache, with .*{name}.*choose a new folder"):
            made(folder, **settings)
    CachedTeacher(folder, origin=replace(ORIGIN, task="causal-lm"))
    with pytest.raises(BadCheckpoint, match="its tokenizer is aaaaaaaaaaaa instead of b; its template is chat inst"):
        CachedTeacher(folder, origin=Origin(tokenizer="b", template="plain"))
    with pytest.raises(BadCheckpoint, match="its teacher is"):
        CachedTeacher(folder, origin=replace(ORIGIN, teacher=other.fingerprint()))
    write_json(folder / MANIFEST, {**read_json(folder / MANIFEST), "version": 2})
    with pytest.raises(BadCheckpoint, match="of version 2, and this Budwood reads 1"):
        CachedTeacher(folder)


def test_rows_that_were_not_asked_about_are_named(tmp_path: Path) -> None:
    cached = CachedTeacher(made(tmp_path))
    known = rows()[0]
    for other in (
        replace(known, ids=[*known.ids[:-1], 4], row=6),
        replace(known, labels=[*(known.labels or [])[:-1], -100], row=6),
    ):
        with pytest.raises(BadData, match=r"row 7 is not in the teacher cache .*20 rows; make the cache again"):
            cached.say(collate([known, other], PAD))
    with pytest.raises(NotAvailable, match="holds no teacher cache; make one first"):
        CachedTeacher(tmp_path / "nowhere")


def test_keys_do_not_hang_on_the_batch() -> None:
    examples = rows(6)
    alone = [keys_of(collate([example], PAD))[0] for example in examples]
    assert keys_of(collate(examples, PAD, "left", width=30)) == alone and len(set(alone)) == 6
    typed = [replace(e, types=[0] * (len(e.ids) - 1) + [1]) for e in labelled(2)]
    assert keys_of(collate(typed, PAD)) == [keys_of(collate([e], PAD))[0] for e in typed]
    assert keys_of(collate(typed, PAD)) != keys_of(collate(labelled(2), PAD))


def test_fingerprints_see_every_weight_and_the_plan() -> None:
    model = tiny()
    before = fingerprint_of(model)
    bw.attach(model, LoRA(rank=2), name="x")
    attached = fingerprint_of(model)
    assert attached != before == SameModel(model, "causal-lm").fingerprint()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    assert fingerprint_of(model) != attached
    assert hash_of_tokenizer(make_tokenizer()) == hash_of_tokenizer(make_tokenizer(CHATML))
    larger = make_tokenizer()
    larger.add_tokens(["<new>"])
    assert hash_of_tokenizer(larger) != hash_of_tokenizer(make_tokenizer())


def test_room_is_looked_for_before_and_a_full_disk_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cost(64, 1_000_000).bytes_per_token == 386
    assert str(cost(64, 1_000_000)) == "386 bytes a token, 1,000,000 tokens: 386.0 MB"
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 900))
        with pytest.raises(BadConfig, match=r"needs 0.0 MB in .* and 0.0 MB are free; make room, choose a folder"):
            made(tmp_path)
    assert not list(tmp_path.glob("shard*"))
    count = 0

    def full(handle: int) -> None:
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(BadConfig, match=r"the disk is full: 2 of \d+ shards are kept in .*goes on with shard 3"):
            made(tmp_path)
    assert sorted(content(tmp_path)) == [MANIFEST, name_of(0), name_of(1)]
    made(tmp_path)
    assert content(tmp_path) == content(made(tmp_path.with_name("whole")))


def test_two_writers_and_nonsense_are_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(WrongOrder, match="another process is writing the teacher cache"):
        made(tmp_path)
    with pytest.raises(BadConfig, match="k is 0, batch_size 2, shard_tokens 12; each must be at least 1"):
        made(tmp_path, k=0)
    with pytest.raises(BadData, match="none of 1 rows has a position to learn at"):
        made(tmp_path, examples=[Example(ids=[5, 6], labels=[5, -100], row=0)])
    broken = tiny()
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
    with pytest.raises(BadData, match="the teacher says NaN or infinity"):
        made(tmp_path, teacher=LiveTeacher(broken, "causal-lm"))
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match=r"cannot write .*file: "):
        made(tmp_path / "file")
