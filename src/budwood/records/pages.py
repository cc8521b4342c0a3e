"""Pages from templates: everything escaped, nothing that HTML cannot hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

HARD = "\N{NO-BREAK SPACE}"


def render(package: str, name: str, content: Mapping[str, Any], filters: Mapping[str, Callable[..., object]]) -> str:
    """The template `name` of a package, filled; it has the filter `neat` beside those that are given."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters, neat=neat)
    return _writable(environment.from_string(files(package).joinpath(name).read_text(encoding="utf-8")).render(content))


def neat(text: str) -> str:
    """With arrows and percentages that no line breaks."""
    return text.replace(" -> ", f"{HARD}\N{RIGHTWARDS ARROW} ").replace(" %", f"{HARD}%")


def shortened(text: str, most: int) -> str:
    """The first letters of a text, and how many more there are."""
    rest = len(text) - most
    return text if rest <= 0 else f"{text[:most]} … ({rest:,} more letters in the run folder)"


def _writable(page: str) -> str:
    """The page without what HTML and UTF-8 cannot hold: control characters and halves of pairs."""
    whole = page.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter >= " " or letter in "\t\n" else "\N{REPLACEMENT CHARACTER}" for letter in whole)
