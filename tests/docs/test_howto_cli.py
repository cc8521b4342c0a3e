"""docs/howto: every command of these pages runs, in order, in one folder, on a tiny model."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from budwood.cli.app import main
from budwood.errors import BudwoodError
from world import World, make_world

PAGES = Path(__file__).parents[2] / "docs" / "howto"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^((?:[A-Z_]+=\S+ )*)budwood (.*?)(?: && .*| \|\| .*)?$")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def commands(page: str) -> list[tuple[str, bool]]:
    """(text, whether it is a budwood command), blocks cut where budwood commands stand on lines of their own."""
    parts: list[tuple[str, bool]] = []
    for block in BLOCK.findall((PAGES / page).read_text(encoding="utf-8")):
        plain: list[str] = []
        for line in block.splitlines():
            if COMMAND.match(line):
                parts += [("\n".join(plain), False), (line, True)]
                plain = []
            else:
                plain.append(line)
        parts.append(("\n".join(plain), False))
    return [(text, is_ours) for text, is_ours in parts if text.strip()]


@pytest.mark.parametrize(
    "page",
    [
        *("train.md", "adapters.md", "compose.md", "cloze.md", "prompts.md", "distill.md", "shrink.md"),
        "compare.md",
        *("cli.md", "exit-codes.md"),
    ],
)
def test_every_command_works(
    page: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo-lm").symlink_to(world.model)  # a folder wins over the demo model of the same name
    found = commands(page)
    assert sum(is_ours for _, is_ours in found) >= 2
    for text, is_ours in found:
        if not is_ours:
            subprocess.run(["bash", "-euc", text.replace("10m", "2steps")], check=True)
            continue
        matched = COMMAND.match(text)
        assert matched is not None
        with monkeypatch.context() as patched:
            for name, value in re.findall(r"([A-Z_]+)=(\S+)", matched[1]):
                patched.setenv(name, value)
            status = main([word.replace("10m", "2steps") for word in shlex.split(matched[2])])
        expected = 3 if "||" in text else 0
        assert status == expected, f"{text}\n{capsys.readouterr().err}"
    for code in PYTHON.findall((PAGES / page).read_text(encoding="utf-8")):  # after the commands, in the same folder
        exec(compile(code, page, "exec"), {})


def test_the_table_of_exit_codes_has_every_code() -> None:
    listed = set(re.findall(r"^\| (\d+) \|", (PAGES / "exit-codes.md").read_text(encoding="utf-8"), re.MULTILINE))
    kinds = {BudwoodError}
    while more := {child for kind in kinds for child in kind.__subclasses__()} - kinds:
        kinds |= more
    ours = {kind.exit_code for kind in kinds if kind.__module__.startswith("budwood.")}
    assert listed == {"0", "130", "143"} | {str(code) for code in ours}


def test_the_flags_that_the_help_leaves_out_are_in_the_page() -> None:
    from dataclasses import fields

    from budwood.train.config import TrainConfig

    text = (PAGES / "cli.md").read_text(encoding="utf-8")
    for field in fields(TrainConfig):
        no = "no-" if field.name in ("group_by_length", "pack") else ""
        flag = f"--{no}{field.name.replace('_', '-')}"
        assert f"`{flag}" in text or flag == "--budget", flag
