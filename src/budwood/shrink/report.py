"""RUN/report.html: what a shrinking came to, as one page that needs nothing else. Read from the run's records only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import yaml

from budwood.errors import BadCheckpoint, WrongOrder
from budwood.intervals import RESAMPLES
from budwood.records import Manifest, RunFolder
from budwood.records.amounts import amount, percent, plain_number
from budwood.records.amounts import size as size_words
from budwood.records.files import Json, read_json, write_text
from budwood.records.pages import HARD, render, shortened
from budwood.shrink.chart import Chart, curve
from budwood.shrink.config import Shrinking
from budwood.shrink.lines import facts, opening, result, sizes, table, unshrunk, why
from budwood.shrink.measure import WRITTEN, answer_s
from budwood.shrink.stage import Stage

SAMPLES, LETTERS = 8, 1000
"""Samples that are shown, and letters of each of their texts."""
SETTINGS = 20_000
"""Letters of config.yaml that are shown."""
CLASSES: Mapping[str, str] = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "masked-lm": "AutoModelForMaskedLM",
    "classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
}
"""What transformers calls a model for each task; a cloze is read from the model itself."""


@dataclass(frozen=True)
class Candidates:
    """What one stage chose from."""

    stage: Stage
    losses: tuple[tuple[str, str, bool], ...]
    """(what, loss, whether it was taken), the best first."""


def write_report(folder: RunFolder, stages: Sequence[Stage]) -> Path:
    """Write RUN/report.html and return its path.

    Raises WrongOrder where there is no stage yet; BadCheckpoint for records that are damaged; BadConfig where the page
    cannot be written.
    """
    if not stages:
        raise WrongOrder(f"{folder.path} has no stage yet, so there is nothing to report; wait for the first one")
    filters: dict[str, Callable[..., object]] = {
        "plain_number": plain_number,
        "quoted": repr,
        "tight": _tight,
        "sizes": sizes,
    }
    write_text(folder.report, render("budwood.shrink", "report.html", _content(folder, stages), filters))
    return folder.report


def _content(folder: RunFolder, stages: Sequence[Stage]) -> dict[str, Any]:
    manifest, config, last = folder.manifest(), folder.config(), result(stages)
    settings, name = _settings(config), _name(manifest.model)
    headings, rows = table(stages)
    return {
        "manifest": manifest,
        "last": last,
        "title": f"{name}, shrunk to {percent(last.share)}" if last.share < 1 else name,
        "opening": opening(name, stages),
        "why": why(stages, settings, manifest),
        "facts": facts(stages),
        "place": _place(folder, last),
        "model_class": _model_class(folder, manifest, last),
        "charts": _charts(stages, settings),
        "headings": [(heading.lstrip(">"), heading.startswith(">")) for heading in headings],
        "stages_at": (folder.path / "stages").resolve(),
        "rows": list(zip(stages, rows, strict=True)),
        "folders": sum(stage.folder is not None for stage in stages),
        "candidates": [_candidates(stage) for stage in stages if stage.candidates],
        "samples": _samples(folder, last),
        "unsampled": max(0, len(_samples_of(folder, last)) - SAMPLES),
        "notes": [*_notes(stages, settings), *_circumstances(folder, manifest)],
        "command": " ".join(manifest.command),
        "settings": shortened(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), SETTINGS),
    }


def _settings(config: Mapping[str, Json]) -> Shrinking:
    """What config.yaml says of the shrinking."""
    if not isinstance(config.get("shrink"), Mapping):
        raise BadCheckpoint("config.yaml says nothing of a shrinking (shrink); restore it, or run again")
    return Shrinking.from_dict(config["shrink"])


def _name(model: str) -> str:
    """A model folder by its own name, any other as it was named."""
    return Path(model).name if Path(model).is_absolute() else model


def _place(folder: RunFolder, last: Stage) -> Path | None:
    """Where the result's model is; None where it is not kept."""
    kept = [folder.path / "model", *([folder.path / last.folder] if last.folder else [])]
    return next((place.resolve() for place in kept if place.is_dir()), None)


def _model_class(folder: RunFolder, manifest: Manifest, last: Stage) -> str:
    place = _place(folder, last)
    if manifest.task in CLASSES or place is None or not (place / "config.json").is_file():
        return CLASSES.get(manifest.task, CLASSES["causal-lm"])
    names = read_json(place / "config.json").get("architectures") or []
    return CLASSES["masked-lm" if any("MaskedLM" in name for name in names) else "causal-lm"]


def _charts(stages: Sequence[Stage], settings: Shrinking) -> list[Chart]:
    title = "Quality against {}"
    writes = any(stage.timing.per_token_s is not None for stage in stages)
    read = stages[0].timing.prompt_tokens
    answer = f"ms to read {read} tokens" + (f" and write {WRITTEN}" if writes else "")
    found = (
        curve(
            "size",
            title.format("size"),
            "parameters",
            stages,
            x=lambda stage: stage.parameters,
            say=lambda value: amount(value).replace(".0", ""),
            least=settings.min_quality,
        ),
        curve(
            "time",
            title.format("the time of an answer"),
            answer,
            stages,
            x=lambda stage: 1e3 * answer_s(stages[0].timing) / stage.speedup if stage.speedup else inf,
            say=lambda value: f"{value:,.4g}",
            least=settings.min_quality,
        ),
    )
    return [chart for chart in found if chart is not None]


