"""Everything before the first step: material, model, adapter, forecast."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import psutil
import torch
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, discover
from budwood.core import Method
from budwood.core.fingerprint import fingerprint
from budwood.data import Masking
from budwood.errors import BadConfig
from budwood.fast.gemm import route
from budwood.methods import method_to_dict
from budwood.records import Accelerator, Json, Machine, Manifest, Memory, MemoryMeter, cuda_memory, machine
from budwood.train.checkpoint import Standing
from budwood.train.config import TrainConfig
from budwood.train.engage import engaged
from budwood.train.feed import Feed
from budwood.train.heads import new_modules, refuse_untrained, train_new_modules
from budwood.train.job import Job
from budwood.train.material import Material, gather
from budwood.train.objective import OBJECTIVES, Objective
from budwood.train.precision import resolve_device, resolve_precision, store_compactly
from budwood.train.preflight import DataFacts, Preflight, data_facts, preflight
from budwood.train.probe import probe
from budwood.train.randomness import seed_everything
from budwood.train.recipe import Lesson, Say
from budwood.train.setup import Prepared, prepare
from budwood.train.stacking import contents


@dataclass(frozen=True)
class Started:
    """A job that is ready for its first step."""

    job: Job
    material: Material
    prepared: Prepared
    anatomy: Anatomy
    lesson: Lesson
    feed: Feed
    facts: Preflight
    meter: MemoryMeter
    """Made before the model came."""
    high_water_bytes: int
    """The most it held until the forecast was made."""

    @property
    def beginning(self) -> Standing:
        """Where a new run stands: the forecast may ask for more pieces than the config."""
        return Standing(pieces=self.facts.forecast.pieces)

    @property
    def objective(self) -> Objective:
        """What its steps minimise."""
        return self.lesson.objective

    @property
    def identity(self) -> dict[str, str]:
        """What a resumed run must find unchanged."""
        below = {"adapters below": contents(self.job.on)} if self.job.on else {}
        return {**self.material.identity, **below, **self.lesson.identity}

    def memory(self) -> Memory:
        """The most the run held, loading included; verification, which comes after, not."""
        predicted = self.facts.predicted_bytes
        device = self.prepared.device
        if device.type == "cuda":
            allocated, reserved = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
            return replace(cuda_memory(allocated, reserved), predicted_bytes=predicted)
        found = self.meter.read()
        high = max(self.high_water_bytes, found.high_water_bytes or 0)
        return replace(
            found, peak_bytes=high - self.meter.floor_bytes, high_water_bytes=high, predicted_bytes=predicted
        )

    def machine(self) -> Machine:
        """On what it runs."""
        return machine_of(self.prepared.device)

    def data_record(self) -> dict[str, Json]:
        """The content of data.json."""
        return data_record(self.job, self.material, self.facts.data)


def machine_of(device: torch.device) -> Machine:
    """This machine, computing on a device."""
    found: tuple[Accelerator, ...] = ()
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found = (
            Accelerator(
                name=facts.name,
                memory_bytes=facts.total_memory,
                capability=f"{facts.major}.{facts.minor}",
                driver=torch.version.cuda,
            ),
        )
    gemm = route().name if device.type == "cpu" else None
    return machine(device=str(device), threads=torch.get_num_threads(), accelerators=found, gemm=gemm)


def data_record(job: Job, material: Material, facts: DataFacts) -> dict[str, Json]:
    """The content of data.json."""
    corpus = material.corpus
    return {
        "data": job.data_name,
        "hash": corpus.hash(),
        "splits": {name: len(rows) for name, rows in corpus.splits.items()},
        "labels": list(corpus.labels) if corpus.labels else None,
        "notes": list(corpus.notes),
        "template": material.train.template,
        "train": asdict(material.train.report),
        "facts": asdict(facts),
    }


def facts_of(material: Material) -> DataFacts:
    """What is learned from. Raises BadData where most rows have nothing to learn."""
    held = len(material.corpus.rows(material.held_split)) if material.held_split else 0
    return data_facts(material.corpus, material.train, held, material.tokenizer)


def start(job: Job, *, say: Say | None = None) -> Started:
    """Read, load, attach, forecast. Raises what those raise; nothing is written to a run folder.

    say: called with a line for people where a recipe works on the rows; None leaves them as they are
    """
    meter = MemoryMeter()
    material = gather(job, say=say)
    data = facts_of(material)
    device = resolve_device(job.config.device)
    compute = resolve_precision(job.config.precision, device)
    compact = compute == torch.bfloat16 and material.source.given is None
    seed_everything(job.config.seed)
    model = material.source.load(None if compact else torch.float32, seed=job.config.seed)
    anatomy = discover(model)
    job = with_new_modules(job, material, model, anatomy)
    if compact:
        store_compactly(model, trained=job.method.unfreeze(model, anatomy))
    feed = feed_of(material, job.config)
    sample = feed.batch(feed.longest(1))
    prepared = prepare(
        model,
        job.method,
        job.config,
        name=job.name,
        on=job.on,
        allow_pickle=job.allow_pickle,
        sample=sample,
        anatomy=anatomy,
        tokenizer=material.tokenizer,
        labels=material.corpus.labels or (),
    )
    job = replace(job, method=prepared.adapter.method)
    if prepared.accelerator.num_processes > 1:
        raise BadConfig(
            f"{prepared.accelerator.num_processes} processes were started, and a run folder has one writer; "
            "run one process, or call budwood.train.setup.prepare and budwood.train.loop.fit in your own script"
        )
    lesson = _lesson(job, material, prepared)
    prepared = prepared.with_beside(lesson.beside)
    if job.recipe is None:
        prepared = replace(prepared, fast=engaged(prepared, lesson.objective, feed, job.config))
    loaded = meter.read()
    held_bytes = psutil.Process().memory_info().rss - meter.floor_bytes
    if device.type == "cuda":
        held_bytes = torch.cuda.memory_allocated(device)
    forecast = probe(prepared, lesson.objective, feed, job.config)
    probed = meter.read()
    facts = preflight(data, prepared, feed, job.config, forecast, held_bytes=held_bytes, on=job.on)
    facts = replace(facts, lesson=lesson.lines)
    high = max(loaded.high_water_bytes or 0, probed.high_water_bytes or 0)
    return Started(job, material, prepared, anatomy, lesson, feed, facts, meter, high)


def with_new_modules(job: Job, material: Material, model: PreTrainedModel, anatomy: Anatomy) -> Job:
    """The job, training beside its method what the checkpoint does not have: a classifier's new head.

    Raises BadConfig where the head of a language model is new and would stay so.
    """
    new = new_in(material, model, seed=job.config.seed)
    if material.corpus.task in ("masked-lm", "cloze"):
        refuse_untrained(job.method, model, anatomy, new)
        return job
    return replace(job, method=train_new_modules(job.method, model, anatomy, new)) if new else job


def new_in(material: Material, model: PreTrainedModel, *, seed: int) -> tuple[str, ...]:
    """Paths of the modules of a model loaded from this seed that its checkpoint does not have."""
    if material.corpus.task in ("causal-lm", "seq2seq") or material.source.ref is None:
        return ()
    return new_modules(model, material.source.fresh(model.dtype, seed=seed + 1))


def feed_of(material: Material, config: TrainConfig) -> Feed:
    """The training rows of a job in the order of its steps."""
    return Feed.of(
        material.train.examples,
        batch=config.batch,
        pad_id=material.pad_id,
        seed=config.seed,
        group_by_length=config.group_by_length,
        where=lambda row: material.corpus.where("train", row),
        masking=Masking.of(material.tokenizer) if material.corpus.task == "masked-lm" else None,
    )


def _lesson(job: Job, material: Material, prepared: Prepared) -> Lesson:
    """The task's own loss, or what the job's recipe makes of it."""
    if job.recipe is None:
        return Lesson(objective=OBJECTIVES[material.corpus.task]())
    return job.recipe.teach(job, material, prepared)


def manifest_of(started: Started) -> Manifest:
    """What run.json says."""
    job = started.job
    method: Method = job.method
    return Manifest(
        command=job.command,
        model=job.model_name,
        method=method_to_dict(method),
        on=job.on,
        data=job.data_name,
        seed=job.config.seed,
        task=started.material.corpus.task,
        base=fingerprint(started.prepared.model, started.anatomy),
    )
