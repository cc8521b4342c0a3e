"""TrainConfig: every setting of a training run, the same in Python, YAML and on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from budwood.errors import BadConfig, did_you_mean

SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("auto", "exact", "bf16")
CONFIG_VERSION = 1

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?[hms])+")
_COUNTED = re.compile(r"(\d+(?:\.\d+)?)([km]?)(steps?|epochs?|tokens?)")

Unit = Literal["s", "steps", "epochs", "tokens"]


@dataclass(frozen=True, slots=True)
class Budget:
    """How long to train: seconds of training steps, optimizer steps, passes over the rows, or tokens of them."""

    amount: float
    """How many of `unit`."""
    unit: Unit
    """"s" (seconds spent in training steps), "steps", "epochs" or "tokens" (prompt and learned ones)."""

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that `text` says: `90s`, `10m`, `1h30m`, `500steps`, `2epochs`, `0.5epochs`, `200ktokens`.

        Raises BadConfig for anything else, and for a budget of nothing.
        """
        word = text.strip().lower().replace(" ", "")
        if counted := _COUNTED.fullmatch(word):
            units: dict[str, Unit] = {"step": "steps", "epoch": "epochs", "token": "tokens"}
            many = {"": 1.0, "k": 1e3, "m": 1e6}[counted[2]]
            budget = cls(float(counted[1]) * many, units[counted[3].removesuffix("s")])
        elif _DURATION.fullmatch(word):
            parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", word)
            budget = cls(sum(float(amount) * _SECONDS[unit] for amount, unit in parts), "s")
        else:
            raise BadConfig(f"budget is {text!r}; write a time (10m, 1h30m, 90s), 500steps, 2epochs or 200ktokens")
        if budget.amount <= 0 or (budget.unit == "steps" and budget.amount % 1):
            raise BadConfig(f"budget is {text!r}; it must be more than nothing, and a whole number of steps")
        return budget

    def steps(self, steps_per_epoch: int, tokens_per_epoch: int = 1) -> int | None:
        """Optimizer steps this budget amounts to; None if it is a time, which only the clock can tell."""
        if self.unit == "s":
            return None
        if self.unit == "steps":
            return int(self.amount)
        epochs = self.amount if self.unit == "epochs" else self.amount / tokens_per_epoch
        return max(1, math.ceil(epochs * steps_per_epoch))

    def __str__(self) -> str:
        return f"{self.amount:g}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; what to train (model, data, method) is said beside it."""

    budget: str = "3epochs"
    """How long: a time spent training (10m, 1h30m), 500steps, 2epochs or 200ktokens."""
    batch: int = 8
    """Rows per optimizer step, however many pieces they are computed in."""
    accumulate: int = 1
    """Pieces a step's rows are computed in: more pieces need less memory and change nothing else."""
    learning_rate: float | None = None
    """Peak learning rate; none takes the method's own, or the best of those it names, tried for a few steps."""
    rate_steps: int = 20
    """Most steps at each learning rate that is tried where none is said; 0 tries none."""
    rates: str | None = None
    """Learning rates to try where none is said, as 1e-4+3e-4+1e-3; none tries those that the method names."""
    schedule: str = "linear"
    """What the learning rate does after warm-up: linear or cosine (both to zero), or constant."""
    warmup: float = 0.06
    """Warm-up: a share of the run if below 1, a number of steps from 1 up."""
    weight_decay: float | None = None
    """AdamW's decay, of tensors of two or more dimensions; none takes the method's own."""
    clip: float = 1.0
    """Largest norm of the gradient of a step; 0 never clips."""
    seed: int = 0
    """Seed of everything random: the order of rows, dropout, and how new parameters start."""
    split_seed: int | None = None
    """Seed of which rows are held out where the data has no such split; none takes `seed`."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:N or mps."""
    precision: str = "auto"
    """Arithmetic: exact (float32), bf16 (its products only), or auto: bf16 where it is fast."""
    max_length: int | None = None
    """Longest row in tokens, longer ones are cut; none takes what the model can read, at most 1024."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    pack: bool = True
    """Compute no padding, where a sample of the rows shows that loss and gradients are the same."""
    group_by_length: bool = True
    """Put rows of similar length in one step: less padding, the same rows in every epoch."""
    eval_every: int | None = None
    """Steps between validations; none validates four times in a run, 0 only at its end."""
    eval_rows: int = 64
    """Most held-out rows scored while training."""
    test_rows: int = 256
    """Most held-out rows scored before and after training, evenly spread over the split."""
    save_every: float = 600.0
    """Seconds between saves of what a run resumes from; 0 saves only when stopped and at the end."""
    proof_steps: int = 4
    """Steps after which every trained tensor must have moved; 0 proves it only at the end."""
    timed_batches: str = "1"
    """How many rows are answered at once where answers are timed; several as 1+8."""
    samples: int = 3
    """Held-out prompts answered by the base and by the trained model, kept in samples.jsonl."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        Budget.parse(self.budget)
        _choose("schedule", self.schedule, SCHEDULES)
        _choose("precision", self.precision, PRECISIONS)
        _check_device(self.device)
        _check_ranges(self)
        _numbers("rates", self.rates or "1", float)
        _numbers("timed_batches", self.timed_batches, int)

    @property
    def rates_given(self) -> tuple[float, ...]:
        """`rates` as numbers, the lowest first."""
        return tuple(sorted(set(_numbers("rates", self.rates, float)))) if self.rates else ()

    @property
    def batches_timed(self) -> tuple[int, ...]:
        """`timed_batches` as numbers."""
        return tuple(map(int, _numbers("timed_batches", self.timed_batches, int)))

    @property
    def parsed_budget(self) -> Budget:
        """The budget as a value."""
        return Budget.parse(self.budget)

    def to_dict(self) -> dict[str, object]:
        """Plain values under the canonical names, with the version of the layout."""
        return {"version": CONFIG_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> TrainConfig:
        """The config that `values` say; other tools' names are accepted (see `canonical`).

        Raises BadConfig, with the nearest name, for a key that is none of ours, and for a value out of range.
        """
        plain = canonical(values, extra=("version",))
        version = plain.pop("version", CONFIG_VERSION)
        if version != CONFIG_VERSION:
            raise BadConfig(f"the config has version {version!r}; this Budwood reads {CONFIG_VERSION}")
        return cls(**{name: _number(name, value) for name, value in plain.items()})  # type: ignore[arg-type]


ALIASES: dict[str, str] = {
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "lr_scheduler": "schedule",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "max_grad_norm": "clip",
    "gradient_clipping": "clip",
    "batch_size": "batch",
    "per_device_train_batch_size": "batch",
    "micro_batch_size": "batch",
    "gradient_accumulation_steps": "accumulate",
    "num_train_epochs": "budget",
    "num_epochs": "budget",
    "epochs": "budget",
    "max_steps": "budget",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "max_seq_length": "max_length",
    "max_seq_len": "max_length",
    "eval_steps": "eval_every",
    "train_sampling_strategy": "group_by_length",
    "dtype": "precision",
    "bf16": "precision",
    "fp16": "precision",
}
"""Other tools' names for our settings. A batch per device times accumulation becomes our rows per step."""

_PER_DEVICE = ("per_device_train_batch_size", "micro_batch_size", "batch_size")


def canonical(values: Mapping[str, object], *, extra: tuple[str, ...] = ()) -> dict[str, object]:
    """`values` under our names: other tools' names and conventions translated, nothing guessed.

    extra    further keys that may stand beside the settings, returned untouched
    Raises BadConfig for an unknown key, and for two keys that say the same thing.
    """
    known = {field.name for field in fields(TrainConfig)} | set(extra)
    said: dict[str, str] = {}
    plain: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        target = name if name in known else ALIASES.get(name)
        if target is None:
            raise BadConfig(f"no setting is called {key!r}; {did_you_mean(name, [*known, *ALIASES])}")
        if name == "max_steps" and isinstance(value, int) and value <= 0:
            continue
        if target in said:
            raise BadConfig(f"{key!r} and {said[target]!r} both set {target}; keep one of them")
        said[target] = key
        plain[target] = _translate(name, value)
    per_device = said.get("batch", "").replace("-", "_") in _PER_DEVICE
    pieces = plain.get("accumulate", 1)
    if per_device and isinstance(plain["batch"], int) and isinstance(pieces, int):
        plain["batch"] = plain["batch"] * pieces
    return plain


def _translate(name: str, value: object) -> object:
    """What `value` under the name `name` of another tool says in our convention."""
    if name in ("num_train_epochs", "num_epochs", "epochs") and _is_number(value):
        return f"{value:g}epochs"
    if name == "max_steps" and _is_number(value):
        return f"{value:g}steps"
    if name == "fp16" and value:
        raise BadConfig("fp16 is not offered, it overflows too easily; write precision: bf16 or exact")
    if name in ("bf16", "fp16"):
        return "bf16" if value else "exact"
    if name == "dtype":
        return {"float32": "exact", "fp32": "exact", "bfloat16": "bf16"}.get(str(value), value)
    if name == "train_sampling_strategy":
        return value == "group_by_length"
    if name in ("budget", "device") and _is_number(value):
        raise BadConfig(f"{name} is {value!r}; write it as text, such as budget: 500steps or device: cuda:0")
    return value


def _number(name: str, value: object) -> object:
    """`value`, read as a number where the field is one: YAML takes 1e-4, without a point, for text."""
    if not isinstance(value, str) or "float" not in str(TrainConfig.__annotations__.get(name, "")):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _numbers(name: str, text: str, kind: type[int] | type[float]) -> tuple[float, ...]:
    """The numbers that a list such as 1+8 says. Raises BadConfig for anything else."""
    try:
        found = tuple(kind(part) for part in text.split("+"))
    except ValueError:
        found = ()
    if not found or any(not 0 < one < math.inf for one in found):
        example = "1+8" if kind is int else "1e-4+3e-4+1e-3"
        raise BadConfig(f"{name} is {text!r}; write numbers above 0 joined by +, as {example}")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_type(name: str, value: object, annotation: str) -> None:
    """Raise BadConfig unless `value` is of the type its field is annotated with."""
    allowed = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,), "None": (type(None),)}
    parts = [part.strip() for part in annotation.split("|")]
    fits = any(isinstance(value, allowed[part]) for part in parts)
    if not fits or (isinstance(value, bool) and "bool" not in parts):
        words = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
        wanted = " or ".join(words.get(part, "nothing") for part in parts)
        raise BadConfig(f"{name} is {value!r}; it must be {wanted}")


