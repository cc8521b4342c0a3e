"""What Budwood needs to run: a list that grows only on purpose, each with a reason."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

RUNTIME = {
    "torch": "tensors",
    "transformers": "models and tokenizers",
    "accelerate": "devices, mixed precision and several processes in the training loop",
    "safetensors": "weights on disk",
    "cyclopts": "the command line",
    "rich": "tables and progress on a terminal",
    "pyyaml": "config files, and one demo data set",
    "platformdirs": "where caches belong on this system",
    "filelock": "one process at a time makes an asset or owns a run",
    "psutil": "memory of this machine and process",
    "jinja2": "chat templates",
}
EXTRAS = {"demo", "hub", "metrics", "quant", "ray", "plots", "dev"}

# Imported by name without being asked for: they come with the ones above and are part of their interface.
COME_ALONG = {"numpy", "huggingface_hub", "tokenizers", "packaging"}
OPTIONAL = {"gguf", "datasets", "sacrebleu", "bitsandbytes", "matplotlib", "ray"}
CALLED_OTHERWISE = {"pyyaml": "yaml"}


def name_of(requirement: str) -> str:
    return re.split(r"[<>=\[ ;~!]", requirement, maxsplit=1)[0].lower()


def test_runtime_dependencies_are_the_listed_ones() -> None:
    assert {name_of(requirement) for requirement in PROJECT["dependencies"]} == set(RUNTIME)


def test_extras_are_the_listed_ones() -> None:
    assert set(PROJECT["optional-dependencies"]) == EXTRAS


def test_everything_imported_is_asked_for() -> None:
    asked = {CALLED_OTHERWISE.get(name, name) for name in RUNTIME} | COME_ALONG | OPTIONAL | {"budwood"}
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top in asked or top in sys.stdlib_module_names, f"{path.name} imports {name}"


def test_every_requirement_has_an_exact_version_that_fits() -> None:
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    )
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {name_of(requirement).replace("_", "-") for requirement in requirements} - {"budwood"}
    assert names <= set(pinned)
    assert not any("+" in version for version in pinned.values())
