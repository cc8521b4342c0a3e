"""`train`: the whole job, from names to a proved adapter in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from budwood.assets import load_model, load_tokenizer, resolve_model
from budwood.core import Method
from budwood.data import Template
from budwood.data.corpus import Task
from budwood.data.pattern import Verbalizer
from budwood.errors import BadCheckpoint, BadConfig, Diverged, WrongOrder
from budwood.methods import method_from_dict
from budwood.records import Json, Manifest, Quality, Result, RunFolder, Score
from budwood.records.words import cell
from budwood.train.baseline import Baseline, examine
from budwood.train.checkpoint import Standing, has_begun, has_state, load_state, save_state
from budwood.train.config import TrainConfig
from budwood.train.finish import finish_card, parameters, quality, save_and_prove, whole_speed
from budwood.train.job import Job, as_config
from budwood.train.judging import Judge
from budwood.train.loop import Fitted, Saving, fit
from budwood.train.observer import Observer, Silent
from budwood.train.preflight import Preflight
from budwood.train.proof import Ledger
from budwood.train.rates import try_rates
from budwood.train.recipe import Recipe
from budwood.train.recorder import Recorder
from budwood.train.stacking import load_on
from budwood.train.start import Started, manifest_of, start
from budwood.train.status import Status, resume_command, told_status, what_is_saved


@dataclass(frozen=True)
class Run:
    """A run on disk."""

    folder: RunFolder

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.folder.path

    @property
    def adapter(self) -> Path:
        """The folder of the trained adapter: `budwood.load(model, run.adapter, name=...)`."""
        return self.folder.adapter

    @property
    def manifest(self) -> Manifest:
        """What was run, and how it stands."""
        return self.folder.manifest()

    @property
    def result(self) -> Result | None:
        """The five dimensions; None for a run that did not finish."""
        return self.folder.result()

    def metrics(self) -> list[dict[str, Json]]:
        """The lines of metrics.jsonl."""
        return self.folder.metrics()

    def samples(self) -> list[dict[str, Json]]:
        """The lines of samples.jsonl: prompts answered by the base and by the trained model."""
        return self.folder.samples()

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return cell(self.folder)

    def load(self, *, name: str = "default") -> tuple[Any, Any]:
        """(model, tokenizer): the base from where it came from, with the adapter and those it stands on in force.

        Raises NotAvailable for a base that was an object in memory: load the adapter into it, with `budwood.load`.
        """
        manifest = self.manifest
        ref = resolve_model(manifest.model)
        task: Any = manifest.task
        model = load_model(ref, task=task, labels=self.folder.data().get("labels"))
        allow_pickle = bool(self.folder.config().get("allow_pickle"))
        load_on(model, self.adapter, name=name, on=manifest.on, allow_pickle=allow_pickle)
        return model, load_tokenizer(ref)


def train(
    model: Any,
    data: Any,
    *,
    method: str | Method | Mapping[str, Any] = "lora",
    budget: str | None = None,
    config: TrainConfig | Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    template: Template = "auto",
    task: Task | None = None,
    pattern: str | None = None,
    verbalizer: Verbalizer | None = None,
    on: Sequence[str | Path] = (),
    allow_pickle: bool = False,
    name: str = "default",
    out: str | Path | None = None,
    force: bool = False,
    observer: Observer | None = None,
) -> Run:
    """Train one method on one data set: preflight, training, proof, measurement, all in a run folder.

    model    a name (demo-lm, a folder, a hub id, a .gguf file), or a loaded transformers model with its tokenizer,
             which keeps the adapter afterwards
    data     a name (demo-chat, a file, a folder of splits, a hub id) or a `datasets.Dataset`
    method   "lora", "lora:rank=16,targets=all", a `Method`, or {"lora": {"rank": 16}}
    budget   "10m", "500steps", "2epochs": short for the config's
    config   a `TrainConfig` or its fields; other tools' names are accepted
    columns  canonical column to the one that holds it, {"prompt": "q", "completion": "a"}
    task     what the rows are used for, where data and model leave it open: one of budwood.data.TASKS
    pattern, verbalizer   for task cloze: "{text} It was <mask>." and {"negative": "terrible", "positive": "great"}
    on       runs or adapter folders that it is trained on top of, frozen, the lowest first
    allow_pickle   read those from pickle files, too, tensors and nothing else
    name     what the adapter is called on the model: another one for each training of the same loaded model
    out      the run folder; None makes runs/<time>-<method>-<model>
    observer is told what happens, step by step

    Raises BadConfig (2), BadData (3), NotAvailable (4), OutOfMemory (5), Diverged (6), VerificationFailed (7);
    Interrupted after Ctrl-C or SIGTERM, with the command that goes on.
    """
    return run_job(
        Job(
            model=model,
            data=data,
            method=method if isinstance(method, Method) else method_from_dict(method),
            config=as_config(config, budget=budget),
            tokenizer=tokenizer,
            columns=columns,
            template=template,
            task=task,
            pattern=pattern,
            verbalizer=verbalizer,
            on=tuple(str(one) for one in on),
            allow_pickle=allow_pickle,
            name=name,
            out=None if out is None else Path(out),
            force=force,
        ),
        observer=observer,
    )


def check_job(job: Job) -> Preflight:
    """The preflight alone (`--dry-run`): nothing is written. Raises what a run would before its first step."""
    _check_out(job)
    return start(job).facts


def _check_out(job: Job) -> None:
    """Raise BadConfig for an `out` that cannot be made or is taken, before a model is loaded; nothing is written."""
    if job.out is None:
        return
    held = [folder for folder in job.on if Path(folder).is_relative_to(job.out.absolute())]
    if held:
        raise BadConfig(f"{job.out} holds {held[0]}, which this run stands on (--on); choose another --out")
    there = next(place for place in (job.out.absolute(), *job.out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise BadConfig(f"cannot write {job.out}: {there} is a file; choose another --out")
    if (job.out / "run.json").is_file() and not job.force:
        raise BadConfig(f"{job.out} holds a run already; choose another --out, --resume it, or replace it with --force")


def run_job(job: Job, *, observer: Observer | None = None) -> Run:
    """Run a job from its beginning."""
    _check_out(job)
    listener = observer or Silent()
    started = start(job, say=listener.note)
    listener.preflight(started.facts)
    folder = RunFolder.create(
        job.root,
        manifest_of(started),
        config=started.job.to_dict(),
        data=started.data_record(),
        environment=started.machine(),
        out=job.out,
        force=job.force,
    )
    recorder = Recorder(folder, listener)
    recorder.preflight(started.facts)
    return _carry_out(started, folder, recorder, is_resumed=False)


def resume(
    run: str | Path | Run,
    *,
    model: Any = None,
    data: Any = None,
    tokenizer: Any = None,
    root: str | Path = "runs",
    offline: bool | None = None,
    recipe: Callable[[dict[str, Any]], tuple[dict[str, Any], Recipe]] | None = None,
    baseline: Path | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with a run where its state was saved, as if it had not stopped.

    run               its folder, its name in `root`, "latest", or a `Run`
    model, data, tokenizer   only for those that were objects in memory
    offline           never ask the network; None keeps what the run was started with
    baseline          run folder in which the untuned base was examined before
    recipe            takes what config.yaml says of a recipe out of it: (the rest, the recipe)

    Raises BadCheckpoint without a readable state, WrongOrder if it is finished or still running, BadConfig if data or
    model are not what they were, and what `train` does.
    """
    folder = run.folder if isinstance(run, Run) else RunFolder.open(run, root=root)
    if not has_state(folder.state):
        raise BadCheckpoint(f"{folder.path} has no saved state to go on from; start it again with budwood train")
    manifest = folder.manifest()
    if manifest.status == "finished":
        raise WrongOrder(f"{folder.path} is finished, there is nothing to go on with; start a new run with more budget")
    if manifest.status == "running":
        place = manifest.process or {}
        raise WrongOrder(
            f"{folder.path} is still being trained by process {place.get('pid')} on {place.get('host')}; "
            "wait for it or stop it, then resume"
        )
    said, taught = (folder.config(), None) if recipe is None else recipe(folder.config())
    job = Job.from_dict(said, recipe=taught)
    job = replace(
        job,
        config=_as_probed(job.config, manifest) if has_begun(folder.state) else job.config,
        root=Path(root),
        model=job.model if model is None else model,
        data=job.data if data is None else data,
        tokenizer=tokenizer,
        baseline=baseline,
        offline=job.offline if offline is None else offline,
        command=manifest.command,
    )
    listener = observer or Silent()
    started = start(job, say=listener.note)
    listener.preflight(started.facts)
    return _carry_out(started, folder, Recorder(folder, listener), is_resumed=True)


