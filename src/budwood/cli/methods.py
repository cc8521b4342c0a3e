"""`budwood methods`: what there is to train with, straight from the method classes."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from budwood.cli.options import Talk
from budwood.cli.output import Sink, Table

if TYPE_CHECKING:
    from budwood.core import Method


def methods(name: str | None = None, /, *, talk: Talk | None = None) -> int:
    """List the methods, or explain one: formula, paper, fields with their defaults.

    Parameters
    ----------
    name: str
        A method, as lora; or with fields, as lora:rank=16, to see what they come to.
    """
    talk = talk or Talk()
    sink = talk.sink()
    if name is None:
        _list(sink)
    else:
        _explain(name, sink)
    return 0


def _list(sink: Sink) -> None:
    from budwood.methods import METHODS, SHORT_NAMES

    rows = [(m.name, _first_line(m), m.formula, f"{m().rate:g}", m.paper) for m in METHODS]
    sink.show(Table(("method", "what it trains", "formula", ">learning rate", "paper"), rows))
    short = {word: f"{method}:{_typed(preset)}" for word, (method, preset) in SHORT_NAMES.items()}
    if short:
        sink.say()
        sink.say("short for: " + ", ".join(f"{word} = {meaning}" for word, meaning in short.items()))
    sink.say("`budwood methods NAME` shows a method's fields; write them as --method NAME:field=value,field=value")
    sink.result({"methods": [_described(m()) for m in METHODS], "short": short})


def _explain(name: str, sink: Sink) -> None:
    from budwood.methods import parse_method

    method = parse_method(name)
    kind = type(method)
    sink.data(f"{method.name}: {_first_line(kind)}")
    sink.data(f"formula        {method.formula}")
    sink.data(f"paper          {method.paper}")
    sink.data(f"learning rate  {method.rate:g}")
    if tried := ", ".join(f"{rate:g}" for rate in method.rates_to_try):
        sink.data(f"tried first    {tried}, where a run names none: {method.rates_why}")
    sink.data("")
    described = _described(method)
    rows = [
        (entry["name"], _shown(entry["value"]), entry["about"], ", ".join(entry["aliases"]))
        for entry in described["fields"]
    ]
    sink.show(Table(("field", "value" if ":" in name else "default", "meaning", "also written"), rows))
    example = next((e for e in described["fields"] if isinstance(e["value"], int) and e["name"] != "targets"), None)
    if example:
        sink.say()
        sink.say(f"as in: budwood train MODEL DATA --method {method.name}:{example['name']}={_shown(example['value'])}")
    sink.result(described)


def _described(method: Method) -> dict[str, Any]:
    """Everything about a method as plain data."""
    from budwood.core import field_docs

    kind: type = type(method)
    docs = field_docs(kind)
    return {
        "name": method.name,
        "about": _first_line(type(method)),
        "formula": method.formula,
        "paper": method.paper,
        "learning_rate": method.rate,
        "rates": list(method.rates_to_try),
        "rates_why": method.rates_why,
        "fields": [
            {
                "name": field.name,
                "value": method.to_dict()[field.name],
                "default": _default(field),
                "about": docs.get(field.name, ""),
                "aliases": [alias for alias, own in method.aliases.items() if own == field.name],
            }
            for field in fields(method)
            if field.name not in method.unused
        ],
    }


def _default(field: Field[Any]) -> Any:
    if field.default is not MISSING:
        return list(field.default) if isinstance(field.default, tuple) else field.default
    return field.default_factory() if field.default_factory is not MISSING else None


def _first_line(kind: type[Method]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _shown(value: Any) -> str:
    """A value as it would be typed."""
    if isinstance(value, (list, tuple)):
        return "+".join(map(str, value)) or "none"
    if isinstance(value, dict):
        return "+".join(f"{key}:{item}" for key, item in value.items()) or "none"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _typed(fields: dict[str, Any]) -> str:
    return ",".join(f"{name}={_shown(value)}" for name, value in fields.items())
