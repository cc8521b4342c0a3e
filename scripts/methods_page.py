"""Write docs/methods.md from the method classes; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from budwood.core import Method, field_docs
from budwood.methods import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
INTRODUCTION = """# Methods

Written by `python scripts/methods_page.py` from the classes in `src/budwood/methods`; edit those.

A method is typed as `NAME` or `NAME:field=value,field=value` (lists joined by `+`), and written in YAML as
`method: {NAME: {field: value}}`. Targets are roles, the same in every model: `attn.q attn.k attn.v attn.o` (and
`cross.*`), `mlp.gate mlp.up mlp.down`, `embed`, `head`, `head.lm`; `all` is every linear of the blocks. `budwood
inspect MODEL` shows which ones a model has.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(method) for method in METHODS)])


def section(method: type[Method]) -> str:
    """One method: what it computes, where that comes from, and its fields."""
    docs, defaults = field_docs(method), method().to_dict()
    aliases: dict[str, list[str]] = {}
    for alias, field in method.aliases.items():
        aliases.setdefault(field, []).append(f"`{alias}`")
    rows = [f"| `{f}` | {shown(defaults[f])} | {docs[f]} | {', '.join(aliases.get(f, []))} |" for f in defaults]
    return "\n".join(
        [
            f"## `{method.name}`",
            "",
            f"`{method.formula}` ({method.paper}). Learning rate to start from: {method().rate:g}.",
            "",
            "| field | default | meaning | also called |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )


def shown(value: object) -> str:
    """A default as it is typed."""
    if isinstance(value, list):
        return " ".join(f"`{item}`" for item in value) or "none"
    return "none" if value is None or value == {} else f"`{str(value).lower()}`"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    sys.exit(PAGE.read_text(encoding="utf-8") != page())