def _as_probed(config: TrainConfig, manifest: Manifest) -> TrainConfig:
    """The settings with the learning rate that the run was begun at, where that was found by trying or not said."""
    if config.learning_rate is not None:
        return config
    rate = manifest.rate_probe.rate if manifest.rate_probe else None
    return replace(config, learning_rate=rate, rate_steps=0)


def _carry_out(started: Started, folder: RunFolder, observer: Recorder, *, is_resumed: bool) -> Run:
    """Everything after preflight; the folder's status tells how it ended."""
    with told_status(folder, is_claimed=not is_resumed) as status:
        _do_before(started, folder, observer, is_resumed=is_resumed)
        started = _at_the_best_rate(started, folder, observer)
        judge = Judge(started.job, started.material, started.prepared)
        before = examine(judge)
        ledger = Ledger(started.prepared, started.objective, started.feed, after=started.job.config.proof_steps)
        standing = _take_up(started, status, observer) if is_resumed else started.beginning
        fitted = _train(started, folder, judge, before, ledger, observer, standing)
        memory = started.memory()
        movement = ledger.finish(fitted.standing.step)
        observer.note(str(movement))
        saved = save_and_prove(judge, folder, before=before, observer=observer)
        scores = _examine_trained(judge, before, folder, fitted.standing.step, observer)
        folder.write_result(
            Result(
                parameters=parameters(started.prepared, saved.stored_bytes),
                memory=memory,
                speed=whole_speed(fitted),
                quality=scores,
                inference=saved.inference,
            )
        )
        finish_card(judge, folder, saved, movement, scores)
        proof = {
            "movement": asdict(movement),
            "reload": asdict(saved.reload),
            "merge": asdict(saved.merge) if saved.merge else None,
        }
        folder.add_metrics({"step": fitted.standing.step, "proof": proof})
    return Run(folder)