def _choose(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadConfig(f"{name} is {value!r}; {did_you_mean(value, choices)}")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise BadConfig(f"device is {device!r}; it must be auto, cpu, cuda, cuda:N or mps")


def _check_ranges(config: TrainConfig) -> None:
    """Raise BadConfig for the first number that is out of its range."""
    at_least = {
        "batch": 1,
        "accumulate": 1,
        "eval_rows": 1,
        "test_rows": 1,
        "save_every": 0,
        "proof_steps": 0,
        "samples": 0,
        "rate_steps": 0,
    }
    at_least |= {"split_seed": 0, "warmup": 0, "weight_decay": 0, "clip": 0, "seed": 0}
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is not None and (not math.isfinite(value) or value < least):
            raise BadConfig(f"{name} is {value}; it must be at least {least}")
    if config.learning_rate is not None and not 0 < config.learning_rate < math.inf:
        raise BadConfig(f"learning_rate is {config.learning_rate}; it must be a number above 0")
    if config.max_length is not None and config.max_length < 2:
        raise BadConfig(f"max_length is {config.max_length}; it must be at least 2 tokens")
    if config.eval_every is not None and config.eval_every < 0:
        raise BadConfig(f"eval_every is {config.eval_every}; it must be 0 or more steps")
    if config.accumulate > config.batch:
        raise BadConfig(
            f"accumulate is {config.accumulate} but a step has only {config.batch} rows; "
            f"it can be at most {config.batch}"
        )
