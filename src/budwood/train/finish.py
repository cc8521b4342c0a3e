"""After the last step: save the adapter, prove it, and measure what it achieved and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from budwood.core import adapters
from budwood.core import parameters as parameters_of
from budwood.data import Batch
from budwood.errors import CannotFold
from budwood.evaluate import cache_bytes, latency
from budwood.evaluate.task import EvaluationResult
from budwood.interop import save
from budwood.records import Inference, Parameters, Quality, RunFolder, Score, Speed, Timing, count
from budwood.train.card import write_card
from budwood.train.judging import Judge
from budwood.train.loop import Fitted
from budwood.train.material import Material, spread
from budwood.train.observer import Observer
from budwood.train.precision import arithmetic, store_compactly
from budwood.train.proof import Movement
from budwood.train.setup import Prepared
from budwood.train.stacking import load_on
from budwood.train.verify import MergeReport, Reload, verify_merge, verify_reload

if TYPE_CHECKING:
    from budwood.train.baseline import Baseline

CHECKED = 8
"""Held-out rows that saving and merging are checked on."""

OTHER_SEED = 1
"""Added to the run's seed for fresh bases, so that a new head which was not saved would show."""


@dataclass(frozen=True)
class Saved:
    """What is known of the adapter on disk."""

    reload: Reload
    merge: MergeReport | None
    """None where it cannot be merged."""
    inference: Inference
    stored_bytes: int


def save_and_prove(judge: Judge, folder: RunFolder, *, before: Baseline, observer: Observer) -> Saved:
    """Save, load into a fresh base, compare, merge a copy, compare, and time each.

    Raises VerificationFailed; the adapter and the state stay on disk for whoever wants to look.
    """
    prepared, material = _trained(judge), judge.material
    name = prepared.adapter.name
    cloze = None if material.corpus.cloze is None else material.corpus.cloze.to_dict()
    save(prepared.model, folder.adapter, name=name, on=judge.job.on, task=material.corpus.task, cloze=cloze)
    rows = _checked_rows(judge)
    fresh = fresh_base(prepared, material, judge.job.config.seed + OTHER_SEED)
    reload = verify_reload(
        prepared.model,
        fresh,
        folder.adapter,
        name=name,
        on=judge.job.on,
        batches=rows,
        compute=prepared.compute,
        allow_pickle=judge.job.allow_pickle,
    )
    observer.note(str(reload))
    batches = judge.job.config.batches_timed
    timings = time_answers(fresh, prepared.compute, judge.room, batches)
    with prepared.arithmetic():
        more_cache = cache_bytes(fresh) - before.cache_bytes
    added_bytes = sum(
        count(parameters_of(fresh, one))[1] for one in adapters(fresh)
    )  # without what only training needs
    merged, merged_timings = _merge(judge, fresh, folder.adapter, rows, observer)
    in_place = bool(prepared.adapter.unfrozen)
    inference = Inference(
        timings=timings,
        base_timings=before.timings,
        extra_weight_bytes=0 if in_place else added_bytes,
        extra_cache_bytes_per_row=max(0, more_cache),
        mergeable=merged is not None,
        merged_timings=merged_timings,
    )
    return Saved(reload, merged, inference, sum(f.stat().st_size for f in folder.adapter.iterdir()))


def fresh_base(prepared: Prepared, material: Material, seed: int) -> Any:
    """The base from where it came from, stored and placed as the trained one is."""
    compact = prepared.compute == torch.bfloat16 and material.source.given is None
    fresh = material.source.fresh(None if compact else torch.float32, seed=seed)
    if compact:
        store_compactly(fresh, trained=prepared.adapter.unfrozen)
    return fresh.to(prepared.device)


def time_answers(
    model: Any, compute: torch.dtype, room: int | None, batches: tuple[int, ...] = (1,)
) -> tuple[Timing, ...]:
    """Prefill and per-token latency, in the run's arithmetic.

    room     positions there are for text (`Judge.room`)
    batches  how many rows are answered at once, one timing for each
    """
    context = room or 128
    tokens, more = min(64, context // 2), min(8, context // 4)
    with arithmetic(next(model.parameters()).device, compute):
        return tuple(latency(model, batch=batch, prompt_tokens=tokens, new_tokens=more, repeats=3) for batch in batches)


def parameters(prepared: Prepared, stored_bytes: int) -> Parameters:
    """The first dimension."""
    trained = count(prepared.parameters.values())
    return Parameters(
        trained_count=trained[0],
        trained_bytes=trained[1],
        base_count=prepared.base_count,
        stored_bytes=stored_bytes,
    )


def quality(after: EvaluationResult | None, before: Sequence[Score]) -> tuple[Quality, ...]:
    """The fourth dimension: each score with the base's beside it."""
    if after is None:
        return ()
    base = {score.name: score for score in before}
    return tuple(Quality(score=score, base=base.get(score.name)) for score in after.scores)


def whole_speed(fitted: Fitted) -> Speed | None:
    """The speed of the steps taken here, with the totals of the whole run."""
    if fitted.speed is None:
        return None
    standing = fitted.standing
    return replace(
        fitted.speed,
        total_s=standing.seconds,
        steps=standing.step,
        tokens=standing.tokens,
        learned_tokens=standing.learned_tokens,
    )


def finish_card(judge: Judge, folder: RunFolder, saved: Saved, movement: Movement, scores: Sequence[Quality]) -> Path:
    """The README.md beside the adapter."""
    return write_card(
        folder.adapter,
        job=judge.job,
        material=judge.material,
        prepared=_trained(judge),
        scores=scores,
        rates=folder.manifest().rate_probe,
        proofs=(str(movement), str(saved.reload), str(saved.merge) if saved.merge else "cannot be merged"),
    )


def _trained(judge: Judge) -> Prepared:
    """What was trained; only a base that is examined alone has no adapter."""
    assert isinstance(judge.prepared, Prepared)
    return judge.prepared


def _checked_rows(judge: Judge) -> list[Batch]:
    """Some held-out rows, or training rows where none are held out."""
    examples = judge.material.valid or judge.material.train.examples
    return list(judge.batches(spread(examples, CHECKED), 4))


def _merge(
    judge: Judge, fresh: Any, adapter: Path, rows: Sequence[Batch], observer: Observer
) -> tuple[MergeReport | None, tuple[Timing, ...] | None]:
    """The merge of a float32 copy, checked; None where the method or the model does not allow one."""
    prepared = _trained(judge)
    name = prepared.adapter.name
    if prepared.compute == torch.bfloat16:
        del fresh
        fresh = judge.material.source.fresh(torch.float32, seed=judge.job.config.seed + OTHER_SEED).float()
        load_on(fresh.to(prepared.device), adapter, name=name, on=judge.job.on, allow_pickle=judge.job.allow_pickle)
    try:
        report = verify_merge(fresh, names=tuple(adapters(fresh)), batches=rows)
    except CannotFold as refusal:
        observer.note(f"cannot be merged: {refusal}")
        return None, None
    observer.note(str(report))
    if prepared.compute == torch.bfloat16:
        store_compactly(fresh)
    return report, time_answers(fresh, prepared.compute, judge.room, judge.job.config.batches_timed)
