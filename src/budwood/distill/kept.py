"""What a teacher said or wrote, kept in ROOT/teachers/KEY for later runs and stages to find."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from budwood.data import Corpus, Example
from budwood.distill.cache import Cost, arithmetic_of, cache_teacher, cost
from budwood.distill.cached import CachedTeacher
from budwood.distill.coarse import coarsened
from budwood.distill.config import Distillation
from budwood.distill.content import Origin, hash_of_tokenizer
from budwood.distill.teacher import LiveTeacher
from budwood.distill.writing import Written, write_answers
from budwood.errors import BadConfig
from budwood.train.job import Job
from budwood.train.material import Material, digest_of
from budwood.train.recipe import Say

FOLDER = "teachers"
"""Beside the run folders."""
ROWS = 8
"""Rows that a teacher is asked about at once."""
WRITES = ("causal-lm", "seq2seq")
"""Tasks whose rows have answers."""


class Cache:
    """The k likeliest choices of a teacher for all rows of a job."""

    def __init__(self, teacher: LiveTeacher, config: Distillation, job: Job, material: Material) -> None:
        """Raises BadConfig where what it keeps could not be compared."""
        assert config.top_k is not None
        task = material.corpus.task
        if task in ("masked-lm", "question-answering"):
            what = "hides other words in each epoch" if task == "masked-lm" else "asks about places in a window"
            raise BadConfig(f"{task} {what}, so its teacher cannot be asked once; leave top_k out")
        self.k, self.pad_id = config.top_k, material.pad_id
        self.examples: list[Example] = [*material.train.examples, *material.valid]
        self.origin = Origin(tokenizer=hash_of_tokenizer(material.tokenizer), template=material.train.template)
        self._check(teacher, config, task, material)
        parts = (teacher.fingerprint(), self.origin, task, self.k, teacher.reader.columns, digest_of(self.examples))
        self.folder = place_of(job, *parts, arithmetic_of(teacher.model.device))

    @property
    def cost(self) -> Cost:
        """At most: rows that repeat are kept once."""
        return cost(self.k, sum(example.num_targets for example in self.examples), len(self.examples))

    def __str__(self) -> str:
        there = "is there, as far as it came" if self.folder.is_dir() else "is written before the first step"
        return f"teacher cache of the {self.k} likeliest choices, {self.cost}; it {there}: {self.folder}"

    def make(self, teacher: LiveTeacher, say: Say) -> CachedTeacher:
        """Ask about what is not there yet."""
        made: dict[str, Any] = {"origin": self.origin, "pad_id": self.pad_id, "k": self.k, "batch_size": ROWS}
        cache_teacher(teacher, self.examples, self.folder, say=say, **made)
        return CachedTeacher(self.folder, origin=self.origin)

    def _check(self, teacher: LiveTeacher, config: Distillation, task: str, material: Material) -> None:
        """Raises BadConfig for a temperature at which the choices that are not kept would matter."""
        columns = teacher.reader.columns
        if isinstance(columns, int):
            width = columns
        elif task in WRITES:
            width = teacher.model.get_output_embeddings().weight.shape[0]
        else:
            width = len(material.corpus.labels or ())
        ids = torch.arange(min(self.k, width))[None]
        temperature = config.compare(task)[1]
        coarsened(torch.zeros(1, width), ids, torch.zeros(ids.shape), temperature=temperature, tail=config.tail)  # type: ignore[arg-type]


def check_answers(corpus: Corpus, what: str) -> None:
    """Raise BadConfig for rows that ask nothing: `what` could not be answered."""
    if corpus.task not in WRITES or corpus.shape == "text":
        raise BadConfig(
            f"{what} needs rows with prompts and answers, and these ({corpus.shape}) are for {corpus.task}; "
            "leave it out"
        )


def write_rows(
    teacher: LiveTeacher, tokenizer: Any, job: Job, corpus: Corpus, config: Distillation, max_length: int, say: Say
) -> Written:
    """The corpus with the answers that the teacher writes for the rows that are trained on, or wrote before."""
    train = corpus.replace_splits({"train": corpus.rows("train")})
    parts = (teacher.fingerprint(), hash_of_tokenizer(tokenizer), job.template, config.max_new_tokens, max_length)
    folder = place_of(job, "answers", *parts, train.hash(), arithmetic_of(teacher.model.device))
    say(f"the teacher writes the answers of {len(corpus.rows('train')):,} rows, into {folder}")
    return write_answers(
        teacher, tokenizer, corpus, folder, max_new_tokens=config.max_new_tokens, max_source=max_length,
        template=job.template, batch_size=ROWS, say=say,
    )  # fmt: skip


def place_of(job: Job, *parts: object) -> Path:
    """The folder of what is made from these."""
    return job.root / FOLDER / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
