"""`Method`: the frozen configuration of one technique, and the base class of every file in `budwood.methods`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

from torch import nn

from budwood.anatomy import Anatomy, Site
from budwood.core.delta import Delta
from budwood.core.plan import Plan
from budwood.errors import BadConfig, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Method:
    """What to train and how much of it. A subclass is final, frozen, and usable with no arguments."""

    name: ClassVar[str]
    """The word in files and on the command line."""
    paper: ClassVar[str]
    """Where the method comes from."""
    formula: ClassVar[str]
    """What it computes, in one line with the paper's letters."""
    learning_rate: ClassVar[float]
    """A rate at which it learns on small and middle-sized models."""
    weight_decay: ClassVar[float] = 0.01
    """AdamW's decay for what it trains."""
    rates: ClassVar[tuple[float, ...]] = ()
    """Rates that a run which names none tries first, the lowest first; with none, it takes `rate`."""
    sizes_to_try: ClassVar[tuple[str, tuple[float, ...]]] = ("", ())
    """The field that says how large it is, and the values that a search tries."""
    rates_why: ClassVar[str] = ""
    """Why they are worth trying, in one sentence."""
    aliases: ClassVar[Mapping[str, str]] = {}
    """Other tools' names of the fields."""
    unused: ClassVar[tuple[str, ...]] = ()
    """Fields of every method that this one refuses: the pages and `budwood methods` leave them out."""

    targets: tuple[str, ...] = ()
    """Where it acts: roles (attn.q, mlp.*), `all` (every linear of the blocks), or names of modules; a ? at the end
    means: where there is one."""
    layers: tuple[int, ...] | None = None
    """Only in these blocks, counted from 0; every block when empty."""
    trained: tuple[str, ...] | None = None
    """Modules trained in full beside it, as a copy of its own (targets as above); by default the task head, if any."""

    def __post_init__(self) -> None:
        """Every field as its type; other spellings are accepted as in files. Raises BadConfig."""
        for field, kind in field_types(type(self)).items():
            object.__setattr__(self, field, coerce(f"{self.name}.{field}", kind, getattr(self, field)))
        if self.layers == ():
            object.__setattr__(self, "layers", None)

    def sites(self, model: nn.Module, anatomy: Anatomy) -> tuple[Site, ...]:
        """The sites this method acts at. Raises NoSuchSite where a target matches nothing."""
        return anatomy.select(*self.targets, layers=self.layers)

    def trained_sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """Where a module is trained in full beside the method."""
        if self.trained is not None:
            return anatomy.select(*self.trained) if self.trained else ()
        return anatomy.select("head") if "head" in anatomy.roles else ()

    def build(self, site: Site, base: nn.Module) -> Delta:
        """The delta for one site. `base` is the module at that site."""
        raise NotImplementedError

    def unfreeze(self, model: nn.Module, anatomy: Anatomy) -> tuple[str, ...]:
        """Names of the base's own parameters that this method trains in place; none for all but full and selective."""
        return ()

    def resolved(self, model: nn.Module, anatomy: Anatomy) -> Self:
        """The method with what it leaves open said, for a model that may have adapters already."""
        return self

    def plan(self, name: str) -> Plan:
        """The plan that puts an adapter of this method in force."""
        return name

    @property
    def is_additive(self) -> bool:
        """False where what an adapter of this method does is no sum, so that it cannot be a part of a Sum or Fuse."""
        return True

    @property
    def is_stackable(self) -> bool:
        """False where an adapter of this method replaces what it reads, so that one at most can be in a Stack."""
        return self.is_additive

    @property
    def num_tasks(self) -> int:
        """How many tasks one adapter of this method holds: what `Tasks` chooses from."""
        return 1

    @property
    def positions_taken(self) -> int:
        """How many positions an adapter of this method takes from the text."""
        return 0

    @property
    def deployed(self) -> Self:
        """The method of what is saved: without what only training needs."""
        return self

    def worded(self, tokenizer: Any, labels: Sequence[str]) -> Self:
        """The method with the words it names as token ids.

        tokenizer: a transformers tokenizer, or None;  labels: names of the classes, in their order
        Raises BadConfig where it needs one and there is none.
        """
        return self

    @property
    def rate(self) -> float:
        """The learning rate to start from with these fields."""
        return self.learning_rate

    @property
    def grid(self) -> tuple[float, ...]:
        """What a comparison tries: the learning rates worth trying, or its own and a third and three times of it."""
        return self.rates_to_try or tuple(float(f"{self.learning_rate * k:.1g}") for k in (1 / 3, 1, 3))

    @property
    def rates_to_try(self) -> tuple[float, ...]:
        """The learning rates worth trying with these fields, the lowest first."""
        return self.rates

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data, tuples as lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; other tools' field names and text values are accepted.

        Raises BadConfig for an unknown field or a value of the wrong type.
        """
        hints, values = field_types(cls), {}
        for key, value in fields.items():
            field = cls.aliases.get(key, key)
            if field not in hints:
                raise BadConfig(f"{cls.name} has no field {key!r}; {did_you_mean(key, [*hints, *cls.aliases])}")
            if field in values:
                raise BadConfig(f"{cls.name}: {field!r} is given twice (as {key!r} too); keep one")
            values[field] = value
        return cls(**values)


def field_types(cls: type[Method]) -> dict[str, Any]:
    """Each field's type."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


