"""The recipe of a distillation: who teaches, matched with whom, asked when, and freed when no longer needed."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budwood.core import Plan, activate, delta_at
from budwood.core.registry import anatomy_of, registry_of
from budwood.core.rows import FrontDelta
from budwood.data import Batch, Corpus, Task
from budwood.distill.config import Distillation
from budwood.distill.finish import score_teacher
from budwood.distill.insides import LiveInsides
from budwood.distill.kept import Cache, check_answers, write_rows
from budwood.distill.matching import match
from budwood.distill.objective import Distill
from budwood.distill.opening import NAME, Named, check_task, identity_of, known_anatomy, load_named, named
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher, Said, SameModel, Teacher
from budwood.distill.translated import Translated, TwoTongues, beside
from budwood.distill.writing import answered
from budwood.errors import BadConfig
from budwood.evaluate import Sampling
from budwood.evaluate.generate import context_of, stop_tokens
from budwood.records import Json, Score, count
from budwood.train.job import Job
from budwood.train.material import Material, encode_rows, pad_id
from budwood.train.precision import arithmetic, resolve_device, resolve_precision, store_compactly
from budwood.train.recipe import Lesson, Say
from budwood.train.setup import Prepared
from budwood.train.stacking import contents, load_on, trains_in_place

SELF = "self"
"""What one writes for the student's own base as its teacher."""
IN_MEMORY = " in memory"
"""What a model that has no name is shown with."""
ITSELF = "teacher: the model itself, without the adapter"


@dataclass
class Taught:
    """A student's job while it is taught."""

    job: Job
    material: Material
    scores: tuple[Score, ...] = ()
    """The teacher's, on the rows that the student is scored on."""


@dataclass
class _Opened:
    """A teacher that is ready, until it is let go."""

    live: LiveTeacher | None
    tokenizer: Any
    """None is the student's."""
    identity: str
    """What tells it from others."""
    line: str
    """What a person is told of it."""

    @property
    def there(self) -> LiveTeacher:
        """The teacher, which has not been let go."""
        assert self.live is not None
        return self.live


@dataclass
class _Desk:
    """Whoever teaches now: the teacher itself, or what was kept of it."""

    now: Teacher | None

    def say(self, batch: Batch) -> Said:
        """What it says."""
        assert self.now is not None
        return self.now.say(batch)


