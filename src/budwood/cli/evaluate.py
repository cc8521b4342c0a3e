"""`budwood eval`: scores on held-out rows, of what was trained and of its base."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.layers import layered, text_of
from budwood.cli.options import Below, Machine, Talk, Together, given
from budwood.cli.output import Sink, Table
from budwood.cli.places import make_parent, refuse_taken
from budwood.cli.subject import PREFERENCE, Pair, Subject, asked_below, check_alike, open_subject, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from budwood.data import Corpus
    from budwood.evaluate import EvaluationResult
    from budwood.records import Score


def evaluate(
    run: str, data: str | None = None, /, *, model: str | None = None, split: str | None = None,
    metric: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    on: Below = (), together: Together = (), answers: int | None = None,
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
    together: str
        Another run of the same base and task that answers with it, by vote; repeat it for several.
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
    others = [open_subject(other, settings, sink, model=model) for other in together]
    check_alike(subject, others)
    corpus = subject.read(data)
    split = split or next(name for name in PREFERENCE if name in corpus.splits)
    _warn_of_seen_rows(subject, data, split, sink)
    shown = " and ".join(one.in_force for one in (subject, *others))
    sink.say(f"{shown}: {corpus.origin}, {split}, {len(corpus.rows(split))} rows")
    found = _scores(subject, others, corpus, split, metric, answers)
    for note in found.trained.notes:
        sink.say(note)
    if out is not None:
        _write_predictions(found.trained, out)
    sink.show(_table(found))
    sink.result({
        "subject": subject.shown, "base": subject.base, "on": subject.on, "data": corpus.origin, "split": split,
        "with": [one.shown for one in others], **found.to_dict(), "predictions": out,
    })  # fmt: skip
    return 0


@dataclass(frozen=True)
class Found:
    """Scores of one run, or of several together."""

    trained: EvaluationResult
    base: EvaluationResult
    alone: tuple[EvaluationResult, ...] = ()
    """Of each by itself, where there are several."""

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        trained, base, *alone = (
            [vars(score) for score in one.scores] for one in (self.trained, self.base, *self.alone)
        )
        return {"scores": trained, "base_scores": base, "scores_alone": alone, "notes": self.trained.notes}


def _scores(
    subject: Subject, others: Sequence[Subject], corpus: Corpus, split: str, metrics: Sequence[str], answers: int | None
) -> Found:
    from budwood.core import using
    from budwood.evaluate import Ensemble, Options, evaluate, longest_row

    settings = subject.settings
    pair, tokenizer = Pair.load(subject, others), subject.load_tokenizer()
    together = Ensemble(pair.plans) if others else None
    limit = longest_row(corpus, pair.trained, tokenizer, together)  # for the base, too: both are asked the same
    options = Options(
        metrics=tuple(metrics), batch=whole(settings, "batch", 8), answers=answers,
        max_length=limit if settings.get("max_length") is None else whole(settings, "max_length", 0),
        template=text_of(settings, "template") or "auto",  # type: ignore[arg-type]
    )  # fmt: skip

    def scored(model: PreTrainedModel, ensemble: Ensemble | None = None) -> EvaluationResult:
        return evaluate(model, tokenizer, corpus, split, options=replace(options, ensemble=ensemble))

    with subject.arithmetic():
        trained = scored(pair.trained, together)
        alone = []
        for plan in pair.plans if others else ():
            with using(pair.trained, plan):
                alone.append(scored(pair.trained))
        with pair.base() as model:
            return Found(trained, scored(model), tuple(alone))


def _table(found: Found) -> Table:
    """The scores, those of each run alone behind them."""
    rows: list[tuple[object, ...]] = []
    for place, (ours, theirs) in enumerate(zip(found.trained.scores, found.base.scores, strict=True)):
        alone = [" ".join(f"{one.scores[place].value:.4g}" for one in found.alone)] if found.alone else []
        values = (f"{ours.value:.4g}", _interval(ours), *alone, f"{theirs.value:.4g}", _interval(theirs))
        rows.append((ours.name, *values, ours.n, ours.unit))
    each = (">each alone",) if found.alone else ()
    return Table(("metric", ">value", "95 % interval", *each, ">base", "95 % interval", ">n", "unit"), rows)


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
