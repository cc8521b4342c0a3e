"""Flags that several verbs share; each dataclass is flattened into a verb's own flags."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from budwood.cli.output import Level, Sink


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Talk:
    """How a verb answers."""

    json: bool = False
    """One JSON object on stdout; the talk stays on stderr."""
    quiet: Annotated[bool, Parameter(alias="-q")] = False
    """Say nothing but errors."""
    verbose: Annotated[bool, Parameter(alias="-v")] = False
    """Say more; tracebacks for our own bugs."""

    def sink(self) -> Sink:
        """Where this verb's words go."""
        level = Level.VERBOSE if self.verbose else Level.QUIET if self.quiet else Level.NORMAL
        sink = Sink(is_json=self.json, level=level)
        _listen(sink)
        return sink


class _ToSink(logging.Handler):
    """What our own modules log (a fetch, a chosen padding token) is said like everything else."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.INFO)
        self.sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Say one record."""
        self.sink.say(record.getMessage())


def _listen(sink: Sink) -> None:
    logger = logging.getLogger("budwood")
    logger.handlers = [_ToSink(sink)]
    logger.setLevel(logging.INFO)


COMMAND: ContextVar[tuple[str, ...]] = ContextVar("command", default=("budwood",))
"""What was typed, for the record."""
Unlisted = Parameter(show=False)
"""A flag that works and that the help leaves to docs/howto/cli.md."""
Below = Annotated[tuple[str, ...], Parameter(negative=(), show=False)]
"""What an adapter stands on: runs or adapter folders."""
Together = Annotated[tuple[str, ...], Parameter(name="--with", negative=(), show=False)]
"""Others that answer together with an adapter: runs or adapter folders."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train: with `Machine`, every setting of `budwood.train.TrainConfig`; the common ones are in the help."""

    method: str | None = None
    """What to train: NAME or NAME:field=value,... (see `budwood methods`). [lora]"""
    budget: str | None = None
    """How long: 10m, 500steps or 2epochs. [3epochs]"""
    out: Path | None = None
    """Folder of the run. [runs/DATE-METHOD-MODEL]"""
    resume: str | None = None
    """Go on with a run: a folder, a name or latest; nothing else is needed."""
    dry_run: bool = False
    """Stop after preflight: nothing is trained or written."""
    force: bool = False
    """Replace the run that is in --out."""
    on: Below = ()
    """A run or an adapter to train on top of, which stays as it is; repeat it for several."""
    task: Annotated[str | None, Unlisted] = None
    """One of `budwood.data.TASKS`, where the data leaves it open."""
    pattern: Annotated[str | None, Unlisted] = None
    """For cloze: '{text} It was <mask>.', with <p> for pseudo tokens."""
    verbalizer: Annotated[str | None, Unlisted] = None
    """For cloze: the words of each label, negative=terrible,positive=great|good."""
    accumulate: Annotated[int | None, Unlisted] = None
    learning_rate: Annotated[float | None, Unlisted] = None
    rates: Annotated[str | None, Unlisted] = None
    rate_steps: Annotated[int | None, Unlisted] = None
    schedule: Annotated[str | None, Unlisted] = None
    warmup: Annotated[float | None, Unlisted] = None
    weight_decay: Annotated[float | None, Unlisted] = None
    clip: Annotated[float | None, Unlisted] = None
    gradient_checkpointing: Annotated[bool | None, Unlisted] = None
    pack: Annotated[bool | None, Parameter(show=False, negative="--no-pack")] = None
    group_by_length: Annotated[bool | None, Parameter(show=False, negative="--no-group-by-length")] = None
    eval_every: Annotated[int | None, Unlisted] = None
    eval_rows: Annotated[int | None, Unlisted] = None
    test_rows: Annotated[int | None, Unlisted] = None
    save_every: Annotated[float | None, Unlisted] = None
    proof_steps: Annotated[int | None, Unlisted] = None
    timed_batches: Annotated[str | None, Unlisted] = None
    split_seed: Annotated[int | None, Unlisted] = None
    samples: Annotated[int | None, Unlisted] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Distilling(Training):
    """How to distill: the settings of `budwood train`, and those of `budwood.distill.config.Distillation`."""

    method: str | None = None
    """How the student is trained: full, or a method with fields as lora:rank=16. [full]"""
    dry_run: Annotated[bool, Unlisted] = False
    force: Annotated[bool, Unlisted] = False
    loss: str | None = None
    """forward-kl, reverse-kl, skewed-kl, skewed-reverse-kl, jsd, soft-cross-entropy or uld. [forward-kl]"""
    top_k: int | None = None
    """Ask the teacher once, and keep its so many likeliest tokens on disk. [ask it in every step]"""
    temperature: Annotated[float | None, Unlisted] = None
    kd_weight: Annotated[float | None, Unlisted] = None
    ce_weight: Annotated[float | None, Unlisted] = None
    skew: Annotated[float | None, Unlisted] = None
    beta: Annotated[float | None, Unlisted] = None
    hidden_weight: Annotated[float | None, Unlisted] = None
    hidden: Annotated[str | None, Unlisted] = None
    attention_weight: Annotated[float | None, Unlisted] = None
    relation_weight: Annotated[float | None, Unlisted] = None
    layer_map: Annotated[str | None, Unlisted] = None
    tail: Annotated[str | None, Unlisted] = None
    answers: Annotated[str | None, Unlisted] = None
    on_policy: Annotated[float | None, Unlisted] = None
    max_new_tokens: Annotated[int | None, Unlisted] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Shrinks(Training):
    """How to shrink: the settings of `budwood.shrink.config.Shrinking`, and those of `budwood train` for its stages."""

    method: Annotated[str | None, Unlisted] = None
    budget: Annotated[str | None, Unlisted] = None
    dry_run: Annotated[bool, Unlisted] = False
    force: Annotated[bool, Unlisted] = False
    to: float | None = None
    """Share of the parameters that is to stay, as 0.5."""
    to_params: Annotated[str | None, Unlisted] = None
    latency: Annotated[float | None, Unlisted] = None
    min_quality: float | None = None
    """Least share of the quality that is to stay, as 0.98: what does not hold is undone."""
    cut: str | None = None
    """What may be cut: layers, ffn, heads, hidden, vocabulary, joined by +. [layers+ffn+heads]"""
    recover: str | None = None
    """How long each stage learns from the unshrunk model. [120steps]"""
    step: Annotated[float | None, Unlisted] = None
    score: Annotated[str | None, Unlisted] = None
    rows: Annotated[int | None, Unlisted] = None
    ridge: Annotated[float | None, Unlisted] = None
    tune: Annotated[str | None, Unlisted] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Comparisons(Training):
    """How to compare: the settings of `budwood.compare.config.Comparing`, and of `budwood train` for its runs."""

    method: Annotated[tuple[str, ...], Parameter(negative=())] = ()  # type: ignore[assignment]  # several here
    """A method to compare, as lora or lora:rank=16; repeat it for several. [all that work alone]"""
    budget: str | None = None
    """What each run may train: 200steps, 1epochs, 100ktokens or 5m. [200steps, at most 3 epochs]"""
    out: Path | None = None
    """Folder of the comparison; one that is there is gone on with. [runs/DATE-compare-MODEL]"""
    resume: str | None = None
    """Go on with a comparison: its folder; nothing else is needed."""
    dry_run: Annotated[bool, Unlisted] = False
    force: Annotated[bool, Unlisted] = False
    seeds: int | None = None
    """How many seeds each method is trained with. [1]"""
    memory: str | None = None
    """Peak memory that no run may exceed, as 6GiB."""
    search: Annotated[bool | None, Parameter(show=False, negative="--no-search")] = None
    """Try three learning rates for each method, with the first seed."""
    ray: Annotated[bool, Unlisted] = False
    """Do the runs as Ray tasks, one a device."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Searches(Training):
    """How to search: the settings of `budwood train` for whatever is tried."""

    method: Annotated[tuple[str, ...], Parameter(negative=())] = ()  # type: ignore[assignment]  # several here
    """A method to try, lora in several sizes or lora:rank=16 as it is; repeat it for several. [all that work alone]"""
    budget: str | None = None
    """The time for all of it, the final run included: 20m or 1h30m."""
    out: Path | None = None
    """Folder of the search; one that is there is gone on with. [runs/DATE-search-MODEL]"""
    resume: str | None = None
    """Go on with a search: its folder; nothing else is needed."""
    dry_run: Annotated[bool, Unlisted] = False
    force: Annotated[bool, Unlisted] = False
    memory: str | None = None
    """Peak memory that nothing tried may exceed, as 6GiB."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a verb computes."""

    config: Path | None = None
    """YAML file with the same keys as the flags; flags win."""
    seed: int | None = None
    """Seed of everything random. [0]"""
    device: str | None = None
    """auto, cpu, cuda, cuda:N or mps. [auto]"""
    precision: str | None = None
    """auto, exact (float32) or bf16. [auto]"""
    batch: int | None = None
    """Rows at once. [8]"""
    offline: bool | None = None
    """Never use the network."""
    columns: Annotated[str | None, Unlisted] = None
    """Which column is what, where the names do not say: prompt=q,completion=a."""
    max_length: Annotated[int | None, Unlisted] = None
    """Longest row in tokens; longer ones are cut."""
    template: Annotated[str | None, Unlisted] = None
    """auto, chat (the tokenizer's own template) or plain."""
    trust_remote_code: Annotated[bool | None, Unlisted] = None
    """Run the code that the model brings along."""
    allow_pickle: Annotated[bool | None, Unlisted] = None
    """Read adapters from pickle files, too, tensors and nothing else."""


def given(flags: object) -> dict[str, object]:
    """The flags of a dataclass that were typed, by name: those that are not as nobody typed them."""
    values = {field.name: (getattr(flags, field.name), field.default) for field in fields(flags)}  # type: ignore[arg-type]
    return {name: value for name, (value, default) in values.items() if value != default}
