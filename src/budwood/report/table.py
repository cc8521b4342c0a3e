"""A comparison as one value: what every page, table and file says is read from here."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from budwood.records import Contender, RateProbe


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether nothing may be all it is."""
        return self.low <= 0 <= self.high

    @property
    def is_finite(self) -> bool:
        """Whether all three are numbers that can be drawn."""
        return all(map(isfinite, (self.value, self.low, self.high)))


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What quality is for a task."""

    name: str
    """"accuracy", "perplexity", "span_f1", "token_f1"."""
    higher_is_better: bool
    difference: str
    """What differences between methods are in: "points of accuracy", "nats per token". Positive is always better."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A moment of a run."""

    step: int
    seconds: float
    """Inside training steps."""
    loss: float
    """On held-out rows (`is_held_out`) or of the steps since the last point, in nats per target."""
    is_held_out: bool


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method, over its seeds. None is: not measured, or unknown."""

    label: str
    contender: Contender
    seeds: tuple[int, ...] = ()
    """Of the runs that finished."""
    failures: tuple[str, ...] = ()
    """What became of the others, one line each."""
    folders: tuple[str, ...] = ()
    """Their run folders, one for each of `seeds`."""

    # quality
    quality: Estimate | None = None
    """The metric, seeds outside and rows inside."""
    by_seed: tuple[float, ...] = ()
    """The metric of each of `seeds`."""
    over_base: Estimate | None = None
    """Paired difference to the untuned base; positive is better."""
    over_full: Estimate | None = None
    """Paired difference to full fine-tuning."""
    below_best: Estimate | None = None
    """Paired difference to the best, simultaneous over all methods; zero for the best itself, else mostly negative."""
    is_best: bool = False
    """Its quality is the best that was observed."""
    may_be_best: bool = False
    """It cannot be told from the best."""

    # parameters
    trained_count: int | None = None
    share: float | None = None
    """Of the base's parameters."""
    stored_bytes: int | None = None

    # memory
    peak_bytes: int | None = None
    """Above the floor: the largest over the seeds."""
    floor_bytes: int | None = None
    memory_how: str = ""

    # speed
    tokens_per_s: float | None = None
    """Median over the seeds."""
    train_s: float | None = None
    """Seconds in training steps: median over the seeds."""
    steps: int | None = None
    tokens: int | None = None

    # inference, of the first seed
    prefill_s: float | None = None
    """Batch 1."""
    per_token_s: float | None = None
    """Batch 1; None for models that do not write."""
    answer_s: float | None = None
    """Reading the prompt and writing 16 tokens at batch 1, in the cheapest form it can be used in (merged or not)."""
    timings: tuple[Any, ...] = ()
    """`records.Timing` of each batch size, as it was trained."""
    merged_timings: tuple[Any, ...] = ()
    extra_weight_bytes: int | None = None
    extra_cache_bytes_per_row: int | None = None
    mergeable: bool | None = None

    # how it went
    learning_rate: float | None = None
    rates: RateProbe | None = None
    curve: tuple[Point, ...] = ()
    """Of the first seed."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One held-out row as every method answers it."""

    prompt: str
    reference: str
    answers: dict[str, str]
    """Label to answer, the base among them."""
    disagreement: float
    """0: all say the same; 1: no two do."""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """What to use, and why."""

    label: str | None
    """None where nothing can be recommended."""
    headline: str
    """One sentence that a person can act on."""
    reasons: tuple[str, ...]
    """Why, each a sentence."""
    tied: tuple[str, ...]
    """Methods that cannot be told from the best among those within the limits, the best first."""
    cheapest: dict[str, str]
    """Dimension ("memory", "training time", "answer time", "stored size", "trained parameters") to the label of `tied`
    that costs least in it."""
    over_limits: dict[str, str]
    """Label to the limit that it breaks."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Everything that a report says."""

    title: str
    model: str
    data: str
    task: str
    budget: str
    metric: Metric | None
    rows_scored: int
    """Test rows that every method was scored on."""
    methods: tuple[Method, ...]
    """The base first, then the best observed first, then those without a result."""
    limits: dict[str, float]
    samples: tuple[Sample, ...]
    """Most disagreed first."""
    weaknesses: tuple[str, ...]
    """What this comparison cannot tell: one seed, few rows, different data, ..."""
    notes: tuple[tuple[str, str], ...]
    """(what, how it was measured)."""
    repeat: tuple[str, ...]
    """Commands that do it again."""
    licences: tuple[tuple[str, str], ...]
    """(what, licence) of model and data, where known."""
    status: str
    """finished, running, interrupted, failed."""
    waiting: tuple[str, ...]
    """Runs that are not done yet."""
    between: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    """between[a][b]: how much better a is than b, paired; simultaneous over all pairs of compared methods."""

    def method(self, label: str) -> Method:
        """The one of that label; KeyError for one that there is not."""
        return {one.label: one for one in self.methods}[label]
