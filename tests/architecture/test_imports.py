"""Who may import whom.

One table; any other edge fails, whether it stands at module level, in a function, or is there for typing only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "budwood"

# package (or top-level module) -> the packages of ours that it may import.  Arrows point down only.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "anatomy": {"errors"},
    "records": {"errors"},
    "data": {"errors"},
    "assets": {"errors"},
    "core": {"errors", "anatomy"},
    "methods": {"errors", "anatomy", "core"},
    "interop": {"errors", "anatomy", "core", "methods"},
    "evaluate": {"errors", "core", "data", "records"},
    "train": {
        *("errors", "anatomy", "core", "methods", "interop"),
        *("assets", "data", "evaluate", "records"),
    },
    "cli": {
        *("errors", "anatomy", "core", "methods", "interop"),
        *("assets", "data", "evaluate", "records", "train"),
    },
    "__init__": {
        *("errors", "anatomy", "core", "methods", "interop"),
        *("assets", "data", "evaluate", "records", "train"),
    },
    "__main__": {"cli"},
}

# module of methods/ -> the one other method that it is a kind of.
IS_A: dict[str, str] = {}

# third-party package -> where it may be imported ("core.inputs" is one module, "train" a whole package).
ONLY_IN: dict[str, set[str]] = {
    "accelerate": {"train"},
    "transformers": {
        *("anatomy", "core.inputs", "core.attention"),
        *("assets", "data", "evaluate", "train", "cli"),
    },
    "huggingface_hub": {"assets", "data"},
    "datasets": {"data"},
    "gguf": {"assets"},
    "sacrebleu": {"evaluate"},
    "bitsandbytes": {"core", "assets"},
    "cyclopts": {"cli"},
    "rich": {"cli", "data.preview"},
    "jinja2": {"data.templates", "records", "train"},
    "platformdirs": {"assets", "cli"},
    "filelock": {"assets", "records"},
    "psutil": {"records", "train"},
    "peft": set(),
}

# modules whose import must stay cheap: nothing heavy outside of functions.
LIGHT = ("errors", "records", "cli", "assets")
HEAVY = {"torch", "transformers", "accelerate", "datasets", "numpy", "safetensors", "huggingface_hub", "gguf"}

MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def imports(module: str, *, in_functions: bool = True, for_typing: bool = True) -> Iterator[tuple[str, int]]:
    """Yields (dotted name, line) for each import of a module; names of ours start with "budwood."."""
    path = MODULES[module]
    package = ["budwood", *module.split(".")]
    if path.name != "__init__.py":
        package.pop()
    if module == "__init__":
        package = ["budwood"]
    yield from _walk(ast.parse(path.read_text(encoding="utf-8")), package, in_functions, for_typing)


def _walk(node: ast.AST, package: list[str], in_functions: bool, for_typing: bool) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            above = package[: len(package) - child.level + 1] if child.level else []
            stem = ".".join([*above, *([child.module] if child.module else [])])
            names = [f"{stem}.{alias.name}" for alias in child.names]
            yield from ((name if _is_module(name) else stem, child.lineno) for name in names)
        elif not _skipped(child, in_functions, for_typing):
            yield from _walk(child, package, in_functions, for_typing)


def _is_module(name: str) -> bool:
    return name.removeprefix("budwood.") in MODULES and name.startswith("budwood.")


def _skipped(node: ast.AST, in_functions: bool, for_typing: bool) -> bool:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return not in_functions
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_typing


def home(module: str) -> str:
    """Returns the row of ALLOWED that a module belongs to."""
    return module.split(".")[0]


def within(module: str, places: set[str]) -> bool:
    """True where the module is one of the places or lies inside one."""
    return any(module == place or module.startswith(place + ".") for place in places)


def test_every_package_has_a_row() -> None:
    assert {home(module) for module in MODULES} <= set(ALLOWED)


def test_the_table_has_no_cycle() -> None:
    seen: set[str] = set()
    while rest := {row for row in ALLOWED if row not in seen}:
        ready = {row for row in rest if ALLOWED[row] <= seen}
        assert ready, f"a cycle among {sorted(rest)}"
        seen |= ready


@pytest.mark.parametrize("module", MODULES)
def test_imports_of_ours_point_down(module: str) -> None:
    own = home(module)
    for name, line in imports(module):
        if name.split(".")[0] != "budwood" or name == "budwood":
            continue
        other = name.split(".")[1]
        assert other == own or other in ALLOWED[own], f"{module}:{line} imports {name}: {own} may not"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("methods.")])
def test_methods_do_not_import_each_other(module: str) -> None:
    for name, line in imports(module):
        if name.startswith("budwood.methods."):
            assert name == f"budwood.{IS_A.get(module, '')}", f"{module}:{line} imports {name}"


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_stay_in_their_places(module: str) -> None:
    for name, line in imports(module, for_typing=False):
        places = ONLY_IN.get(name.split(".")[0])
        if places is not None:
            assert within(module, places), f"{module}:{line} imports {name}; its places are {sorted(places)}"


@pytest.mark.parametrize("module", [m for m in MODULES if home(m) in LIGHT])
def test_light_modules_import_nothing_heavy_when_loaded(module: str) -> None:
    for name, line in imports(module, in_functions=False, for_typing=False):
        assert name.split(".")[0] not in HEAVY, f"{module}:{line} imports {name} at module level"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_in_a_circle(module: str) -> None:
    """Walks module-level imports of ours depth first; a module must not be reached from itself."""
    ahead, seen = [module], set()
    while ahead:
        for name, _ in imports(ahead.pop(), in_functions=False, for_typing=False):
            inner = name.removeprefix("budwood.")
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            assert inner != module or module == "__init__", f"{module} is imported, in the end, by itself"
            if inner and inner not in seen:
                seen.add(inner)
                ahead.append(inner)
