"""Shrinking: how far, in what, and how each stage is recovered; the same in Python, YAML and on flags."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from budwood.core.method import coerce
from budwood.errors import BadConfig, did_you_mean
from budwood.prune.kept import DIMENSIONS
from budwood.records import Json
from budwood.train.config import Budget

SCORES = ("activation", "taylor", "random")
FEWEST = 8
"""Calibration rows below which scores say too little to cut by."""
_COUNT = re.compile(r"(\d+(?:\.\d+)?)([kmb]?)", re.IGNORECASE)
_SIZES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True, kw_only=True)
class Shrinking:
    """Cut a little, refit, recover, look, go on, until the target is reached or the quality no longer holds."""

    to: float | None = None
    """Share of the model's parameters that is to stay."""
    to_params: str | None = None
    """Parameters that are to stay: 80M, 1.2B or a number."""
    latency: float | None = None
    """Share of the time that is to stay, of reading 64 tokens and writing 16."""
    min_quality: float | None = None
    """Least quality as a share of the unshrunk model's, judged by the lower end of the paired 95 % interval. A language
    model's quality is its likelihood for each token (one over perplexity), a classifier's its accuracy."""
    cut: tuple[str, ...] = ("layers", "ffn", "heads")
    """What may be cut: layers, ffn, heads, hidden, vocabulary."""
    step: float = 0.1
    """Share of the original parameters that goes in one stage; 1 cuts all at once."""
    score: str = "activation"
    """How units are scored: activation, taylor, or random to compare with."""
    rows: int = 224
    """Training rows that scores and refits are calibrated on."""
    ridge: float = 0.01
    """How much the refit holds on to the old weights; negative refits nothing."""
    tune: str = "200steps"
    """How long the model is fine-tuned before it is shrunk; 0steps takes it as it is."""
    recover: str = "120steps"
    """How long each stage is recovered, by distillation from the unshrunk model; 0steps does not."""
    budget: str | None = None
    """Time after which no new stage is begun: 30m, 2h."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            object.__setattr__(self, field.name, coerce(field.name, hints[field.name], getattr(self, field.name)))
        for word in self.cut:
            if word not in DIMENSIONS:
                raise BadConfig(f"cut names {word!r}; {did_you_mean(word, DIMENSIONS)}")
        if not self.cut:
            raise BadConfig(f"nothing may be cut; name some of {', '.join(DIMENSIONS)}")
        if self.score not in SCORES:
            raise BadConfig(f"score is {self.score!r}; {did_you_mean(self.score, SCORES)}")
        self._check_target()
        if self.rows < FEWEST:
            raise BadConfig(f"rows is {self.rows}; calibrate on at least {FEWEST} rows, better on some hundred")
        for name in ("tune", "recover"):
            _steps(name, getattr(self, name))
        if self.budget is not None and Budget.parse(self.budget).unit != "s":
            raise BadConfig(f"budget is {self.budget!r}; a shrinking has a time (30m), its stages have steps (recover)")

    def _check_target(self) -> None:
        if self.to is not None and self.to_params is not None:
            raise BadConfig("to and to_params both say how many parameters stay; keep one of them")
        if self.to is None and self.to_params is None and self.latency is None and self.min_quality is None:
            raise BadConfig("say how far: to: 0.5, to_params: 80M, latency: 0.6 or min_quality: 0.98")
        for name in ("to", "latency", "min_quality", "step"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise BadConfig(f"{name} is {value}; it is a share, above 0 and at most 1")
        if self.to_params is not None:
            parameters(self.to_params)

    def target(self, original: int) -> int:
        """Parameters that are to stay, of so many; 0 where only quality, latency or time says when to stop.

        Raises BadConfig for a target that is no shrinking.
        """
        wanted = original * self.to if self.to is not None else parameters(self.to_params) if self.to_params else 0
        if wanted >= original:
            raise BadConfig(f"the model has {original:,} parameters, and {wanted:,.0f} are to stay; say fewer")
        return math.floor(wanted)

    def to_dict(self) -> dict[str, Json]:
        """Plain values under the field names."""
        return {**asdict(self), "cut": list(self.cut)}

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shrinking:
        """What settings say. Raises BadConfig for names that are none of ours."""
        unknown = sorted(values.keys() - set(cls.names()))
        if unknown:
            raise BadConfig(f"shrinking has no setting {unknown[0]!r}; {did_you_mean(unknown[0], cls.names())}")
        return cls(**values)


def parameters(text: str) -> float:
    """80M, 1.2B, 900k or a plain number. Raises BadConfig."""
    found = _COUNT.fullmatch(text.strip().replace(",", "").replace("_", ""))
    if found is None or not float(found[1]):
        raise BadConfig(f"to_params is {text!r}; write a number of parameters, as 80M or 1.2B")
    return float(found[1]) * _SIZES[found[2].lower()]


def _steps(name: str, text: str) -> None:
    """Raise BadConfig unless it is a budget, or none (0steps)."""
    if not is_nothing(text):
        try:
            Budget.parse(text)
        except BadConfig as error:
            raise BadConfig(f"{name}: {error}; 0steps leaves it out") from error


def is_nothing(text: str) -> bool:
    """Whether a budget is none at all."""
    return re.fullmatch(r"0+(\.0+)?(steps?|epochs?|[smh])", text.strip().replace(" ", "")) is not None
