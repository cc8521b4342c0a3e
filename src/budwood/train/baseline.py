"""How the untuned base does on a job's held-out rows: examined in every run, or once for the runs of a comparison."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from budwood.anatomy import discover
from budwood.core.fingerprint import fingerprint
from budwood.data import Row
from budwood.evaluate import cache_bytes
from budwood.records import (
    BASE,
    Inference,
    Json,
    Manifest,
    Parameters,
    Quality,
    Result,
    RunFolder,
    Score,
    Timing,
    count,
)
from budwood.train.finish import time_answers
from budwood.train.job import Job
from budwood.train.judging import Judge
from budwood.train.material import gather
from budwood.train.observer import Observer
from budwood.train.precision import resolve_device, resolve_precision, store_compactly
from budwood.train.setup import Bare
from budwood.train.start import data_record, facts_of, machine_of
from budwood.train.status import told_status

HEADED = ("classification", "token-classification", "question-answering")
"""Tasks whose head may be new, and then depends on the seed."""


@dataclass(frozen=True)
class Baseline:
    """What the base scores and says, and how fast."""

    scores: tuple[Score, ...]
    timings: tuple[Timing, ...]
    cache_bytes: int
    """Of the keys and values of one prompt."""
    asked: Sequence[Row]
    """The held-out rows that are answered for people."""
    answers: Sequence[str]


def examine(judge: Judge) -> Baseline:
    """The base as a run finds it, or as the comparison that the run is part of has found it; the same either way."""
    known = judge.job.baseline
    if known is not None and (known / "result.json").is_file():
        found = _known(judge, RunFolder(known))
        if found is not None:
            return found
    with judge.base():
        return _examined(judge)[0]


def examine_base(job: Job, out: Path, observer: Observer) -> RunFolder:
    """The base on its own, as a run folder that `examine` reads.

    Raises what reading the data and loading the model raise, BadConfig where `out` cannot be written.
    """
    material = gather(job)
    device = resolve_device(job.config.device)
    compute = resolve_precision(job.config.precision, device)
    compact = compute == torch.bfloat16 and material.source.given is None
    model = material.source.load(None if compact else torch.float32, seed=job.config.seed)
    anatomy = discover(model)
    if compact:
        store_compactly(model, trained=())
    judge = Judge(job, material, Bare(model=model.to(device), device=device, compute=compute))
    manifest = Manifest(
        command=job.command, model=job.model_name, method={BASE: {}}, data=job.data_name, seed=job.config.seed,
        task=material.corpus.task, base=fingerprint(model, anatomy),
    )  # fmt: skip
    data = {
        **data_record(job, material, facts_of(material)),
        "identity": identity(judge),
        "base": {
            "precision": "bf16" if compute == torch.bfloat16 else "exact",
            "max_length": material.max_length,
            "steps_per_epoch": math.ceil(len(material.train.examples) / job.config.batch),
            "held_split": material.held_split,
        },
    }
    folder = RunFolder.create(
        out.parent, manifest, config=job.to_dict(), data=data, environment=machine_of(device), out=out, force=True
    )
    with told_status(folder, is_claimed=True):
        observer.note("scoring the untuned base")
        found, predictions = _examined(judge)
        for prediction in predictions:
            folder.add_prediction(prediction)
        for row, answer in zip(found.asked, found.answers, strict=True):
            folder.add_sample(
                {"step": 0, "prompt": judge.asked(row), "base": answer, "now": answer, "reference": judge.right(row)}
            )
        total = count(model.parameters())[0]
        folder.write_result(
            Result(
                parameters=Parameters(trained_count=0, trained_bytes=0, base_count=total, stored_bytes=0),
                quality=tuple(Quality(score=score) for score in found.scores),
                inference=Inference(
                    timings=found.timings, extra_weight_bytes=0, extra_cache_bytes_per_row=0, mergeable=True
                ),
            )
        )
        folder.add_metrics({"step": 0, "cache_bytes": found.cache_bytes})
    return folder


def identity(judge: Judge) -> str:
    """16 hex digits of everything that a base's scores and times depend on."""
    job, material = judge.job, judge.material
    parts = [
        job.model_name, material.corpus.hash(), material.corpus.task, material.max_length, job.template,
        job.config.test_rows, str(judge.prepared.compute), str(judge.prepared.device), job.config.timed_batches,
        job.config.samples,
        job.config.seed if material.corpus.task in HEADED else None, job.pattern, job.verbalizer,
    ]  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _examined(judge: Judge) -> tuple[Baseline, list[dict[str, Json]]]:
    """(scores, latency and answers of the base, the lines of its predictions)."""
    asked, found = judge.samples(), judge.examine()
    model, compute = judge.prepared.model, judge.prepared.compute
    with judge.prepared.arithmetic():
        held_bytes = cache_bytes(model)
    baseline = Baseline(
        scores=() if found is None else found.scores,
        timings=time_answers(model, compute, judge.room, judge.job.config.batches_timed),
        cache_bytes=held_bytes,
        asked=asked,
        answers=judge.answers(asked),
    )
    return baseline, [] if found is None else [one.to_dict() for one in found.predictions]


def _known(judge: Judge, folder: RunFolder) -> Baseline | None:
    """What another process found; None where that was for something else."""
    data, result = folder.data(), folder.result()
    if data.get("identity") != identity(judge) or result is None or result.inference is None:
        return None
    asked = judge.samples()
    answers = {line["prompt"]: str(line["base"]) for line in folder.samples()}
    if any(judge.asked(row) not in answers for row in asked):
        return None
    kept = next((int(line["cache_bytes"]) for line in folder.metrics() if "cache_bytes" in line), 0)
    return Baseline(
        scores=tuple(one.score for one in result.quality),
        timings=result.inference.timings,
        cache_bytes=kept,
        asked=asked,
        answers=[answers[judge.asked(row)] for row in asked],
    )
