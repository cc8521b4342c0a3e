"""Distillation: every setting of what a student learns from its teacher, the same in Python, YAML and on flags."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from budwood.core.method import coerce
from budwood.distill.losses import LOSSES, Loss
from budwood.errors import BadConfig, did_you_mean
from budwood.records import Json

SOFT = 2.0
"""Temperature of classes where none is said: few logits, learned to the end, are sharper than they need be."""
LAYER_MAPS = ("uniform", "last")
HIDDEN = ("mse", "cosine")
ANSWERS = ("data", "teacher")
TAILS = ("bucket", "renormalise")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """total = kd_weight * kd + ce_weight * ce + hidden_weight * hidden + attention_weight * attention + ..."""

    loss: str | None = None
    """What compares predictions (kd): a name in `budwood.distill.losses.LOSSES`. None is forward-kl, or, where the two
    have different vocabularies, uld."""
    temperature: float | None = None
    """Both are softened by it; None is 1 for tokens and 2 for classes."""
    kd_weight: float = 0.5
    """Weight of kd."""
    ce_weight: float = 0.5
    """Weight of the cross-entropy to the data's own targets (ce)."""
    skew: float = 0.1
    """Alpha of skewed-kl and skewed-reverse-kl: the share of the first distribution in the mixture."""
    beta: float = 0.5
    """Beta of jsd: the teacher's share of the mixture."""
    hidden_weight: float = 0.0
    """Weight of the difference of hidden states, layer by layer, through trained projections where widths differ."""
    hidden: str = "mse"
    """How hidden states are compared: mse or cosine."""
    attention_weight: float = 0.0
    """Weight of the difference of attention probabilities, layer by layer (TinyBERT)."""
    relation_weight: float = 0.0
    """Weight of the divergence of self-attention relations of the last layer (MiniLM)."""
    layer_map: str = "uniform"
    """Which layers are compared: uniform (evenly spaced) or last (as many as the student has, from the top)."""
    top_k: int | None = None
    """Ask the teacher once, and keep its so many likeliest tokens on disk; None asks it in every step."""
    tail: str = "bucket"
    """What becomes of the tokens that were not kept: bucket (one token for all of them) or renormalise (biased)."""
    answers: str = "data"
    """Whose answers are learned: the data's, or those that the teacher writes first (Kim & Rush 2016)."""
    on_policy: float = 0.0
    """Share of batches whose answers the student itself writes, for the teacher to judge (GKD)."""
    max_new_tokens: int = 128
    """Most tokens of an answer that teacher (answers) or student (on_policy) writes."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = {"str": str, "float": float, "int": int}[str(field.type).split(" |")[0]]
            annotated = kind | None if "None" in str(field.type) else kind
            object.__setattr__(self, field.name, coerce(field.name, annotated, getattr(self, field.name)))
        if self.loss is not None and self.loss not in LOSSES:
            raise BadConfig(f"loss is {self.loss!r}; {did_you_mean(self.loss, LOSSES)}")
        for name, choices in (("layer_map", LAYER_MAPS), ("hidden", HIDDEN), ("answers", ANSWERS), ("tail", TAILS)):
            if getattr(self, name) not in choices:
                raise BadConfig(f"{name} is {getattr(self, name)!r}; {did_you_mean(getattr(self, name), choices)}")
        self._check_numbers()

    def _check_numbers(self) -> None:
        weights = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_weight")}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise BadConfig(f"{name} is {weight}; it must be 0 or more")
        learned = {name for name, weight in weights.items() if weight}
        if not learned - {"ce_weight"} and not (learned and self.answers == "teacher"):
            raise BadConfig("nothing is learned from the teacher: kd_weight is 0, and so are the others; raise one")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise BadConfig(f"temperature is {self.temperature}; it must be above 0")
        for name in ("skew", "beta"):
            if not 0 < getattr(self, name) < 1:
                raise BadConfig(f"{name} is {getattr(self, name)}; it must be above 0 and below 1")
        if not 0 <= self.on_policy <= 1:
            raise BadConfig(f"on_policy is {self.on_policy}; it is a share of batches, from 0 to 1")
        if self.max_new_tokens < 1:
            raise BadConfig(f"max_new_tokens is {self.max_new_tokens}; an answer has at least 1")
        if self.on_policy and not learned - {"ce_weight"}:
            raise BadConfig("what the student writes (on_policy) is judged by kd, and kd_weight is 0; raise it")
        if self.top_k is not None:
            self._check_cached(self.top_k)

    def _check_cached(self, top_k: int) -> None:
        """Raise BadConfig for what a teacher that is kept on disk cannot do."""
        if top_k < 1:
            raise BadConfig(f"top_k is {top_k}; keep at least 1 token of each position")
        if self.on_policy:
            raise BadConfig(
                "a cached teacher (top_k) cannot judge answers that the student writes (on_policy); drop one"
            )
        if self.compares_insides:
            raise BadConfig("a cached teacher (top_k) has no hidden states or attention; drop top_k or those weights")
        if not self.kd_weight:
            raise BadConfig("top_k keeps what kd compares, and kd_weight is 0; drop top_k, or raise kd_weight")
        if self.loss == "squared-error":
            raise BadConfig("a cached teacher (top_k) has probabilities, not outputs to square; drop top_k")

    def compare(self, task: str) -> tuple[Loss, float]:
        """(the loss of predictions with its own numbers, the temperature) for a task."""
        name = self.loss or "forward-kl"
        numbers = {"skewed-kl": {"alpha": self.skew}, "skewed-reverse-kl": {"alpha": self.skew}}
        numbers["jsd"] = {"beta": self.beta}
        soft = self.temperature or (SOFT if task in ("classification", "cloze") else 1.0)
        return partial(LOSSES[name], **numbers.get(name, {})), soft

    @property
    def compares_insides(self) -> bool:
        """Whether hidden states or attention are compared, too."""
        return bool(self.hidden_weight or self.attention_weight or self.relation_weight)

    def to_dict(self) -> dict[str, Json]:
        """Plain values under the field names."""
        return asdict(self)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all settings."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def taken_from(cls, values: Mapping[str, Any]) -> tuple[dict[str, Any], Distillation]:
        """(the settings that are not of a distillation, the distillation that the others say)."""
        own = set(cls.names())
        return {k: v for k, v in values.items() if k not in own}, cls(**{k: v for k, v in values.items() if k in own})
