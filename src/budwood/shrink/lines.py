"""A shrinking in words: what came out, why it stopped, and the table of its stages; the same for page and terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from budwood.records import Manifest, Score
from budwood.records.amounts import NONE, UNKNOWN, amount, duration, milliseconds, percent, plain_number
from budwood.records.manifest import is_mine
from budwood.shrink.stage import BEGINNINGS, Stage

if TYPE_CHECKING:
    from budwood.shrink.config import Shrinking


@dataclass(frozen=True)
class Column:
    """One column of the table of stages."""

    head: str
    """A heading that starts with > has its column set to the right."""
    cell: Callable[[Stage], str]
    in_brief: bool = True
    """Whether it is among those for a terminal."""


def result(stages: Sequence[Stage]) -> Stage:
    """The last stage that was accepted."""
    return next((stage for stage in reversed(stages) if stage.accepted), stages[0])


def unshrunk(stages: Sequence[Stage]) -> Stage:
    """The stage that qualities are shares of: the last before anything but tokens was cut."""
    return next((stage for stage in reversed(stages) if stage.kind in BEGINNINGS), stages[0])


def table(stages: Sequence[Stage], *, brief: bool = False) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(headings, rows) of all stages; those of a number are set to the right, by a heading that starts with >."""
    columns = [column for column in _columns(stages) if column.in_brief or not brief]
    return tuple(column.head for column in columns), [tuple(c.cell(stage) for c in columns) for stage in stages]


def _columns(stages: Sequence[Stage]) -> list[Column]:
    last, whole, read = result(stages), unshrunk(stages), stages[0].timing.prompt_tokens
    metric = stages[0].scores[0].name if stages[0].scores else "score"
    writes = any(stage.timing.per_token_s is not None for stage in stages)

    def outcome(stage: Stage) -> str:
        return "undone" if not stage.accepted else "the result" if stage is last and len(stages) > 1 else "kept"

    def quality(stage: Stage) -> str:
        if stage.quality is None:
            return "100.0 % (the measure)" if stage is whole and len(stages) > 1 else NONE
        return interval(stage.quality, share=True)

    return [
        Column(">stage", lambda stage: str(stage.number)),
        Column("what was done", lambda stage: stage.what),
        Column("sizes", sizes, in_brief=False),
        Column(">parameters", lambda stage: f"{amount(stage.parameters)} ({percent(stage.share)})"),
        Column(f">{metric} [95 %]", lambda stage: interval(stage.scores[0]) if stage.scores else UNKNOWN),
        Column(">quality [95 %]", quality),
        Column(f">read {read} tokens", lambda stage: milliseconds(stage.timing.prefill_s), in_brief=False),
        *(
            [Column(">write a token", lambda stage: milliseconds(stage.timing.per_token_s), in_brief=False)]
            if writes
            else []
        ),
        Column(">times as fast", lambda stage: times(stage.speedup)),
        Column(">cutting", lambda stage: spent(stage.cut_s), in_brief=False),
        Column(">recovery", lambda stage: spent(stage.recover_s), in_brief=False),
        Column("outcome", outcome),
    ]


def opening(model: str, stages: Sequence[Stage]) -> str:
    """What came out, in two sentences."""
    first, last = stages[0], result(stages)
    if last.parameters >= first.parameters:
        return f"{model} was not made smaller: it has {amount(last.parameters)} parameters, as before."
    begun = f"{model} now has {amount(last.parameters)} of its {amount(first.parameters)} parameters"
    kept = "Only tokens that the data never uses were cut, and it"
    if last is not unshrunk(stages):
        kept = f"It keeps {_share(last)} of the unshrunk model's quality ({_range(last)}) and"
    return f"{begun} ({percent(last.share)}). {kept} {_speed(last)}."


