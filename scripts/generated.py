"""Fill the generated parts of the README and of the pages under docs; `--check` only says if they are up to date."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from budwood.core import Method, field_docs
from budwood.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "budwood"


def method_table() -> str:
    """The README's table: one row per method class."""
    rows = [
        f"| `{method.name}` | {first_line(method.__doc__)} | `{method.formula}` | {method.paper} |"
        for method in METHODS
    ]
    return "\n".join(["| method | what it trains | formula | paper |", "|---|---|---|---|", *rows])


def method_sections() -> str:
    """docs/methods.md: every method with its fields."""
    return "\n".join(section(method) for method in METHODS).rstrip()


def section(method: type[Method]) -> str:
    """One method: what it computes, where that comes from, and its fields."""
    docs, defaults = field_docs(method), method().to_dict()
    aliases: dict[str, list[str]] = {}
    for alias, field in method.aliases.items():
        aliases.setdefault(field, []).append(f"`{alias}`")
    rows = [
        f"| `{f}` | {shown(defaults[f])} | {docs[f]} | {', '.join(aliases.get(f, []))} |"
        for f in defaults
        if f not in method.unused
    ]
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


def tree() -> str:
    """The source tree, one line per module, said in the first line of its docstring."""
    lines = ["```"]
    for path in sorted(SOURCE.rglob("*.py"), key=place):
        parts = path.relative_to(SOURCE).parts
        name = "/".join(["budwood", *parts[:-1]]) + "/" if parts[-1] == "__init__.py" else "  " * len(parts) + parts[-1]
        lines.append(
            f"{name:<24} {first_line(ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))))}".rstrip()
        )
    return "\n".join([*lines, "```"])


def place(path: Path) -> tuple[bool, tuple[str, ...]]:
    """Packages after the modules beside them, each package's own file first."""
    parts = path.relative_to(SOURCE).parts
    return len(parts) > 1, tuple("" if part == "__init__.py" else part for part in parts)


def first_line(text: str | None) -> str:
    """The first line of a docstring, without its full stop."""
    return (text or "").strip().partition("\n")[0].removesuffix(".")


PARTS = {
    ROOT / "README.md": {"methods": method_table},
    ROOT / "docs" / "architecture.md": {"tree": tree},
    ROOT / "docs" / "methods.md": {"methods": method_sections},
}


def filled(path: Path) -> str:
    """A page with its generated parts as they should be."""
    text = path.read_text(encoding="utf-8")
    for name, part in PARTS[path].items():
        start, end = f"<!-- {name}:start -->\n", f"\n<!-- {name}:end -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}{part()}{end}{after}"
    return text


if __name__ == "__main__":
    stale = [path for path in PARTS if filled(path) != path.read_text(encoding="utf-8")]
    if "--check" in sys.argv:
        sys.exit("\n".join(f"{path.relative_to(ROOT)} is not up to date; type: make docs" for path in stale) or 0)
    for stale_path in stale:
        stale_path.write_text(filled(stale_path), encoding="utf-8")
