"""After a distillation: how good the teacher is on the same rows, and the student as an ordinary model folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from budwood.assets import load_model, resolve_model
from budwood.data import collate
from budwood.distill.teacher import LiveTeacher
from budwood.evaluate import Options, evaluate
from budwood.records import RunFolder, Score
from budwood.records.files import read_json, write_json
from budwood.train.job import Job
from budwood.train.material import Material, spread
from budwood.train.merged import write_merged
from budwood.train.setup import Prepared
from budwood.train.stacking import load_on, trains_in_place

ROWS = 8
"""Held-out rows that the written model is checked on."""


def score_teacher(
    teacher: LiveTeacher, tokenizer: Any, job: Job, material: Material, prepared: Prepared
) -> tuple[Score, ...]:
    """The teacher's scores on the rows that the student is scored on; nothing where no row is held out."""
    if material.held_split is None:
        return ()
    held = material.held(job.config.test_rows)
    options = Options(batch=job.config.batch, max_length=material.max_length, template=job.template)
    with prepared.arithmetic(), teacher.speaking():
        return tuple(evaluate(teacher.model, tokenizer, held, material.held_split, options=options).scores)


def write_scores(folder: RunFolder, shown: str, scores: tuple[Score, ...]) -> None:
    """RUN/teacher.json: who taught, and how good it is."""
    write_json(folder.path / "teacher.json", {"teacher": shown, "scores": [asdict(score) for score in scores]})


def teacher_scores(folder: RunFolder) -> dict[str, Score]:
    """The teacher's scores by name; none of a run without a teacher."""
    path = folder.path / "teacher.json"
    if not path.is_file():
        return {}
    return {score["name"]: Score(**score) for score in read_json(path)["scores"]}


def write_model(folder: RunFolder, job: Job, material: Material) -> Path | None:
    """RUN/model, float32, read again and compared: an ordinary model folder. None where the student is an adapter."""
    if not trains_in_place(job.method) or material.source.ref is None:
        return None
    model = material.source.fresh(torch.float32, seed=job.config.seed)
    load_on(model, folder.adapter, name=job.name)
    examples = spread(material.valid or material.train.examples, ROWS)
    draft, final = folder.path / "model.draft", folder.path / "model"
    write_merged(
        model,
        material.tokenizer,
        draft,
        batches=[collate(examples, material.pad_id)],
        stored=torch.float32,
        again=lambda place: load_model(
            resolve_model(place), task=material.corpus.task, labels=material.corpus.labels, dtype=torch.float32
        ),
    )
    draft.replace(final)
    return final
