"""`budwood eval`: scores on held-out rows, of what was trained and of its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.layers import layered, text_of
from budwood.cli.options import Below, Machine, Talk, given
from budwood.cli.output import Sink, Table
from budwood.cli.places import make_parent, refuse_taken
from budwood.cli.subject import PREFERENCE, Pair, Subject, asked_below, open_subject, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from budwood.data import Corpus
    from budwood.evaluate import EvaluationResult
    from budwood.records import Score


def evaluate(
    run: str, data: str | None = None, /, *, model: str | None = None, split: str | None = None,
    metric: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    on: Below = (), answers: int | None = None,
    out: Path | None = None, force: bool = False, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Score a run or an adapter on held-out rows, beside its base.

    Parameters
    ----------
    run: str
        A run (folder, name or latest) or an adapter folder.
    data: str
        A file, a folder of splits, a hub id or a demo name. [what the run was trained on]
    model: str
        The base, where the adapter does not say or it moved.
    split: str
        Which rows. [test, else validation, else train]
    metric: str
        What to score, as rouge_l; repeat it for several. [those that need no generation]
    on: str
        A run or adapter to put below it, or none; repeat it for several. [what it was trained on]
    answers: int
        Answer only so many prompts, for metrics of answers. [all]
    out: Path
        File for one line a row: prompt, answer, references, scores.
    force: bool
        Write over --out.
    """
    machine, talk = machine or Machine(), talk or Talk()
    sink = talk.sink()
    if out is not None:
        refuse_taken(out, force=force)
        make_parent(out)
    settings = layered({**given(machine), **asked_below(on)}, machine.config)
    subject = open_subject(run, settings, sink, model=model)
    corpus = subject.read(data)
    split = split or next(name for name in PREFERENCE if name in corpus.splits)
    _warn_of_seen_rows(subject, data, split, sink)
    sink.say(f"{subject.in_force}: {corpus.origin}, {split}, {len(corpus.rows(split))} rows")
    trained, base = _both(subject, corpus, split, metric, answers)
    for note in trained.notes:
        sink.say(note)
    if out is not None:
        _write_predictions(trained, out)
    sink.show(
        Table(("metric", ">value", "95 % interval", ">base", "95 % interval", ">n", "unit"), _rows(trained, base))
    )
    sink.result({
        "subject": subject.shown, "base": subject.base, "on": subject.on, "data": corpus.origin, "split": split,
        "scores": [vars(score) for score in trained.scores], "base_scores": [vars(score) for score in base.scores],
        "notes": trained.notes, "predictions": out,
    })  # fmt: skip
    return 0


def _both(
    subject: Subject, corpus: Corpus, split: str, metrics: Sequence[str], answers: int | None
) -> tuple[EvaluationResult, EvaluationResult]:
    """Scores of the trained model and of the base."""
    from budwood.evaluate import Options, evaluate

    settings = subject.settings
    max_length = settings.get("max_length")
    options = Options(
        metrics=tuple(metrics), batch=whole(settings, "batch", 8), answers=answers,
        max_length=None if max_length is None else whole(settings, "max_length", 0),
        template=text_of(settings, "template") or "auto",  # type: ignore[arg-type]
    )  # fmt: skip
    pair, tokenizer = Pair.load(subject), subject.load_tokenizer()
    with subject.arithmetic():
        trained = evaluate(pair.trained, tokenizer, corpus, split, options=options)
        with pair.base() as model:
            base = evaluate(model, tokenizer, corpus, split, options=options)
    return trained, base


def _rows(trained: EvaluationResult, base: EvaluationResult) -> list[tuple[object, ...]]:
    return [
        (ours.name, f"{ours.value:.4g}", _interval(ours), f"{theirs.value:.4g}", _interval(theirs), ours.n, ours.unit)
        for ours, theirs in zip(trained.scores, base.scores, strict=True)
    ]


def _interval(score: Score) -> str:
    return f"{score.low:.4g} to {score.high:.4g}"


def _warn_of_seen_rows(subject: Subject, data: str | None, split: str, sink: Sink) -> None:
    """Scores on rows that were trained on say little; say so."""
    if split == "train" and (data is None or (subject.run is not None and data == subject.run.manifest().data)):
        sink.complain("these rows were trained on: the scores say how well they were learned, no more", style="yellow")


def _write_predictions(result: EvaluationResult, out: Path) -> None:
    import json

    from budwood.records.files import not_writable, plain

    lines: list[Any] = [json.dumps(plain(one.to_dict()), ensure_ascii=False) for one in result.predictions]
    try:
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise not_writable(out, error) from error
