"""`train`: the whole job, from names to a proved adapter in a run folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from budwood.assets import load_model, load_tokenizer, resolve_model
from budwood.core import Method
from budwood.data import Template
from budwood.data.corpus import Task
from budwood.errors import BadCheckpoint, BudwoodError
from budwood.interop import load
from budwood.methods import method_from_dict
from budwood.records import Json, Manifest, Result, RunFolder, Score
from budwood.train.checkpoint import has_state, load_state
from budwood.train.config import TrainConfig
from budwood.train.finish import finish_card, parameters, quality, save_and_prove, time_answers
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.judging import Judge, reference
from budwood.train.loop import Fitted, Saving, fit
from budwood.train.observer import Observer, Silent
from budwood.train.preflight import Preflight
from budwood.train.proof import Ledger
from budwood.train.recorder import Recorder
from budwood.train.start import Started, manifest_of, start


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

    def load(self, *, name: str = "default") -> tuple[Any, Any]:
        """(model, tokenizer): the base from where it came from, with the adapter attached and active."""
        manifest = self.manifest
        ref = resolve_model(manifest.model)
        task: Any = manifest.task
        model = load_model(ref, task=task, labels=self.folder.data().get("labels"))
        load(model, self.adapter, name=name)
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
            out=None if out is None else Path(out),
            force=force,
        ),
        observer=observer,
    )


def check_job(job: Job) -> Preflight:
    """The preflight alone (`--dry-run`): nothing is written. Raises what a run would before its first step."""
    return start(job).facts


def run_job(job: Job, *, observer: Observer | None = None) -> Run:
    """Run a job from its beginning."""
    listener = observer or Silent()
    started = start(job)
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
    observer: Observer | None = None,
) -> Run:
    """Go on with a run where its state was saved, as if it had not stopped.

    run               its folder, its name in `root`, "latest", or a `Run`
    model, data, tokenizer   only for those that were objects in memory

    Raises BadCheckpoint without a readable state, BadConfig if data or model are not what they were, and what
    `train` does.
    """
    folder = run.folder if isinstance(run, Run) else RunFolder.open(run, root=root)
    if not has_state(folder.state):
        raise BadCheckpoint(f"{folder.path} has no saved state to go on from; start it again with budwood train")
    job = Job.from_dict(folder.config())
    manifest = folder.manifest()
    job = replace(
        job,
        model=job.model if model is None else model,
        data=job.data if data is None else data,
        tokenizer=tokenizer,
        command=manifest.command,
    )
    listener = observer or Silent()
    started = start(job)
    listener.preflight(started.facts)
    return _carry_out(started, folder, Recorder(folder, listener), is_resumed=True)


def _carry_out(started: Started, folder: RunFolder, observer: Recorder, *, is_resumed: bool) -> Run:
    """Everything after preflight; the folder's status tells how it ended."""
    with _status(folder):
        judge = Judge(started.job, started.material, started.prepared)
        with judge.base():
            before = judge.examine()
            timing = time_answers(started.prepared.model, started.prepared.compute)
            asked = judge.samples()
            first = judge.answers(asked)
        ledger = Ledger(started.prepared, started.objective, started.feed, after=started.job.config.proof_steps)
        saving = Saving(
            folder=folder.state,
            identity=started.material.identity,
            resume_command=f"budwood train --resume {folder.path}",
        )
        standing = None
        if is_resumed:
            standing = load_state(folder.state, started.prepared, identity=saving.identity)
            folder.resume(step=standing.step)
            observer.note(f"going on after step {standing.step}")

        def validate() -> Sequence[Score]:
            for row, base, now in zip(asked[:1], first, judge.answers(asked[:1]), strict=False):
                observer.sample({"prompt": row.prompt, "base": base, "now": now})
            return judge.scores()

        fitted = fit(
            started.prepared,
            started.objective,
            started.feed,
            started.job.config,
            start=standing or started.beginning,
            saving=saving,
            validate=validate if started.material.valid else None,
            ledger=ledger,
            observer=observer,
        )
        memory = started.memory()
        movement = ledger.finish(fitted.standing.step)
        observer.note(str(movement))
        saved = save_and_prove(judge, folder, base_timing=timing, observer=observer)
        after = judge.examine()
        scores = quality(after, before)
        for row, base, now in zip(asked, first, judge.answers(asked), strict=True):
            right = reference(row, started.material.corpus.labels)
            observer.sample({"prompt": row.prompt, "base": base, "now": now, "reference": right})
        for prediction in after.predictions if after is not None else ():
            folder.add_prediction(prediction.to_dict())
        if after is not None:
            observer.validation(fitted.standing.step, after.scores)
        folder.write_result(
            Result(
                parameters=parameters(started.prepared, saved.stored_bytes),
                memory=memory,
                speed=_whole_speed(fitted),
                quality=scores,
                inference=saved.inference,
            )
        )
        finish_card(judge, folder, saved, movement, scores)
        folder.add_metrics(
            {
                "step": fitted.standing.step,
                "proof": {
                    "movement": asdict(movement),
                    "reload": asdict(saved.reload),
                    "merge": asdict(saved.merge) if saved.merge else None,
                },
            }
        )
    return Run(folder)


@contextmanager
def _status(folder: RunFolder) -> Iterator[None]:
    """Finished, interrupted or failed: whatever happens inside is written to run.json."""
    try:
        yield
    except Interrupted as stop:
        folder.interrupt(str(stop))
        raise
    except KeyboardInterrupt as stop:
        folder.interrupt("stopped outside of training steps")
        if not has_state(folder.state):
            raise
        signum = int(vars(stop).get("exit_code", 130)) - 128
        command = f"budwood train --resume {folder.path}"
        step = int(json.loads((folder.state / "state.json").read_text(encoding="utf-8"))["step"])
        raise Interrupted(signum=signum, step=step, state=folder.state, resume_command=command) from stop
    except BudwoodError as error:
        folder.fail(str(error))
        raise
    except BaseException as error:
        folder.fail(f"{type(error).__name__}: {error}")
        raise
    folder.finish()


def _whole_speed(fitted: Fitted) -> Any:
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