def facts(stages: Sequence[Stage]) -> list[tuple[str, str, str]]:
    """(what, how much, beside what) of the result: size, quality, speed, time."""
    first, last = stages[0], result(stages)
    quality = _share(last), f"of the unshrunk model's; {_range(last)}"
    if last is unshrunk(stages):
        untouched = last.parameters >= first.parameters
        quality = percent(1), "nothing was cut" if untouched else "nothing but unused tokens was cut"
    trained, cutting = sum(stage.recover_s for stage in stages), sum(stage.cut_s for stage in stages)
    return [
        ("parameters", percent(last.share), f"{amount(last.parameters)} of {amount(first.parameters)}"),
        ("quality", *quality),
        ("speed", f"{times(last.speedup)} times", "as fast as the original"),
        (
            "time it took",
            duration(trained + cutting),
            f"{duration(trained)} of training, {duration(cutting)} of cutting",
        ),
    ]


def why(stages: Sequence[Stage], settings: Shrinking, manifest: Manifest) -> str:
    """Why there is no further stage, as far as the records tell."""
    newest, last = stages[-1], result(stages)
    if manifest.status in ("failed", "interrupted"):
        return f"It did not come to its end ({manifest.status}: {manifest.error or 'no reason is recorded'})."
    if not newest.accepted:
        return _undone(newest, settings)
    if last.parameters <= settings.target(stages[0].parameters):
        return f"It stopped where it was to: {amount(last.parameters)} parameters are within the target."
    if settings.latency is not None and last.speedup * settings.latency >= 1:
        return (
            f"It stopped where it was to: an answer takes at most {percent(settings.latency)} of the original's time."
        )
    if manifest.status == "running" and not is_mine(manifest.process):
        return "When this was written, no stage had been undone and no target was met: it may go on."
    ended = f"the time for new stages ({settings.budget}) was over, or " if settings.budget else ""
    return f"It stopped because {ended}nothing more could be cut of {', '.join(settings.cut)}."


def sizes(stage: Stage) -> str:
    """Layers, neurons and so on, in words."""
    return ", ".join(f"{name} {number:,}" for name, number in stage.sizes.items())


def interval(score: Score, *, share: bool = False) -> str:
    """A value with its interval: 3.740 [3.628, 3.856], or 93.0 [91.7, 94.2] % for shares."""
    if not (share or score.unit.startswith("share")):
        return f"{plain_number(score.value)} [{plain_number(score.low)}, {plain_number(score.high)}]"
    value, low, high = (percent(end).removesuffix(" %") for end in (score.value, score.low, score.high))
    return f"{value} [{low}, {high}] %"


def times(ratio: float) -> str:
    """How many times."""
    return f"{ratio:,.2f}" if isfinite(float(ratio)) else UNKNOWN


def spent(seconds: float) -> str:
    """A duration, or that there was none."""
    return duration(seconds) if seconds > 0 else NONE


def _share(stage: Stage) -> str:
    return UNKNOWN if stage.quality is None else percent(stage.quality.value)


def _range(stage: Stage) -> str:
    if stage.quality is None:
        return "not measured"
    low, high = percent(stage.quality.low).removesuffix(" %"), percent(stage.quality.high)
    return f"95 % interval {low} to {high}, {stage.quality.n:,} held-out rows"


def _speed(stage: Stage) -> str:
    if not isfinite(float(stage.speedup)):
        return "its speed was not measured"
    if abs(stage.speedup - 1) < 0.05:
        return f"answers about as fast as the original ({times(stage.speedup)} times)"
    return f"answers {times(stage.speedup)} times as fast as the original"


def _undone(stage: Stage, settings: Shrinking) -> str:
    begun = f"It stopped because the next stage ({stage.what}) was undone"
    if stage.quality is None or settings.min_quality is None:
        return f"{begun}."
    return (
        f"{begun}: its quality of {percent(stage.quality.value)} may be as low as {percent(stage.quality.low)}, and at "
        f"least {percent(settings.min_quality)} is to be kept."
    )
