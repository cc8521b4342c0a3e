"""The stages of one shrinking, made one after another; whatever was finished before a stop is not made again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.data import Batch, collate, encode
from budwood.evaluate import LossReport
from budwood.prune.vocabulary import trim
from budwood.records import Inference, MemoryMeter, Parameters, Quality, Result, RunFolder
from budwood.records.files import read_json, write_json
from budwood.shrink import samples
from budwood.shrink.choose import Calibration, Choice, choose
from budwood.shrink.config import Shrinking, is_nothing
from budwood.shrink.fewer import check_same_tokens, examples_of, texts_of
from budwood.shrink.folder import Shelf, size_of
from budwood.shrink.look import Found, looked_at
from budwood.shrink.measure import Held
from budwood.shrink.recover import trained
from budwood.shrink.report import write_report
from budwood.shrink.sizes import Shape
from budwood.shrink.stage import BEGINNINGS, Stage
from budwood.train.config import Budget
from budwood.train.job import Job
from budwood.train.loop import Fitted, Saving
from budwood.train.material import Material, gather, spread
from budwood.train.observer import Observer
from budwood.train.precision import resolve_device
from budwood.train.start import with_new_modules
from budwood.train.status import resume_command

CHECKED = 8
"""Held-out rows that a written stage is compared on."""
EVALUATED = 8
"""Rows at a time when nothing is trained."""


@dataclass
class Shrinker:
    """One shrinking, on its way."""

    job: Job
    settings: Shrinking
    folder: RunFolder
    observer: Observer
    shelf: Shelf
    material: Material
    """Rows in the vocabulary of now."""
    model: PreTrainedModel
    """The last model that was accepted."""
    whole: PreTrainedModel | None = None
    """The unshrunk model, that teaches."""
    report: LossReport | None = None
    """What the unshrunk model makes of the held-out rows."""
    meter: MemoryMeter = field(default_factory=MemoryMeter)

    @classmethod
    def start(cls, job: Job, settings: Shrinking, folder: RunFolder, observer: Observer) -> Shrinker:
        """From what there is on disk: the model as given, or the last stage."""
        material = gather(job)
        shelf = Shelf(folder, material.corpus.task, material.corpus.labels)
        model = material.source.fresh(torch.float32, seed=job.config.seed)
        job = with_new_modules(job, material, model, discover(model))
        return cls(job, settings, folder, observer, shelf, material, model.to(resolve_device(job.config.device)))

    def run(self) -> None:
        """All stages that are still to be made, and what is left of them at the end."""
        began = time.monotonic() - sum(stage.cut_s + stage.recover_s for stage in self.shelf.stages)
        self._original()
        self._tuned()
        self._vocabulary()
        self.whole, self.report = self.model, self._held().ask(self.model)
        last = [stage for stage in self.shelf.stages if stage.kind == "cut" and stage.accepted]
        if last:
            self.model = self._load(last[-1].folder)
        why = None
        while why is None:
            why = self._why_stop(time.monotonic() - began) or self._cut()
        self.observer.note(f"ended: {why}")
        self._finish()

    @property
    def original(self) -> Stage:
        """The model as it was given."""
        return self.shelf.stages[0]

    @property
    def standing(self) -> Stage:
        """The last stage that was accepted."""
        return [stage for stage in self.shelf.stages if stage.accepted][-1]

    def _original(self) -> None:
        if not self.shelf.stages:
            self._add("original", "as it was given", None)

    def _tuned(self) -> None:
        """Fine-tuning on the data, so that there is something to keep."""
        if is_nothing(self.settings.tune):
            return
        done = self._done("tuned")
        if done is None:
            model, fitted = self._train(self.model, self.settings.tune)
            self.model = model
            self._add("tuned", f"fine-tuned for {fitted.standing.step} steps", fitted)
        else:
            self.model = self._load(done.folder)

    def _vocabulary(self) -> None:
        """Tokens that the data never uses."""
        if "vocabulary" not in self.settings.cut:
            return
        done = self._done("vocabulary")
        if done is None:
            began = time.perf_counter()
            before, whole, template = self.material, self.model, self.job.template
            trimmed = trim(whole, before.tokenizer, texts_of(before, template))
            self.model = trimmed.model
            place = self.shelf.save(trimmed.model, trimmed.tokenizer, self._place("vocabulary"), [])
            self.material = gather(replace(self.job, model=str(self.shelf.root / place)))
            check_same_tokens(examples_of(before, template), examples_of(self.material, template), trimmed.kept)
            self.observer.note(str(trimmed))
            what = f"vocabulary {trimmed.rows[0]:,} -> {trimmed.rows[1]:,}"
            self._add("vocabulary", what, None, began=began, place=place, beside=whole)
        else:
            self.model = self._load(done.folder)
            self.material = gather(replace(self.job, model=str(self.shelf.root / (done.folder or ""))))

    def _cut(self) -> str | None:
        """One stage; why it is the last, if it is."""
        choice, cut_s = self._choice()
        if choice is None:
            return f"nothing of {', '.join(self.settings.cut)} is left to cut"
        model, fitted = choice.model, None
        if not is_nothing(self.settings.recover):
            model, fitted = self._train(model, self.settings.recover, teacher=self.whole)
        stage = self._look("cut", choice.what, model, fitted, cut_s, beside=self.whole)
        stage = replace(stage, cut_loss=choice.loss, candidates=choice.candidates)
        floor = self.settings.min_quality
        if floor is not None and stage.quality is not None and stage.quality.low < floor:
            self._undone(stage)
            return f"{stage.what} would leave {stage.quality.low:.3f} of the quality at least, less than {floor:g}"
        self.model = model
        self._keep(stage)
        return None

    def _choice(self) -> tuple[Choice | None, float]:
        """(what is cut next, the seconds that it took to find); what was chosen before a stop is not chosen again."""
        began, place = time.perf_counter(), self.shelf.work
        file = self.shelf.root / place / "cut.json"
        if file.is_file():
            said = read_json(file)
            seconds, shape = said.pop("seconds"), Shape(**said.pop("shape"))
            return Choice(**said, shape=shape, model=self._load(f"{place}/cut")), seconds
        valid = self.material.valid
        calibration = Calibration.of(
            spread(self.material.train.examples, self.settings.rows), valid, self.material.pad_id, batch=EVALUATED
        )
        target = self._next_target()
        self.observer.note(f"cutting {self.standing.parameters:,} parameters to {target:,}")
        found = choose(
            self.model, target, calibration, self.settings, seed=self.job.config.seed, say=self.observer.note
        )
        if found is not None and not is_nothing(self.settings.recover):
            self.shelf.save(found.model, self.material.tokenizer, f"{place}/cut", self._checked())
            plain = {"what": found.what, "loss": found.loss, "candidates": found.candidates, "shape": vars(found.shape)}
            write_json(file, {**plain, "seconds": time.perf_counter() - began})
        return found, time.perf_counter() - began

    def _next_target(self) -> int:
        step = int(self.settings.step * self.original.parameters)
        return max(self.settings.target(self.original.parameters), self.standing.parameters - step, 1)

    def _why_stop(self, seconds: float) -> str | None:
        """Why no further stage is begun, if none is."""
        now, settings = self.standing, self.settings
        target = settings.target(self.original.parameters)
        if target and now.parameters <= target:
            return f"{now.parameters:,} parameters are left, as asked"
        if settings.latency is not None and 1 / now.speedup <= settings.latency:
            return f"it answers in {1 / now.speedup:.2f} of the time, as asked"
        if settings.budget is not None and seconds > Budget.parse(settings.budget).amount:
            return f"{settings.budget} are over"
        if any(not stage.accepted for stage in self.shelf.stages):
            return "the last stage did not hold"
        return None

    def _train(self, model: PreTrainedModel, budget: str, teacher: Any = None) -> tuple[PreTrainedModel, Fitted]:
        number = len(self.shelf.stages)
        saving = Saving(
            folder=self.shelf.root / self.shelf.work / "state",
            identity={**self.material.identity, "stage": str(number)},
            resume_command=resume_command(self.folder),
        )
        config = replace(self.job.config, seed=self.job.config.seed + number)  # each stage sees other rows
        job = replace(self.job, config=config)
        return trained(model, job, self.material, budget=budget, saving=saving, teacher=teacher, observer=self.observer)

    def _held(self) -> Held:
        """The rows of the final scores, in the vocabulary of now."""
        material = self.material
        assert material.held_split is not None  # `check` has looked
        held = material.held(self.job.config.test_rows)
        examples = encode(
            held, material.held_split, material.tokenizer, template=self.job.template, max_length=material.max_length
        ).examples
        return Held(material.corpus.task, tuple(examples), material.pad_id, EVALUATED)

    @property
    def _last_beginning(self) -> str:
        """The kind of the stage that is the unshrunk model."""
        if "vocabulary" in self.settings.cut:
            return "vocabulary"
        return "original" if is_nothing(self.settings.tune) else "tuned"

    @staticmethod
    def _beginning(stages: Sequence[Stage]) -> Stage:
        """The last stage before anything but tokens was cut."""
        return [stage for stage in stages if stage.kind in BEGINNINGS][-1]

    def _done(self, kind: str) -> Stage | None:
        return next((stage for stage in self.shelf.stages if stage.kind == kind), None)

    def _load(self, place: str | None) -> PreTrainedModel:
        assert place is not None
        return self.shelf.load(place).to(self.model.device)

    def _place(self, kind: str) -> str:
        return f"stages/{len(self.shelf.stages):02d}-{kind}"

    def _add(
        self,
        kind: str,
        what: str,
        fitted: Fitted | None,
        *,
        began: float | None = None,
        place: str | None = None,
        beside: PreTrainedModel | None = None,
    ) -> None:
        cut_s = 0.0 if began is None else time.perf_counter() - began
        self._keep(self._look(kind, what, self.model, fitted, cut_s, beside=beside), place=place)

    def _look(
        self,
        kind: str,
        what: str,
        model: PreTrainedModel,
        fitted: Fitted | None,
        cut_s: float,
        *,
        beside: PreTrainedModel | None,
    ) -> Stage:
        """The stage; beside: the model of an earlier stage that its speed is compared with."""
        stages = self.shelf.stages
        recover_s = 0.0 if fitted is None else fitted.standing.seconds
        found = Found(kind=kind, what=what, number=len(stages), cut_s=cut_s, recover_s=recover_s)
        reference = None if beside is None else (beside, self._beginning(stages).speedup)
        return looked_at(
            model, found, self._held(), original=stages[0] if stages else None, whole=self.report,
            is_whole=kind == self._last_beginning, beside=reference,
        )  # fmt: skip

    def _keep(self, stage: Stage, *, place: str | None = None) -> None:
        """Write an accepted stage down, with its model and what that says."""
        if stage.kind != "original":
            place = place or self.shelf.save(
                self.model, self.material.tokenizer, self._place(stage.kind), self._checked()
            )
        self._tell(stage)
        self._say_samples(stage.number)
        self.shelf.add(replace(stage, folder=place))

    def _undone(self, stage: Stage) -> None:
        self._tell(stage)
        self.shelf.add(replace(stage, accepted=False))

    def _tell(self, stage: Stage) -> None:
        held = f", {stage.quality}" if stage.quality else ""
        self.observer.note(
            f"stage {stage.number}, {stage.what}: {stage.parameters:,} parameters ({stage.share:.0%}), "
            f"{stage.scores[0]}{held}, answers {stage.speedup:.2f} times as fast"
        )

    def _say_samples(self, number: int) -> None:
        rows = samples.asked(self.material, self.job.config.samples)
        earlier = {line["prompt"]: line["now"] for line in self.folder.samples() if line["step"] == 0}
        for row, now in zip(rows, samples.answers(self.model, self.material, rows, self.job.template), strict=True):
            sample = {"prompt": row.prompt, "base": earlier.get(row.prompt, now), "now": now}
            self.folder.add_sample({"step": number, **sample, "reference": samples.right(row, self.material)})

    def _checked(self) -> list[Batch]:
        examples = spread(self.material.valid or self.material.train.examples, CHECKED)
        return [collate(examples, self.material.pad_id)]

    def _finish(self) -> None:
        """RUN/model, result.json and the report."""
        stages, now, first = self.shelf.stages, self.standing, self.original
        if now.folder is None:  # nothing held, and nothing was tuned: the model is what it was
            self.shelf.save(self.model, self.material.tokenizer, "model", self._checked())
        else:
            self.shelf.deliver(now.folder)
        before = {score.name: score for score in first.scores}
        quality = [Quality(score=score, base=before.get(score.name)) for score in now.scores]
        stored = size_of(self.shelf.root / "model")
        self.folder.write_result(
            Result(
                parameters=Parameters(
                    trained_count=now.parameters,
                    trained_bytes=4 * now.parameters,
                    base_count=first.parameters,
                    stored_bytes=stored,
                ),
                memory=self.meter.read(),
                quality=(*quality, *([Quality(score=now.quality, base=None)] if now.quality else [])),
                inference=Inference(
                    timings=(now.timing,), base_timings=(first.timing,), extra_weight_bytes=0, mergeable=True
                ),
            )
        )
        write_report(self.folder, stages)