def _candidates(stage: Stage) -> Candidates:
    ordered = sorted(stage.candidates.items(), key=lambda item: float(item[1]))
    return Candidates(stage, tuple((what, plain_number(loss), what == stage.what) for what, loss in ordered))


def _samples_of(folder: RunFolder, last: Stage) -> list[dict[str, Json]]:
    """The samples of the result, or of the newest stage before it that has some."""
    lines = [line for line in folder.samples() if 0 < line.get("step", 0) <= last.number]
    newest = max((line.get("step", 0) for line in lines), default=0)
    return [line for line in lines if line.get("step", 0) == newest]


def _samples(folder: RunFolder, last: Stage) -> list[dict[str, str]]:
    names = ("step", "prompt", "reference", "base", "now")
    lines = _samples_of(folder, last)[:SAMPLES]
    return [{name: shortened(str(line.get(name) or ""), LETTERS) for name in names} for line in lines]


def _notes(stages: Sequence[Stage], settings: Shrinking) -> list[tuple[str, str]]:
    """(what, how it was measured), as far as it happened."""
    last, read = result(stages), stages[0].timing.prompt_tokens
    notes = []
    if (trimmed := next((stage for stage in stages if stage.kind == "vocabulary"), None)) is not None:
        notes.append(("Vocabulary", _of_vocabulary(stages, trimmed)))
    if last.quality is not None:
        notes.append(("Quality", _of_quality(stages, last)))
    paired = " Those of the quality are paired: both models are scored on the same rows in each draw."
    paired = paired if last.quality is not None else ""
    rows = f" on {last.quality.n:,} held-out rows" if last.quality is not None else ""
    notes.append(
        (
            "Intervals",
            f"Numbers in brackets are 95 % intervals{rows}, from {RESAMPLES:,} bootstrap draws of the rows.{paired}",
        )
    )
    writes = last.timing.per_token_s is not None
    answer = f"reading {read} tokens" + (f" and writing {WRITTEN}" if writes else "; this model writes none")
    notes.append(
        (
            "Speed",
            f"An answer is {answer}, {last.timing.batch} at a time. Times are the {last.timing.how}. How many times as "
            "fast a stage is was measured by turns with an earlier one, so that a busy minute slows both; the curve "
            "follows that, which is why it may differ a little from the times in the table.",
        )
    )
    if any(stage.candidates for stage in stages):
        notes.append(
            (
                "Cuts",
                f"At each stage several cuts of the same size were tried, scored by {settings.score} on "
                f"{settings.rows:,} training rows; the one with the least loss after a short refit was taken, refitted "
                f"on all of them, and then trained for {settings.recover} against the unshrunk model.",
            )
        )
    if any(not stage.accepted for stage in stages):
        notes.append(("Undone", "A stage that was undone is no part of the result; it is shown for what it tells."))
    return notes


def _of_vocabulary(stages: Sequence[Stage], trimmed: Stage) -> str:
    return (
        f"Stage {trimmed.number} took tokens out of the vocabulary. Perplexities and losses before and after that do "
        "not compare: with fewer tokens to choose from, each right one is likelier. Quality is not touched by this, as "
        f"it is a share of what stage {unshrunk(stages).number} reaches; for the stages before it, compare the samples."
    )


def _of_quality(stages: Sequence[Stage], last: Stage) -> str:
    assert last.quality is not None
    whole = unshrunk(stages)
    if last.quality.unit.startswith("likelihood"):
        how = "the likelihood that a model gives each token of the held-out answers (one over its perplexity)"
    else:
        how = "the share of right answers on the held-out rows"
    return (
        f"Quality is {how}, as a share of that of the unshrunk model, which is stage "
        f"{whole.number}, as it teaches the others. It can be more than 100 %."
    )


def _circumstances(folder: RunFolder, manifest: Manifest) -> list[tuple[str, str]]:
    """(what, on what it ran): data, machine, versions."""
    data, here = folder.data(), folder.environment()
    splits = ", ".join(f"{name} {count:,}" for name, count in (data.get("splits") or {}).items())
    rows = f", rows: {splits}" if splits else ""
    mark = f"; its hash begins with {str(data['hash'])[:12]}" if data.get("hash") else ""
    processor = here.get("processor") or {}
    parts = [
        processor.get("model"),
        f"{here['threads']} threads" if here.get("threads") else None,
        f"{size_words(here['memory_bytes'])} of memory" if here.get("memory_bytes") else None,
        *(device.get("name") for device in here.get("accelerators") or ()),
        here.get("os"),
    ]
    versions = {"budwood": manifest.budwood, **(here.get("versions") or {})}
    shown = [f"{name} {versions[name]}" for name in ("budwood", "torch", "transformers") if versions.get(name)]
    return [
        ("Data", f"{manifest.data}, for {manifest.model}{rows}{mark}. Seed {manifest.seed}."),
        ("Machine", f"{', '.join(str(part) for part in parts if part)}; {', '.join(shown)}."),
    ]


def _tight(cell: str) -> str:
    """Numbers that break in no other place than before a bracket."""
    return cell.replace(" ", HARD).replace(f"{HARD}[", " [").replace(f"{HARD}(", " (")
