"""Mistakes on the command line: exit code 2, the nearest word, and one JSON object where that was asked for."""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence

import pytest

from budwood.cli import app, failures
from budwood.cli.output import Level, Sink
from budwood.errors import BadData, BudwoodError, Diverged, NotAvailable, OutOfMemory, VerificationFailed

from .conftest import Run


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train", "--sed", "3"], "Did you mean --seed?"),
        (["train", "--seed", "x"], "--seed"),
        (["train", "--batch"], "--batch"),
        (["runs", "shw"], 'Did you mean "show"?'),
        (["train", "a", "b", "c"], "c"),
        (["methods", "lorra"], "did you mean 'lora'?"),
        (["methods", "lora:rnk=4"], "did you mean 'rank'?"),
    ],
)
def test_usage(budwood: Run, words: list[str], hint: str) -> None:
    ran = budwood(*words)
    assert ran.code == 2
    assert hint in ran.err and ran.err.startswith("error: ")
    assert ran.out == ""
    assert "Traceback" not in ran.err


def test_usage_says_where_the_help_is(budwood: Run) -> None:
    assert "`budwood train --help`" in budwood("train", "--sed", "3").err


def test_json_errors_are_one_object(budwood: Run) -> None:
    ran = budwood("train", "--sed", "3", "--json")
    assert ran.json["error"]["exit_code"] == ran.code == 2
    assert ran.json["error"]["kind"] == "Usage"
    ran = budwood("methods", "lorra", "--json")
    assert ran.json["error"]["kind"] == "BadConfig"
    assert "did you mean 'lora'?" in ran.json["error"]["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadData("x"), 3),
        (NotAvailable("x"), 4),
        (OutOfMemory("x"), 5),
        (MemoryError(), 5),
        (Diverged("x"), 6),
        (VerificationFailed("x"), 7),
        (BudwoodError("x"), 1),
        (KeyboardInterrupt(), 130),
        (failures.Terminated("stopped"), 143),
        (ZeroDivisionError("x"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), 2),
    ],
)
def test_exit_codes_hang_on_the_error(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, budwood: Run
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "build", lambda: fails)
    assert budwood("doctor").code == code
    assert budwood("doctor", "--json").json["error"]["exit_code"] == code


def test_a_bug_says_so_and_shows_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch, budwood: Run) -> None:
    def fails(words: Sequence[str], **_: object) -> None:
        raise ZeroDivisionError("nothing to divide")

    monkeypatch.setattr(app, "build", lambda: fails)
    short, long = budwood("doctor"), budwood("doctor", "-v")
    assert short.code == long.code == 1
    assert "bug in Budwood: ZeroDivisionError: nothing to divide" in short.err
    assert "report it" in short.err
    assert "Traceback" not in short.err and "Traceback" in long.err


def test_sigterm_ends_a_verb_with_143(monkeypatch: pytest.MonkeyPatch, budwood: Run) -> None:
    def waits(words: Sequence[str], **_: object) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(app, "build", lambda: waits)
    before = signal.getsignal(signal.SIGTERM)
    assert budwood("doctor").code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_quiet_keeps_errors(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink(level=Level.QUIET)
    sink.say("talk")
    sink.detail("detail")
    assert failures.report(BadData("row 3"), sink) == 3
    assert capsys.readouterr().err == "error: row 3\n"
