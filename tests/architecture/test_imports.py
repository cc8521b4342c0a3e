"""Who may import whom.

One table; any other edge fails, whether it stands at module level, in a function, or is there for typing only.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from source_files import FILES, tree_of

# package (or top-level module) -> the packages of ours that it may import.  Arrows point down only.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "calling": set(),
    "intervals": {"errors"},
    "anatomy": {"errors"},
    "records": {"errors"},
    "data": {"errors"},
    "assets": {"errors"},
    "core": {"errors", "anatomy"},
    "methods": {"errors", "anatomy", "core"},
    "fast": {"errors", "anatomy", "core"},
    "interop": {"errors", "anatomy", "core", "methods"},
    "combine": {"errors", "calling", "anatomy", "core", "methods"},
    "report": {"errors", "intervals", "records"},
    "evaluate": {"errors", "intervals", "core", "data", "records"},
    "train": {
        *("errors", "calling", "anatomy", "core", "methods", "interop", "fast"),
        *("assets", "data", "evaluate", "records"),
    },
    "prune": {"errors", "anatomy", "core", "data", "evaluate"},
    "distill": {
        *("errors", "calling", "anatomy", "core", "methods", "interop", "fast"),
        *("assets", "data", "evaluate", "records", "prune", "train"),
    },
    "shrink": {
        *("intervals", "errors", "calling", "anatomy", "core", "methods", "interop"),
        *("assets", "data", "evaluate", "records", "report", "prune", "train", "distill"),
    },
    "compare": {
        *("errors", "calling", "anatomy", "core", "methods", "interop"),
        *("assets", "data", "evaluate", "records", "report", "train"),
    },
    "cli": {
        *("errors", "anatomy", "core", "methods", "combine", "interop", "report", "compare"),
        *("assets", "data", "evaluate", "fast", "records", "train", "distill", "shrink"),
    },
    "__init__": {
        *("errors", "anatomy", "core", "methods", "combine", "interop", "report", "compare"),
        *("assets", "data", "evaluate", "records", "train", "distill", "shrink"),
    },
    "__main__": {"cli"},
}

# module of methods/ -> the one other method that it is a kind of.
IS_A: dict[str, str] = {"methods.compacter": "methods.bottleneck"}

# module of methods/ -> the other methods that it is made of.
MADE_OF: dict[str, set[str]] = {
    "methods.mam": {"methods.prefix", "methods.bottleneck"},
    "methods.unipelt": {"methods.prefix", "methods.bottleneck", "methods.lora"},
}

# modules of methods/ that hold no method but a part of several: methods may import them, and they no method.
PARTS = {
    *("methods.gate", "methods.heads", "methods.invertible"),
    *("methods.narrow", "methods.union", "methods.words"),
}

# third-party package -> where it may be imported ("core.inputs" is one module, "train" a whole package).
ONLY_IN: dict[str, set[str]] = {
    "accelerate": {"train"},
    "transformers": {
        *("anatomy", "core.entrance", "core.inputs", "core.attention", "core.cache_shim"),
        "fast.attention",
        *("assets", "data", "evaluate", "prune", "train", "distill", "shrink", "cli"),
    },
    "huggingface_hub": {"assets", "data"},
    "datasets": {"data"},
    "gguf": {"assets"},
    "sacrebleu": {"evaluate"},
    "bitsandbytes": {"core", "assets"},
    "cyclopts": {"cli"},
    "rich": {"cli", "data.preview"},
    "jinja2": {"data.templates", "records", "train", "shrink", "report"},
    "matplotlib": {"report"},
    "ray": {"compare"},
    "platformdirs": {"assets", "cli"},
    "filelock": {"assets", "records", "distill"},
    "psutil": {"records", "train"},
    "peft": set(),
}

# modules whose import must stay cheap: nothing heavy outside of functions.
LIGHT = ("errors", "records", "cli", "assets")
HEAVY = {"torch", "transformers", "accelerate", "datasets", "numpy", "safetensors", "huggingface_hub", "gguf"}

MODULES = {name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): name for name in FILES}


@cache
def imports(module: str, *, in_functions: bool = True, for_typing: bool = True) -> tuple[tuple[str, int], ...]:
    """(dotted name, line) of each import of a module; names of ours start with "budwood."."""
    name = MODULES[module]
    package = ["budwood", *name.split("/")[:-1]]
    return tuple(_walk(tree_of(name), package, in_functions, for_typing))


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


def test_imports_of_ours_point_down() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        for name, line in imports(module)
        if name.startswith("budwood.")
        and (other := home(name.removeprefix("budwood."))) != home(module)
        and other not in ALLOWED[home(module)]
    ]
    assert wrong == []


def test_methods_do_not_import_each_other() -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        if module.startswith("methods.")
        for name, line in imports(module)
        if name.startswith("budwood.methods.")
        and name.removeprefix("budwood.") not in PARTS
        and name != f"budwood.{IS_A.get(module, '')}"
        and name.removeprefix("budwood.") not in MADE_OF.get(module, set())
    ]
    assert wrong == []


def test_parts_of_methods_hold_no_method() -> None:
    holding = {
        module
        for module in MODULES
        if module.startswith("methods.")
        for node in tree_of(MODULES[module]).body
        if isinstance(node, ast.ClassDef) and any(_names_a_method(statement) for statement in node.body)
    }
    assert not holding & PARTS
    assert {module for module in MODULES if module.startswith("methods.")} == holding | PARTS


def _names_a_method(statement: ast.stmt) -> bool:
    """True for `name = "..."` in the body of a class: what the registry and the command line call a method."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return any(isinstance(target, ast.Name) and target.id == "name" for target in targets)


def test_third_party_packages_stay_in_their_places() -> None:
    wrong = [
        f"{module}:{line} imports {name}; its places are {sorted(places)}"
        for module in MODULES
        for name, line in imports(module, for_typing=False)
        if (places := ONLY_IN.get(home(name))) is not None and not within(module, places)
    ]
    assert wrong == []


def test_light_modules_import_nothing_heavy_when_loaded() -> None:
    wrong = [
        f"{module}:{line} imports {name} at module level"
        for module in MODULES
        if home(module) in LIGHT
        for name, line in imports(module, in_functions=False, for_typing=False)
        if home(name) in HEAVY
    ]
    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    below = {
        module: {inner for name, _ in imports(module, in_functions=False, for_typing=False) if (inner := inside(name))}
        for module in MODULES
    }
    for module in MODULES:
        ahead, seen = [*below[module]], set(below[module])
        while ahead:
            found = below[ahead.pop()] - seen
            seen |= found
            ahead += found
        assert module not in seen or module == "__init__", f"{module} is imported, in the end, by itself"


def inside(name: str) -> str:
    """Returns the module of ours that a dotted name means, or is in; nothing for the name of another package."""
    own = name.removeprefix("budwood.") if name.startswith("budwood.") else ""
    while own and own not in MODULES:
        own = own.rpartition(".")[0]
    return own
