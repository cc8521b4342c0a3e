"""Files and functions stay small; names say something; what is forbidden is not there."""

from __future__ import annotations

import ast
import re

from source_files import FILES, functions_of, text_of, tree_of

MAX_LINES, MAX_FUNCTION_LINES, MAX_LOOP_LINES = 400, 60, 200

# Longer than allowed: lists that may only become shorter.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {
    "train/loop.py:fit": 84,  # the visible loop: what happens in a step is read from top to bottom, in one place
}

EMPTY_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|misc|managers?|handlers?|tools)$")
FORBIDDEN = {
    r"\bhasattr\(": "declare it, or compare versions",
    r"\bgetattr\([^,()]+, *[\"']": "the name is known: write it as an attribute",
    r"\bwarnings\.warn\(": "raise",
    r"#\s*(TODO|FIXME|XXX)": "do it, or open a ticket",
    r"except[^:\n]*:\s*\n\s*pass\b": "no error is swallowed",
    r"\bexec\(": "write the code",
    r"torch\.load\(": "safetensors only",
}

# (file, beginning of a pattern): what is allowed all the same, and why.
ALLOWED: dict[tuple[str, str], str] = {
    ("assets/folder.py", "torch"): "the text of the command that converts a pickle, with weights_only",
    ("core/store.py", "torch"): "the text of the command that converts a pickle, with weights_only",
}
KEYWORD_TAKERS = {
    "core/attention.py:attend": "transformers' signature of attention functions, which differ in what else they take",
    "fast/attention.py:attend": "the same",
    "fast/stacks.py:_or_as_it_is": "stands in for the forward of any block",
    "fast/attention.py:attend_short": "the same",
    "core/attention.py:_attend": "the same, with the function's name in front",
    "calling.py:__call__": "the package called as a function: hands on to train.run.train, which checks",
    "train/job.py:as_config": "flags by name, checked strictly by TrainConfig.from_dict",
}


def test_files_are_short() -> None:
    lengths = {name: len(text_of(name).splitlines()) for name in FILES}
    assert {name: length for name, length in lengths.items() if length > LONG_FILES.get(name, MAX_LINES)} == {}
    assert {name for name in LONG_FILES if lengths[name] <= MAX_LINES} == set(), "no longer needed in LONG_FILES"


def test_the_loop_fits_on_few_screens() -> None:
    assert len(text_of("train/loop.py").splitlines()) <= MAX_LOOP_LINES


def test_functions_are_short() -> None:
    lengths = {
        f"{name}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name in FILES
        for node in functions_of(name)
    }
    too_long = {
        name: length for name, length in lengths.items() if length > LONG_FUNCTIONS.get(name, MAX_FUNCTION_LINES)
    }
    assert too_long == {}
    short_enough = {name for name in LONG_FUNCTIONS if lengths.get(name, 0) <= MAX_FUNCTION_LINES}
    assert short_enough == set(), "no longer needed in LONG_FUNCTIONS"


def test_names_say_something() -> None:
    assert [name for name, path in FILES.items() if EMPTY_NAMES.search(path.stem)] == []


def test_nothing_forbidden() -> None:
    found = [
        f"{name}: {match[0].strip()} ... {instead}"
        for name in FILES
        for pattern, instead in FORBIDDEN.items()
        if (match := re.search(pattern, text_of(name))) and (name, pattern.partition("\\.")[0]) not in ALLOWED
    ]
    assert found == []


def test_every_module_says_what_it_is() -> None:
    assert [name for name in FILES if not ast.get_docstring(tree_of(name))] == []


def test_keyword_arguments_are_not_handed_through_unnamed() -> None:
    takers = {f"{name}:{node.name}" for name in FILES for node in functions_of(name) if node.args.kwarg is not None}
    assert takers == set(KEYWORD_TAKERS)