@dataclass
class FromTeacher:
    """The recipe of a distillation: asks the teacher."""

    teacher: Any
    """A run, an adapter folder, a model's name, or a model in memory; None or "self" is the student's own base."""
    config: Distillation = field(default_factory=Distillation)
    tokenizer: Any = None
    """Of a teacher in memory, where it is not the student's."""
    taught: Taught | None = None
    """What it was called with, once it was."""
    _writer: _Opened | None = field(default=None, repr=False)
    """The teacher that wrote answers, to be asked again."""

    def to_dict(self) -> dict[str, Json]:
        """What config.yaml says of it."""
        return {"teacher": self.shown, **self.config.to_dict()}

    @property
    def shown(self) -> str:
        """Who people are told teaches."""
        if self.teacher is None:
            return SELF
        is_named = isinstance(self.teacher, str | Path)
        return str(self.teacher) if is_named else f"a {type(self.teacher).__name__}{IN_MEMORY}"

    def rewrite(self, job: Job, corpus: Corpus, max_length: int, say: Say | None) -> Corpus:
        """The rows with the answers that the teacher writes, where those are learned."""
        if self.config.answers == "data":
            return corpus
        check_answers(corpus, "answers: teacher")
        if say is None:
            most = f"at most {self.config.max_new_tokens} tokens each"
            rows = len(corpus.rows("train"))
            return corpus.replace_splits(
                corpus.splits, f"train: {rows} answers are to be written by the teacher, {most}"
            )
        device = resolve_device(job.config.device)
        compute = resolve_precision(job.config.precision, device)
        opened = self._load(job, corpus.task, corpus.labels, device, compute)
        tokenizer = opened.tokenizer or self.tokenizer or job.tokenizer
        with arithmetic(device, compute):
            written = write_rows(opened.there, tokenizer, job, corpus, self.config, max_length, say)
        self._writer = None if self._is_self(job) else opened
        return written.corpus

    def teach(self, job: Job, material: Material, prepared: Prepared) -> Lesson:
        """The loss against this teacher, of the job's task. Raises BadConfig where the two cannot be matched."""
        task, opened = material.corpus.task, self._open(job, material, prepared)
        labels, live = material.corpus.labels, opened.there
        self.taught, self._writer = Taught(job, material), None
        found = match(self.config, task, labels, prepared.model, material.tokenizer, live.model, opened.tokenizer)
        live.reader = Reader(task, columns=found.other)
        lines = [opened.line, *found.lines]
        desk = _Desk(live)
        if found.reads_apart:
            translated = _translated(job, material, live, opened.tokenizer)
            lines.append(str(translated.look()))
            desk.now = translated
        insides = _insides(found.config, material, prepared, live)
        with prepared.arithmetic():
            cache = Cache(live, found.config, job, material) if found.config.top_k else None
        lines += [str(cache)] if cache else []
        objective = Distill(
            task=task, config=found.config, teacher=desk, reader=Reader(task, columns=found.own), insides=insides,
            write=_writer(found.config, job, material, prepared),
        )  # fmt: skip
        is_kept = bool(found.config.kd_weight) or insides is not None

        def before(say: Say) -> None:
            with prepared.arithmetic():
                self._score(opened, prepared)
                if cache is not None:
                    desk.now = cache.make(opened.there, say)
            if cache is not None or not is_kept:
                desk.now = None if cache is None else desk.now
                _let_go(opened)

        beside_it: dict[str, nn.Parameter] = {} if insides is None else insides.parameters()
        return Lesson(
            objective=objective, beside=beside_it, lines=tuple(lines), identity={"teacher": opened.identity},
            before=before, is_long=cache is not None,
        )  # fmt: skip

    def _score(self, opened: _Opened, prepared: Prepared) -> None:
        taught = self.taught
        assert taught is not None
        tokenizer = opened.tokenizer or taught.material.tokenizer
        taught.scores = score_teacher(opened.there, tokenizer, taught.job, taught.material, prepared)

    def _open(self, job: Job, material: Material, prepared: Prepared) -> _Opened:
        """The teacher, on the student's own weights where they are its own."""
        task, labels = material.corpus.task, material.corpus.labels
        if self._is_self(job):
            return _Opened(SameModel(prepared.model, task), None, "the base itself", ITSELF)
        if isinstance(self.teacher, str | Path):
            who = named(self.teacher, root=job.root)
            if self._is_base(who, job, material):
                if who.adapter is None:
                    return _Opened(SameModel(prepared.model, task), None, "the base itself", ITSELF)
                check_task(who, task)
                teacher = SameModel(prepared.model, task, _lay_beside(prepared, who, job))
                identity = contents((*who.on, str(who.adapter)))
                return _Opened(teacher, None, identity, f"teacher: {who.shown}, on the same weights")
        return self._writer or self._load(job, task, labels, prepared.device, prepared.compute)

    def _load(
        self, job: Job, task: Task, labels: tuple[str, ...] | None, device: torch.device, compute: torch.dtype
    ) -> _Opened:
        """The teacher as a model of its own."""
        given = job.model if self._is_self(job) and isinstance(job.model, PreTrainedModel) else self.teacher
        if isinstance(given, PreTrainedModel):
            bare = given is job.model and registry_of(given) is not None
            live = SameModel(given, task) if bare else LiveTeacher(given, task)
            return _Opened(live, self.tokenizer, identity_of(given, None), f"teacher: {self.shown}")
        if not self._is_self(job) and not isinstance(given, str | Path):
            kind = type(given).__name__
            raise BadConfig(f"teacher is a {kind}; give a run, a folder, a name or a transformers model")
        who = Named(shown=SELF, base=job.model) if self._is_self(job) else named(given, root=job.root)
        model, tokenizer = load_named(
            who,
            task=task,
            labels=labels,
            offline=job.offline,
            trust_remote_code=job.trust_remote_code,
            allow_pickle=job.allow_pickle,
        )
        identity = identity_of(model, who)
        if compute == torch.bfloat16:
            store_compactly(model)
        line = f"teacher: {who.shown}, {count(model.parameters())[0]:,} parameters"
        return _Opened(LiveTeacher(model.to(device), task), tokenizer, identity, line)

    def _is_self(self, job: Job) -> bool:
        return (
            self.teacher is None
            or self.teacher is job.model
            or (isinstance(self.teacher, str) and self.teacher == SELF)
        )

    def _is_base(self, who: Named, job: Job, material: Material) -> bool:
        """Whether the student stands, frozen, on the very weights that the teacher has."""
        ref = material.source.ref
        if ref is None or trains_in_place(job.method) or who.is_in_place:
            return False
        if who.labels is not None and who.labels != material.corpus.labels:
            return False
        return who.find(offline=job.offline).path == ref.path


