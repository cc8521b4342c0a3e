"""The stages of one shrinking, made one after another; whatever was finished before a stop is not made again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from budwood.anatomy import discover
from budwood.data import Batch, collate, encode
from budwood.errors import BadConfig, BadData, VerificationFailed
from budwood.evaluate import LossReport
from budwood.prune.kept import Structure
from budwood.prune.structure import structure_of
from budwood.prune.vocabulary import trim
from budwood.records import Inference, MemoryMeter, Parameters, Quality, Result, RunFolder
from budwood.records.files import write_json
from budwood.shrink import samples
from budwood.shrink.choose import Calibration, Choice, choose
from budwood.shrink.config import Shrinking, is_nothing
from budwood.shrink.folder import Shelf, size_of
from budwood.shrink.look import Found, looked_at
from budwood.shrink.measure import Held
from budwood.shrink.recover import trained
from budwood.shrink.report import write_report
from budwood.shrink.sizes import Shape, Sizing, least
from budwood.shrink.stage import Stage
from budwood.train.config import Budget
from budwood.train.job import Job
from budwood.train.loop import Fitted, Saving
from budwood.train.material import Material, gather, spread
from budwood.train.observer import Observer
from budwood.train.precision import resolve_device
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
        model = material.source.fresh(None, seed=job.config.seed).float().to(resolve_device(job.config.device))
        return cls(job, settings, folder, observer, shelf, material, model)

    def run(self, began: float) -> None:
        """All stages that are still to be made, and what is left of them at the end."""
        self._original()
        self._tuned()
        self._vocabulary()
        self.whole, self.report = self.model, self._held().ask(self.model)
        last = [stage for stage in self.shelf.stages if stage.kind == "cut" and stage.accepted]
        if last:
            self.model = self._load(last[-1])
        self._check_target()
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
            self.model = self._load(done)

    def _vocabulary(self) -> None:
        """Tokens that the data never uses."""
        if "vocabulary" not in self.settings.cut:
            return
        done = self._done("vocabulary")
        if done is None:
            began = time.perf_counter()
            before = self.material
            trimmed = trim(self.model, before.tokenizer, _texts(before))
            self.model = trimmed.model
            place = self.shelf.save(trimmed.model, trimmed.tokenizer, self._place("vocabulary"), [])
            self.material = gather(replace(self.job, model=str(self.folder.path / place)))
            _check_same_tokens(before, self.material, trimmed.kept)
            self._add("vocabulary", str(trimmed), None, began=began, place=place)
        else:
            self.model = self._load(done)
            self.material = gather(replace(self.job, model=str(self.folder.path / (done.folder or ""))))

    def _cut(self) -> str | None:
        """One stage; why it is the last, if it is."""
        began = time.perf_counter()
        choice = self._choice()
        if choice is None:
            return f"nothing of {', '.join(self.settings.cut)} is left to cut"
        cut_s = time.perf_counter() - began
        model, fitted = choice.model, None
        if not is_nothing(self.settings.recover):
            model, fitted = self._train(model, self.settings.recover, teacher=self.whole)
        stage = self._look("cut", choice.what, model, fitted, cut_s)
        stage = replace(stage, cut_loss=choice.loss, candidates=choice.candidates)
        floor = self.settings.min_quality
        if floor is not None and stage.quality is not None and stage.quality.low < floor:
            self._undone(stage)
            return f"{stage.what} would leave {stage.quality.low:.3f} of the quality at least, less than {floor:g}"
        self.model = model
        self._keep(stage)
        return None

    def _choice(self) -> Choice | None:
        """What is cut next; what was chosen before a stop is not chosen again."""
        file = self.shelf.work / "cut.json"
        if file.is_file():
            said = json.loads(file.read_text(encoding="utf-8"))
            model = self.shelf.load("work/cut").to(self.model.device)
            return Choice(**{**said, "shape": Shape(**said["shape"]), "model": model})
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
            self.shelf.save(found.model, self.material.tokenizer, "work/cut", [])
            plain = {"what": found.what, "loss": found.loss, "candidates": found.candidates, "shape": vars(found.shape)}
            write_json(file, plain)
        return found

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

    def _check_target(self) -> None:
        """Raise BadConfig for a target that no cut of these dimensions comes to."""
        target = self.settings.target(self.original.parameters)
        anatomy = discover(self.model)
        structure = structure_of(self.model, anatomy)
        fewest, sizes = least(Sizing(self.model, structure, anatomy), self.settings.cut)
        if target < fewest:
            shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise BadConfig(
                f"{target:,} parameters are to stay, and cutting {', '.join(self.settings.cut)} comes to no fewer "
                f"than {fewest:,} ({shown}){_refused(structure)}; ask for more, or allow more to be cut (cut)"
            )

    def _train(self, model: PreTrainedModel, budget: str, teacher: Any = None) -> tuple[PreTrainedModel, Fitted]:
        saving = Saving(
            folder=self.shelf.work / "state",
            identity={**self.material.identity, "stage": str(len(self.shelf.stages))},
            resume_command=resume_command(self.folder),
        )
        return trained(
            model, self.job, self.material, budget=budget, saving=saving, teacher=teacher, observer=self.observer
        )

    def _held(self) -> Held:
        """The rows of the final scores, in the vocabulary of now. Raises BadData where none are held out."""
        material = self.material
        if material.held_split is None:
            raise BadData("no row is held out, so quality cannot be measured; give a test split")
        held = material.held(self.job.config.test_rows)
        examples = encode(
            held, material.held_split, material.tokenizer, template=self.job.template, max_length=material.max_length
        ).examples
        return Held(material.corpus.task, tuple(examples), material.pad_id, EVALUATED)

    def _done(self, kind: str) -> Stage | None:
        return next((stage for stage in self.shelf.stages if stage.kind == kind), None)

    def _load(self, stage: Stage) -> PreTrainedModel:
        assert stage.folder is not None
        return self.shelf.load(stage.folder).to(self.model.device)

    def _place(self, kind: str) -> str:
        return f"stages/{len(self.shelf.stages):02d}-{kind}"

    def _add(
        self, kind: str, what: str, fitted: Fitted | None, *, began: float | None = None, place: str | None = None
    ) -> None:
        cut_s = 0.0 if began is None else time.perf_counter() - began
        self._keep(self._look(kind, what, self.model, fitted, cut_s), place=place)

    def _look(self, kind: str, what: str, model: PreTrainedModel, fitted: Fitted | None, cut_s: float) -> Stage:
        stages = self.shelf.stages
        recover_s = 0.0 if fitted is None else fitted.standing.seconds
        found = Found(kind=kind, what=what, number=len(stages), cut_s=cut_s, recover_s=recover_s)
        return looked_at(model, found, self._held(), original=stages[0] if stages else None, whole=self.report)

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
        place = self.shelf.deliver(now.folder) if now.folder else None
        before = {score.name: score for score in first.scores}
        quality = [Quality(score=score, base=before.get(score.name)) for score in now.scores]
        stored = size_of(place) if place else None
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
                inference=Inference(timings=(now.timing,), base_timings=(first.timing,), extra_weight_bytes=0, mergeable=True),
            )
        )
        write_report(self.folder, stages)


def _texts(material: Material) -> list[str]:
    """Everything that the model reads of the data: rows as they are written, and as they are encoded."""
    rows = [row for split in material.corpus.splits.values() for row in split]
    written = [text for row in rows for text in (row.prompt, row.answer) if text]
    encoded = [example.ids for example in (*material.train.examples, *material.valid)]
    return [*written, *material.tokenizer.batch_decode(encoded)]


def _check_same_tokens(before: Material, after: Material, kept: Sequence[int]) -> None:
    """Raise VerificationFailed unless every row is encoded to the same tokens as with the whole vocabulary."""
    for old, new in zip(before.train.examples, after.train.examples, strict=True):
        if list(old.ids) != [kept[token] for token in new.ids]:
            raise VerificationFailed(
                f"row {old.row + 1} would be encoded otherwise in the smaller vocabulary; leave vocabulary out of cut, "
                "and please report this"
            )


def _refused(structure: Structure) -> str:
    return "".join(f"; {dimension} cannot be cut: {why}" for dimension, why in structure.refused.items())
