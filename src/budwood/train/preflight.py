"""What a run is about to do, checked and said before its first step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from budwood.data import Corpus, Encoded, Example, check, preview
from budwood.data.checks import Finding
from budwood.errors import BadData
from budwood.records import Json, count
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.memory import human_bytes
from budwood.train.probe import Forecast
from budwood.train.rates import RatePlan, plan_rates
from budwood.train.setup import Prepared

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST_LOST = 0.5
"""Share of rows that may have nothing to learn before a run is refused."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What is learned from."""

    described: tuple[str, ...]
    """What was recognised: shape, columns, rows of each split, labels."""
    rows: int
    """Rows of the train split."""
    examples: int
    """Examples made of them."""
    learned_tokens: int
    """Targets of one epoch."""
    total_tokens: int
    """Tokens of one epoch."""
    rows_cut: int
    """Rows that lost their end."""
    rows_empty: int
    """Rows with nothing left to learn, which are left out."""
    max_length: int | None
    """Tokens a row keeps."""
    longest: int
    """Tokens of the longest row before cutting."""
    held_out: int
    """Held-out rows that quality is measured on."""
    findings: tuple[Finding, ...]
    """Repeats, leakage, contradictions, empty answers."""
    shown: str
    """One row as text, with [[what is learned]] marked."""


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """The whole check: what `--dry-run` prints."""

    data: DataFacts
    method: str
    """The method's name."""
    trained_count: int
    """Parameters that are trained."""
    trained_bytes: int
    """Their size in memory."""
    base_count: int
    """Parameters of the base."""
    learning_rate: float
    """The peak rate, where none are tried."""
    device: str
    """Where it will run."""
    precision: str
    """float32 or bfloat16."""
    steps: int | None
    """Optimizer steps; None where the budget is a time."""
    steps_per_epoch: int
    """Steps that visit every row once."""
    forecast: Forecast
    """What steps cost, measured."""
    predicted_bytes: int
    """Peak memory expected, on top of the imports."""
    predicted_s: float
    """Seconds of training expected."""
    fast: str = ""
    """How steps are computed, and what showed that it is the same."""
    on: tuple[str, ...] = ()
    """Folders of the frozen adapters that it stands on, the lowest first."""
    rates: RatePlan | None = None
    """Learning rates that are tried before the first step."""
    lesson: tuple[str, ...] = ()
    """What there is to say of what it learns from, beside the data."""

    @property
    def epochs(self) -> float:
        """Passes over the rows that the budget comes to."""
        steps = self.steps or self.predicted_s / self.forecast.step_s
        return steps / self.steps_per_epoch

    def lines(self) -> tuple[str, ...]:
        """What a person should know before starting."""
        data, forecast = self.data, self.forecast
        lines = [*data.described]
        lines.append(
            f"learns {data.learned_tokens:,} of {data.total_tokens:,} tokens in {data.examples:,} rows; "
            f"{data.held_out:,} rows held out"
        )
        if data.rows_cut:
            lines.append(
                f"{data.rows_cut:,} rows are cut at {data.max_length} tokens; max_length: {data.longest} cuts none"
            )
        if data.rows_empty:
            lines.append(f"{data.rows_empty:,} rows have nothing to learn and are left out")
        lines += [finding.message for finding in data.findings]
        lines.append(f"one row, [[learned]]: {data.shown}")
        share = self.trained_count / max(1, self.base_count)
        lines.append(
            f"{self.method}: {self.trained_count:,} parameters trained ({share:.2%} of {self.base_count:,}), "
            f"learning rate {self.rates or f'{self.learning_rate:g}'}"
        )
        lines += [f"on top of {folder}, which stays as it is" for folder in self.on]
        lines += self.lesson
        if forecast.pieces > 1:
            lines.append(f"a step's rows are computed in {forecast.pieces} pieces, to fit in memory")
        lines.append(
            f"expects {human_bytes(self.predicted_bytes)} at most ({human_bytes(forecast.available_bytes)} free before "
            f"the first step), on {self.device} in {self.precision}"
        )
        if self.fast:
            lines.append(self.fast)
        steps = f"{self.steps:,} steps" if self.steps else f"about {self.predicted_s / forecast.step_s:,.0f} steps"
        lines.append(f"{steps}, {self.epochs:.3g} epochs, about {human_seconds(self.predicted_s)} of training")
        return tuple(lines)

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return {**asdict(self), "epochs": self.epochs}


def data_facts(corpus: Corpus, train: Encoded, held_out: int, tokenizer: PreTrainedTokenizerBase) -> DataFacts:
    """The data's part, which needs no model.

    Raises BadData if most rows have nothing left to learn, with the max_length that mends it.
    """
    report = train.report
    lost = report.rows_empty / max(1, report.rows)
    if lost > MOST_LOST:
        mend = (
            f"max_length: {report.longest} keeps every row whole"
            if report.rows_cut
            else "give each row an assistant message, a completion, or text"
        )
        raise BadData(f"{corpus.origin}: {report.rows_empty} of {report.rows} rows have nothing left to learn; {mend}")
    findings = check(corpus)
    for finding in findings:
        if finding.kind == "empty-answers" and finding.rows > MOST_LOST * report.rows:
            raise BadData(f"{corpus.origin}: {finding.message}")
    return DataFacts(
        described=corpus.describe(),
        rows=report.rows,
        examples=report.examples,
        learned_tokens=report.learned_tokens,
        total_tokens=report.total_tokens,
        rows_cut=report.rows_cut,
        rows_empty=report.rows_empty,
        max_length=report.max_length,
        longest=report.longest,
        held_out=held_out,
        findings=findings,
        shown=preview(_typical(train), tokenizer, labels=corpus.labels),
    )


def preflight(
    data: DataFacts, prepared: Prepared, feed: Feed, config: TrainConfig, forecast: Forecast, *, held_bytes: int,
    on: tuple[str, ...] = (),
) -> Preflight:  # fmt: skip
    """The whole check.

    held_bytes  what the process holds by now, on top of its imports: weights, mostly
    on          folders of the adapters below the one that is trained
    """
    trained = count(prepared.parameters.values())
    kept = prepared.fast.lower.held_bytes if prepared.fast.lower else 0
    budget = config.parsed_budget
    steps = feed.steps_of(budget)
    total = budget.amount / forecast.step_s if steps is None else steps
    return Preflight(
        data=data,
        method=prepared.adapter.method.name,
        trained_count=trained[0],
        trained_bytes=trained[1],
        base_count=prepared.base_count,
        learning_rate=prepared.learning_rate,
        device=str(prepared.device),
        precision=str(prepared.compute).removeprefix("torch."),
        steps=steps,
        steps_per_epoch=feed.steps_per_epoch,
        forecast=forecast,
        predicted_bytes=held_bytes + forecast.step_bytes + kept,
        predicted_s=budget.amount if steps is None else steps * forecast.step_s,
        fast=str(prepared.fast),
        on=on,
        rates=plan_rates(prepared.adapter.method, config, total_steps=total),
    )


def human_seconds(seconds: float) -> str:
    """`seconds` as people say it: 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _typical(train: Encoded) -> Example:
    """The example of median length: shown to people."""
    return sorted(train.examples, key=lambda example: example.size)[len(train.examples) // 2]
