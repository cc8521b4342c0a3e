"""Answers that must not wait for torch: help, version, usage errors, and `import budwood`."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "accelerate", "datasets", "numpy")
SCRIPT = f"""
import json, sys
from budwood.cli.app import VERBS, main
loaded = {{}}
for words in [["--help"], ["--version"], ["trian"], *([verb, "--help"] for verb in VERBS)]:
    main(words)
    loaded[" ".join(words)] = [name for name in {HEAVY!r} if name in sys.modules]
print(json.dumps(loaded), file=sys.stderr)
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


def test_help_imports_nothing_heavy() -> None:
    loaded = json.loads(python(SCRIPT).stderr.splitlines()[-1])
    assert len(loaded) > 10
    assert {words: names for words, names in loaded.items() if names} == {}


def test_a_model_that_cannot_be_had_does_not_wait_for_torch() -> None:
    words = ["train", "some-org/some-model", "pyproject.toml"]
    done = python(
        f"import sys; from budwood.cli.app import main; code = main({words!r}); print(code, 'torch' in sys.modules)"
    )
    assert done.stdout.strip() == "4 False", done.stderr


def test_help_takes_little_cpu() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "budwood", "--help"], capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 0.6  # 0.25 s on an idle machine; twice that where the tests run side by side


def test_import_is_light_and_complete() -> None:
    done = python(
        "import sys, budwood; print([n for n in sys.modules if n.split('.')[0] in ('torch', 'transformers')])"
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_goes_to_stdout(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "budwood", *words], capture_output=True, text=True, check=True)
    assert "train" in done.stdout and done.stderr == ""
