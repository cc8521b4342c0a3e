"""What a method costs and how it learned, over its seeds: everything but the quality."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import median

from budwood.records import BASE, Inference, RunFolder, Timing
from budwood.records.files import Json
from budwood.report.runs import Entry
from budwood.report.table import Method, Point

WRITTEN = 16
"""Tokens of an answer, where its time is told."""
POINTS = 60
"""Most points of a curve of training losses."""


def measured(entry: Entry) -> Method:
    """The method with all that its finished runs tell of cost."""
    results = [run.result for run in entry.finished]
    parameters = next((one.parameters for one in results if one.parameters is not None), None)
    memories = [one.memory for one in results if one.memory is not None]
    highest = max(memories, key=lambda one: one.peak_bytes, default=None)
    speeds = [one.speed for one in results if one.speed is not None]
    inference = next((one.inference for one in results if one.inference is not None), None)
    single = _single(inference.timings) if inference is not None else None
    stored = [one.parameters.stored_bytes for one in results if one.parameters and one.parameters.stored_bytes]
    rate = next((run.config.get("learning_rate") for run in entry.finished), None)
    rates = entry.contender.rates or next((run.manifest.rate_probe for run in entry.finished), None)
    return Method(
        label=entry.label,
        contender=entry.contender,
        seeds=tuple(run.seed for run in entry.finished),
        failures=entry.failures,
        folders=tuple(str(run.folder) for run in entry.finished),
        trained_count=parameters.trained_count if parameters is not None else entry.contender.trained_count,
        share=parameters.share if parameters is not None else None,
        stored_bytes=max(stored) if stored else 0 if entry.label == BASE and entry.finished else None,
        peak_bytes=highest.peak_bytes if highest is not None else None,
        floor_bytes=highest.floor_bytes if highest is not None else None,
        memory_how=highest.how if highest is not None else "",
        tokens_per_s=median(one.tokens_per_s for one in speeds) if speeds else None,
        train_s=median(one.total_s for one in speeds) if speeds else None,
        steps=round(median(one.steps for one in speeds)) if speeds else None,
        tokens=round(median(one.tokens for one in speeds)) if speeds else None,
        prefill_s=single.prefill_s if single is not None else None,
        per_token_s=single.per_token_s if single is not None else None,
        answer_s=_answer_s(inference),
        timings=inference.timings if inference is not None else (),
        merged_timings=(inference.merged_timings or ()) if inference is not None else (),
        extra_weight_bytes=inference.extra_weight_bytes if inference is not None else None,
        extra_cache_bytes_per_row=inference.extra_cache_bytes_per_row if inference is not None else None,
        mergeable=inference.mergeable if inference is not None else None,
        learning_rate=entry.contender.learning_rate or (rates.rate if rates is not None else None) or rate,
        rates=rates,
        curve=_curve(RunFolder(entry.finished[0].folder).metrics()) if entry.finished else (),
    )


def _single(timings: Sequence[Timing]) -> Timing | None:
    """The one of a single row, if it was measured."""
    return next((one for one in timings if one.batch == 1), None)


def _answer_s(inference: Inference | None) -> float | None:
    """Seconds of an answer to one prompt, merged or not, whichever is less."""
    if inference is None:
        return None
    forms = (_single(inference.timings), _single(inference.merged_timings or ()))
    times = [one.prefill_s + WRITTEN * (one.per_token_s or 0.0) for one in forms if one is not None]
    return min(times, default=None)


def _curve(lines: Sequence[dict[str, Json]]) -> tuple[Point, ...]:
    """Training losses, as means over few stretches, and losses on held-out rows, by step.

    The scores of the end are of the test rows; they are no part of the curve of those that were followed.
    """
    steps = [line for line in lines if "loss" in line]
    elapsed = {line["step"]: float(line["elapsed_s"]) for line in steps}
    size = max(1, -(-len(steps) // POINTS))
    points = [_mean(steps[start : start + size]) for start in range(0, len(steps), size)]
    held = [line for line in lines if "loss" in line.get("validation", {})]
    for line in held:
        if _scores(line) == _scores(held[0]):
            loss = float(line["validation"]["loss"]["value"])
            step, seconds = line["step"], elapsed.get(line["step"], 0.0)
            points.append(Point(step=step, seconds=seconds, loss=loss, is_held_out=True))
    return tuple(sorted((one for one in points if isfinite(one.loss)), key=lambda one: (one.step, one.is_held_out)))


def _scores(line: dict[str, Json]) -> set[tuple[str, int]]:
    """Which scores, on how many rows."""
    return {(name, score["n"]) for name, score in line["validation"].items()}


def _mean(steps: Sequence[dict[str, Json]]) -> Point:
    """Some steps as one point."""
    weights = [max(1, int(line.get("learned_tokens", 1))) for line in steps]
    loss = sum(float(line["loss"]) * weight for line, weight in zip(steps, weights, strict=True)) / sum(weights)
    last = steps[-1]
    return Point(step=last["step"], seconds=float(last["elapsed_s"]), loss=loss, is_held_out=False)
