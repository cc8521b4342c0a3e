"""The methods: one file each, and `METHODS`, the only registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

from budwood.core import Method
from budwood.core.method import field_types
from budwood.errors import BadConfig, did_you_mean
from budwood.methods.bottleneck import AdapterH as AdapterH
from budwood.methods.bottleneck import AdapterP as AdapterP
from budwood.methods.bottleneck import Parallel as Parallel
from budwood.methods.compacter import Compacter as Compacter
from budwood.methods.full import Full as Full
from budwood.methods.fusion import Fusion as Fusion
from budwood.methods.ia3 import IA3 as IA3
from budwood.methods.linear_adapter import LinearAdapter as LinearAdapter
from budwood.methods.lora import LoRA as LoRA
from budwood.methods.mam import MAM as MAM
from budwood.methods.multitask import MultitaskPrompt as MultitaskPrompt
from budwood.methods.prefix import PrefixTuning as PrefixTuning
from budwood.methods.prefix import PTuningV2 as PTuningV2
from budwood.methods.prompt import PromptTuning as PromptTuning
from budwood.methods.ptuning import PTuning as PTuning
from budwood.methods.selective import Selective as Selective
from budwood.methods.unipelt import UniPELT as UniPELT

METHODS: tuple[type[Method], ...] = (
    Full, Selective, LoRA, IA3, AdapterH, AdapterP, Parallel, Compacter, LinearAdapter, Fusion,
    PrefixTuning, PTuningV2, PromptTuning, PTuning, MultitaskPrompt, MAM, UniPELT,
)  # fmt: skip
"""Every method class, each with `.name`, each usable with no arguments."""

_ITEM = re.compile(r"""[^,=]+=(?:'[^']*'|"[^"]*")(?=,|$)|[^,]+""")
"""One field=value of a method as typed."""
_BY_NAME = {method.name: method for method in METHODS}
SHORT_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "bitfit": ("selective", {"part": "bitfit"}),
    "norms": ("selective", {"part": "norms"}),
    "last-layers": ("selective", {"part": "last-layers"}),
    "head": ("selective", {"part": "head"}),
    "dora": ("lora", {"dora": True}),
    "rslora": ("lora", {"rslora": True}),
    "pissa": ("lora", {"init": "pissa"}),
    "houlsby": ("adapter-h", {"init": "houlsby", "trained": "norm.*+head?"}),
    "pfeiffer": ("adapter-p", {"init": "bert"}),
    "language-adapter": ("adapter-p", {"reduction": 2, "invertible": True}),
    "adapterhub-h": ("adapter-h", {"activation": "silu", "reduction": 16, "init": "bert"}),
    "compacter++": ("compacter", {"targets": "mlp"}),
}
"""Names that stand for a method with some fields set."""


def parse_method(text: str) -> Method:
    """A method as typed: `lora`, `lora:rank=16,targets=attn.*+mlp.down`, `bitfit`; in quotes a value may have commas.

    Raises BadConfig for an unknown method, field or value, with the nearest name there is.
    """
    name, _, rest = text.strip().partition(":")
    fields: dict[str, Any] = {}
    for item in _ITEM.findall(rest):
        key, equals, value = item.partition("=")
        if not equals:
            raise BadConfig(f"method {text!r}: {item!r} is not field=value; write {name}:{_field_for(name, item)}")
        if key.strip() in fields:
            raise BadConfig(f"method {text!r}: {key.strip()!r} is given twice")
        value = value.strip()
        fields[key.strip()] = value[1:-1] if len(value) > 1 and value[0] == value[-1] in "'\"" else value
    return build_method(name, fields)


def _field_for(name: str, value: str) -> str:
    """How to write a value that came without its field."""
    if name in _BY_NAME:
        for field, kind in field_types(_BY_NAME[name]).items():
            if value in get_args(kind):
                return f"{field}={value}"
    return "field=value,field=value"


def method_from_dict(data: Mapping[str, Any] | str) -> Method:
    """A method as written in a YAML or JSON file: `lora`, or `{lora: {rank: 16}}`."""
    if isinstance(data, str):
        return parse_method(data)
    if not isinstance(data, Mapping) or len(data) != 1:
        raise BadConfig(f"method is {data!r}; write one name with its fields, as method: {{lora: {{rank: 16}}}}")
    ((name, fields),) = data.items()
    if fields is not None and not isinstance(fields, Mapping):
        raise BadConfig(
            f"the fields of {name} are {fields!r}; write field: value pairs, as method: {{lora: {{rank: 16}}}}"
        )
    return build_method(str(name), fields or {})


def method_to_dict(method: Method) -> dict[str, Any]:
    """The inverse of `method_from_dict`: `{"lora": {...all fields...}}`."""
    return {method.name: method.to_dict()}


def build_method(name: str, fields: Mapping[str, Any]) -> Method:
    """A method by name with its fields as plain data or text."""
    word, preset = SHORT_NAMES.get(name, (name, {}))
    if word not in _BY_NAME:
        raise BadConfig(f"no method is called {name!r}; {did_you_mean(name, [*_BY_NAME, *SHORT_NAMES])}")
    return _BY_NAME[word].from_dict({**preset, **fields})