@cache
def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, inherited fields included: what `--help` and the docs show."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__[:-1]):
        if not dataclasses.is_dataclass(owner):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as text)):
                    docs[name] = " ".join(text.split())
    return docs


def coerce(what: str, kind: Any, value: Any) -> Any:
    """`value` as the type `kind`, from plain data or from text typed on a command line.

    `a+b` is a list there, and so is `3-5` where numbers are wanted.

    Raises BadConfig saying what `what` has to be.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null", "")):
            return None
        (kind,) = (k for k in inner if k is not types.NoneType)
        return coerce(what, kind, value)
    if origin is typing.Literal:
        if value in inner:
            return value
        raise BadConfig(f"{what} is {value!r}; {did_you_mean(str(value), [str(i) for i in inner])}")
    if origin is tuple:
        items = value
        if isinstance(value, str):
            items = [item for part in value.split("+") for item in _spread(inner[0], part)]
        if not isinstance(items, list | tuple | set | range):
            items = (items,)
        return tuple(coerce(what, inner[0], item) for item in (sorted(items) if isinstance(items, set) else items))
    if origin is dict:
        pairs = _pairs(what, value) if isinstance(value, str) else value
        if not isinstance(pairs, Mapping):
            raise BadConfig(f"{what} is {value!r}; it must map roles to numbers, as attn.q:4+mlp.*:16")
        return {str(k): coerce(f"{what}[{k}]", inner[1], v) for k, v in pairs.items()}
    return _scalar(what, kind, value)


def _spread(kind: Any, part: str) -> Sequence[Any]:
    """The numbers that a range such as 24-29 stands for; anything else as it is."""
    ends = re.fullmatch(r"(\d+)-(\d+)", part.strip()) if kind is int else None
    numbers = range(int(ends[1]), int(ends[2]) + 1) if ends else ()
    return numbers or (part,)


def _scalar(what: str, kind: type, value: Any) -> Any:
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if isinstance(value, bool) or str(value).lower() in known:
            return value if isinstance(value, bool) else known[str(value).lower()]
    elif kind is str and isinstance(value, str):
        return value
    elif kind in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number == number and (kind is float or number.is_integer()):
            return kind(number)
    raise BadConfig(f"{what} is {value!r}; it must be {_words(kind)}")


def _words(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}.get(kind, str(kind))


def _pairs(what: str, text: str) -> dict[str, str]:
    if not text:
        return {}
    if any(":" not in item for item in text.split("+")):
        raise BadConfig(f"{what} is {text!r}; write role:number, several joined by +, as attn.q:4+mlp.*:16")
    return dict(item.rsplit(":", 1) for item in text.split("+"))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
