"""What a run achieved, in five dimensions: the content of `result.json`.

Every number carries its unit in its name, and every measured one says how it was measured.  A dimension, or a
field of one, that nobody measured is null; it is never a zero.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from budwood.errors import BadCheckpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from budwood.records.files import Json

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number that says how good something is, with the interval it stands in."""

    name: str
    """"accuracy", "perplexity", "rouge_l"."""
    value: float
    """In `unit`."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    n: int
    """How many rows (or tokens, see `unit`) it was computed from."""
    unit: str
    """"share of rows", "nats per token", "perplexity", "0 to 100"."""

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is trained and what has to be kept."""

    trained_count: int
    """Parameters that are trained."""
    trained_bytes: int
    """Their size in memory."""
    base_count: int
    """Parameters of the base model."""
    stored_bytes: int | None = None
    """Size of the adapter's files; null when nothing was saved."""

    @property
    def share(self) -> float:
        """Trained parameters for each parameter of the base, in [0, inf)."""
        return self.trained_count / self.base_count


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The most memory the run held at once."""

    peak_bytes: int
    """High-water mark less the floor (CPU), or the most that was allocated (CUDA)."""
    how: str
    """How it was measured: "VmHWM", "ru_maxrss", "max_memory_allocated"."""
    high_water_bytes: int | None = None
    """The process as a whole, imports included."""
    floor_bytes: int | None = None
    """What the process held before the model was loaded: Python, torch and the other imports."""
    reserved_bytes: int | None = None
    """What the CUDA allocator held, with its gaps."""
    predicted_bytes: int | None = None
    """What preflight expected for `peak_bytes`."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast it trained."""

    tokens_per_s: float
    """Prompt and learned tokens, without padding, in steady state."""
    learned_tokens_per_s: float
    """Tokens that carried loss, in steady state."""
    total_s: float
    """Seconds inside training steps, warm-up included; evaluation and saving not."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Prompt and learned tokens seen."""
    learned_tokens: int
    """Tokens that carried loss."""
    how: str
    """"median of 8 windows of 5 steps after 3 warm-up steps"."""
    threads: int | None = None
    """CPU threads used."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One metric on held-out rows, for the trained model and for the base it started from."""

    score: Score
    """With the adapter."""
    base: Score | None = None
    """Without it, on the same rows."""

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return self.score.name


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How long a model takes to answer, at one batch size: medians of warmed repeats."""

    batch: int
    """Rows answered at once."""
    prompt_tokens: int
    """Tokens of each prompt."""
    prefill_s: float
    """Seconds for reading the prompts."""
    per_token_s: float | None
    """Seconds for each further token of the whole batch; null for models that do not generate."""
    how: str
    """"median of 5 repeats after 1 warm-up, 16 new tokens"."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """What using the adapter costs afterwards."""

    timings: tuple[Timing, ...]
    """With the adapter attached, one for each batch size."""
    base_timings: tuple[Timing, ...] | None = None
    """The base alone, for comparison."""
    extra_weight_bytes: int
    """Weights that have to be in memory beside the base."""
    extra_cache_bytes_per_row: int = 0
    """Keys and values that each row holds more than with the base."""
    mergeable: bool
    """Whether it can be folded into the base's weights."""
    merged_timings: tuple[Timing, ...] | None = None
    """After folding; null when it was not measured or cannot be folded."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """`result.json`: the five dimensions; null for one that was not measured."""

    parameters: Parameters | None = None
    memory: Memory | None = None
    speed: Speed | None = None
    quality: tuple[Quality, ...] = ()
    inference: Inference | None = None

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON, with the version of the format."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Json], *, where: str = "result.json") -> Result:
        """The inverse of `to_dict`, strict.  Raises BadCheckpoint for what this version does not know."""
        version = data.get("version")
        if version != VERSION:
            raise BadCheckpoint(
                f"{where} has version {version!r} and this Budwood reads {VERSION}; "
                "open it with the Budwood that wrote it, or run again"
            )
        quality = data.get("quality") or []
        return cls(
            parameters=_read(Parameters, data.get("parameters"), where),
            memory=_read(Memory, data.get("memory"), where),
            speed=_read(Speed, data.get("speed"), where),
            quality=tuple(_quality(entry, where) for entry in quality),
            inference=_inference(data.get("inference"), where),
        )


Part = TypeVar("Part")


def _read(part: type[Part], data: Json, where: str) -> Part | None:
    """One flat dataclass from its mapping; None for null."""
    if data is None:
        return None
    known = {field.name: field.type for field in fields(part)}  # type: ignore[arg-type]
    try:
        unknown = sorted(set(data) - set(known))
        if not unknown:
            values = {
                name: float(value) if "float" in str(known[name]) and value is not None else value
                for name, value in data.items()
            }
            return part(**values)
    except (TypeError, ValueError) as error:
        raise BadCheckpoint(f"{where}: {part.__name__.lower()} is damaged ({error}); run again") from error
    raise BadCheckpoint(
        f"{where}: {part.__name__.lower()} has {', '.join(unknown)}, unknown to this Budwood; update it"
    )


def _required(part: type[Part], data: Json, where: str) -> Part:
    value = _read(part, data, where)
    if value is None:
        raise BadCheckpoint(f"{where}: a {part.__name__.lower()} is null; run again")
    return value


def _quality(data: Json, where: str) -> Quality:
    if not isinstance(data, dict):
        raise BadCheckpoint(f"{where}: quality holds {data!r}, not an object; run again")
    return Quality(score=_required(Score, data.get("score"), where), base=_read(Score, data.get("base"), where))


def _inference(data: Json, where: str) -> Inference | None:
    if data is None:
        return None
    timings = {
        name: tuple(_required(Timing, entry, where) for entry in data[name])
        for name in ("timings", "base_timings", "merged_timings")
        if data.get(name) is not None
    }
    return _read(Inference, {**data, **timings}, where)