def _let_go(opened: _Opened) -> None:
    """Free the teacher's memory."""
    opened.live = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _insides(config: Distillation, material: Material, prepared: Prepared, live: LiveTeacher) -> LiveInsides | None:
    """What compares insides, if anything does."""
    if not config.compares_insides:
        return None
    if any(token < 0 for token in material.train.examples[0].ids):
        raise BadConfig(
            "pseudo tokens (<p>) stand in the student's text and not in the teacher's, so states have no pairs; leave "
            "hidden_weight, attention_weight and relation_weight at 0, or write a pattern without <p>"
        )
    deltas = (delta_at(prepared.model, site, prepared.adapter.name) for site in prepared.adapter.sites)
    if config.attention_weight and any(isinstance(delta, FrontDelta) for delta in deltas):
        raise BadConfig(
            "attention is not compared where prefixes stand in front of keys and values; leave attention_weight at 0: "
            "hidden_weight and relation_weight compare what is inside, too"
        )
    if live.model.device != prepared.device:
        raise BadConfig(f"the teacher is on {live.model.device} and the student on {prepared.device}; move the teacher")
    return LiveInsides(config, prepared.model, anatomy_of(prepared.model), live, known_anatomy(live.model))


def _writer(
    config: Distillation, job: Job, material: Material, prepared: Prepared
) -> Callable[[nn.Module, Batch], Batch] | None:
    """Lets the student answer, each time by other streams, drawn so that a resumed run draws the same."""
    if not config.on_policy:
        return None
    check_answers(material.corpus, "on_policy")
    stops = stop_tokens(prepared.model, material.tokenizer, job.template)

    def write(model: nn.Module, batch: Batch) -> Batch:
        sampling = Sampling(seed=int(torch.randint(2**31, ())))
        settings: dict[str, Any] = {"stops": stops, "pad_id": material.pad_id, "sampling": sampling}
        return answered(model, batch, max_new_tokens=config.max_new_tokens, **settings)

    return write


def _translated(job: Job, material: Material, live: LiveTeacher, tokenizer: Any) -> Translated:
    """The teacher reading its own tokens of the job's rows."""
    corpus = material.corpus
    if job.cloze is not None:
        is_masked = live.model.get_output_embeddings() is not None and tokenizer.mask_token_id is not None
        corpus = replace(corpus, cloze=job.cloze.for_model(is_masked=is_masked))
    limits = [limit for limit in (context_of(live.model), tokenizer.model_max_length) if limit]
    longest = max(material.max_length * 4, material.max_length)
    train, valid = encode_rows(job, corpus, tokenizer, max_length=min(longest, *limits))
    pad = pad_id(tokenizer)
    rows = beside(material.train.examples, train.examples, material.pad_id)
    rows |= beside(material.valid, valid, material.pad_id)
    tongues = TwoTongues(task=corpus.task, student=material.tokenizer, teacher=tokenizer)
    return Translated(live=live, tongues=tongues, pad_id=pad, rows=rows)


def _lay_beside(prepared: Prepared, who: Named, job: Job) -> Plan:
    """Put the teacher's adapter, frozen, on the student's own base; the plan that it acts by."""
    registry = registry_of(prepared.model)
    assert registry is not None and who.adapter is not None
    plan = registry.switch.plan
    said = load_on(prepared.model, who.adapter, name=NAME, on=who.on, allow_pickle=job.allow_pickle)
    activate(prepared.model, plan, trainable=prepared.adapter.name)
    return said
