from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from budwood.cli.output import Level, Sink, Table, amount, duration, plain_table, size


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_talk_goes_to_stderr_and_data_to_stdout() -> None:
    out, err = io.StringIO(), io.StringIO()
    sink = Sink(stdout=out, stderr=err)
    sink.say("talk [not markup]")
    sink.data("data")
    sink.result({"a": 1})
    assert (out.getvalue(), err.getvalue()) == ("data\n", "talk [not markup]\n")


def test_json_is_one_object_and_nothing_else() -> None:
    out = io.StringIO()
    sink = Sink(is_json=True, stdout=out, stderr=io.StringIO())
    sink.data("data")
    sink.show(Table(("a",), [(1,)]))
    sink.result({"path": Path("x"), "nan": float("nan"), "rows": (1, 2), "nested": {3: {None}}})
    assert json.loads(out.getvalue()) == {"path": "x", "nan": "nan", "rows": [1, 2], "nested": {"3": [None]}}


def test_levels() -> None:
    for level, heard in ((Level.QUIET, ""), (Level.NORMAL, "say\n"), (Level.VERBOSE, "say\ndetail\n")):
        err = io.StringIO()
        sink = Sink(level=level, stderr=err)
        sink.say("say")
        sink.detail("detail")
        assert err.getvalue() == heard


def test_plain_tables_are_aligned() -> None:
    table = Table(("name", ">count", "note"), [("a", 7, None), ("long", 1200, "x\ny")], title="t")
    assert plain_table(table) == ["t", "name  count  note", "a         7", "long   1200  x y"]
    assert plain_table(Table(("", ""), [("a", "b")])) == ["a  b"]
    assert plain_table(Table(("name",), [])) == ["name"]


def test_no_color_keeps_a_terminal_without_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        err = Terminal()
        Sink(stderr=err).complain("careful")
        assert ("\x1b[31m" in err.getvalue()) is not no_color
        assert "careful" in err.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    err = Terminal()
    sink = Sink(stderr=err)
    sink.say("hello", "bold")
    assert err.getvalue() == "hello\n" and not sink.is_live


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (amount(940), "940"), (amount(12_400), "12.4k"), (amount(134_515_008), "134.5M"), (amount(7.1e9), "7.1B"),
        (size(640), "640 B"), (size(12 * 2**10), "12 KiB"), (size(1.25 * 2**30), "1.2 GiB"),
        (duration(8.23), "8.2 s"), (duration(45), "45 s"), (duration(750), "12 m 30 s"), (duration(7500), "2 h 05 m"),
        (duration(59.7), "1 m 00 s"),
    ],
)  # fmt: skip
def test_numbers_in_few_characters(found: str, expected: str) -> None:
    assert found == expected