def _do_before(started: Started, folder: RunFolder, observer: Recorder, *, is_resumed: bool) -> None:
    """What the recipe does before anything is trained; a run that is stopped in it can be gone on with."""
    if started.lesson.is_long and not is_resumed:
        save_state(folder.state, started.prepared, started.beginning, identity=started.identity)
    if started.lesson.before is not None:
        started.lesson.before(observer.note)


def _at_the_best_rate(started: Started, folder: RunFolder, observer: Recorder) -> Started:
    """The job at the learning rate that did best, where some are to be tried; a resumed run says its own."""
    plan = started.facts.rates
    if plan is None:
        return started
    probe = try_rates(
        started.prepared,
        started.objective,
        started.feed,
        started.job.config,
        plan,
        held=started.material.valid,
        start=started.beginning,
    )
    folder.probed(probe)
    observer.note(f"learning rate: {probe}")
    started.meter.restart()
    return replace(started, prepared=replace(started.prepared, learning_rate=probe.rate))


def _take_up(started: Started, status: Status, observer: Recorder) -> Standing:
    """Where the saved state stands; the run is claimed once that state was found to fit."""
    standing = load_state(status.folder.state, started.prepared, identity=started.identity)
    status.claim(standing.step)
    observer.taken = standing.step
    observer.note(f"going on after step {standing.step}")
    return standing


def _train(
    started: Started,
    folder: RunFolder,
    judge: Judge,
    before: Baseline,
    ledger: Ledger,
    observer: Recorder,
    standing: Standing,
) -> Fitted:
    """The loop, from the beginning or from where a resumed run stands."""
    saving = Saving(
        folder=folder.state,
        identity=started.identity,
        resume_command=resume_command(folder),
    )

    def validate() -> Sequence[Score]:
        for row, base, now in zip(before.asked[:1], before.answers, judge.answers(before.asked[:1]), strict=False):
            observer.sample({"prompt": judge.asked(row), "base": base, "now": now})
        return judge.scores()

    try:
        return fit(
            started.prepared,
            started.objective,
            started.feed,
            started.job.config,
            start=standing,
            saving=saving,
            validate=validate if started.material.valid else None,
            ledger=ledger,
            observer=observer,
        )
    except Diverged as error:
        raise Diverged(f"{error}. {what_is_saved(folder)}") from error


def _examine_trained(
    judge: Judge, before: Baseline, folder: RunFolder, step: int, observer: Recorder
) -> tuple[Quality, ...]:
    """Scores, predictions and answers of the trained model, written down beside the base's."""
    after = judge.examine()
    for row, base, now in zip(before.asked, before.answers, judge.answers(before.asked), strict=True):
        observer.sample({"prompt": judge.asked(row), "base": base, "now": now, "reference": judge.right(row)})
    if after is not None:
        for prediction in after.predictions:
            folder.add_prediction(prediction.to_dict())
        observer.validation(step, after.scores)
    return quality(after, before.scores)
