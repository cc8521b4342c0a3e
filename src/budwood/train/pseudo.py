"""Pseudo tokens of a cloze's pattern: which method stands in for them, and how many it then has."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from budwood.core import Method
from budwood.data import Cloze
from budwood.errors import BadConfig
from budwood.methods.words import InText

FILLS = "p-tuning"
"""The method whose prompt can stand at chosen places inside of the text."""


def filling(method: Method, cloze: Cloze | None) -> Method:
    """`method`, set to fill the <p> of the pattern where there are any.

    Raises BadConfig for <p> and a method that has nothing to put there, or has another number of pseudo tokens.
    """
    wanted = 0 if cloze is None else cloze.pseudo
    if not cloze or not wanted:
        if isinstance(method, InText) and method.place == "inside":
            raise BadConfig(
                f"{method.name}:place=inside fills the <p> of a pattern, and there are none; use --task cloze "
                f"--pattern '<p><p> {{text}} <p>' --method {FILLS}, or leave place out"
            )
        return method
    if method.name != FILLS:
        raise BadConfig(
            f"pattern {cloze.pattern!r} has {wanted} <p>, and method {method.name} has nothing to put there; "
            f"use --method {FILLS}, or leave <p> out"
        )
    usual = {field.name: field.default for field in fields(method)}
    needed: dict[str, Any] = {"length": wanted, "place": "inside"}
    for name, value in needed.items():
        said = getattr(method, name)
        if said not in (value, usual[name]):
            raise BadConfig(
                f"{FILLS}:{name}={said} does not fit the pattern, whose {wanted} <p> make {name} {value}; "
                f"leave {name} out"
            )
    return replace(method, **needed)
