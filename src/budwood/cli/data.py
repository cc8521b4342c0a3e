"""`budwood data`: look at data, check it, leave out repeats, divide it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from budwood.cli.layers import columns_of
from budwood.cli.options import Talk
from budwood.cli.output import Sink
from budwood.cli.places import write_splits
from budwood.cli.progress import one_line
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from budwood.data import Corpus, Row

app = App(
    name="data", group_commands="Verbs", help_epilogue="as in: budwood data show faq.jsonl",
    help="Show, check, clean and split data.",
)  # fmt: skip


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read."""

    columns: str | None = None
    """Which column is what, where the names do not say: prompt=q,completion=a."""
    offline: bool = False
    """Never use the network."""

    def corpus(self, source: str, sink: Sink) -> Corpus:
        """The rows, from a file, a folder, a hub id or a demo name."""
        from budwood.assets import resolve_data
        from budwood.data import read

        found = read(resolve_data(source, offline=self.offline, say=sink.say), columns=columns_of(self.columns))
        return replace(found, origin=source)


@app.command
def show(
    source: Annotated[str, Parameter(name="DATA")], /, *,
    rows: int = 3, split: str | None = None, model: str | None = None, max_length: int | None = None,
    reading: Reading | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """What was recognised, and the first rows; with --model, as the model reads them.

    Parameters
    ----------
    source: str
        A file, a folder of splits, a hub id or a demo name.
    rows: int
        How many rows of each split. [3]
    split: str
        Only this split.
    model: str
        Show rows as this model's tokens, with [[what is learned]] marked, and count tokens.
    max_length: int
        Tokens a row may have, with --model.
    """
    sink = (talk or Talk()).sink()
    corpus = (reading or Reading()).corpus(source, sink)
    for line in corpus.describe():
        sink.data(line)
    names = [split] if split else list(corpus.splits)
    payload: dict[str, Any] = {**_summary(corpus), "shown": {}}
    for name in names:
        first = corpus.rows(name)[:rows]
        payload["shown"][name] = [dict(row.raw) for row in first]
        if model is None:
            _show_rows(name, first, corpus, sink)
    if model is not None:
        payload["encoded"] = {name: _show_tokens(model, corpus, name, rows, max_length, sink) for name in names}
    sink.result(payload)
    return 0


@app.command
def check(
    source: Annotated[str, Parameter(name="DATA")], /, *, reading: Reading | None = None, talk: Talk | None = None
) -> int:
    """Look for repeats, rows that leak between splits, contradictions, empty rows; exits 3 if there are any.

    Parameters
    ----------
    source: str
        A file, a folder of splits, a hub id or a demo name.
    """
    from budwood.data import check as find
    from budwood.errors import BadData

    sink = (talk or Talk()).sink()
    corpus = (reading or Reading()).corpus(source, sink)
    for line in corpus.describe():
        sink.say(line)
    findings = find(corpus)
    for finding in findings:
        sink.data(f"{finding.kind}: {finding.message}")
    if not findings:
        sink.say("nothing found: no repeats, no leakage, no contradictions, no empty rows")
    found = [{"kind": f.kind, "rows": f.rows, "message": f.message} for f in findings]
    sink.result({**_summary(corpus), "findings": found})
    return BadData.exit_code if findings else 0


@app.command
def dedup(
    source: Annotated[str, Parameter(name="DATA")], /, *, out: Path,
    force: bool = False, reading: Reading | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Write the data without rows that repeat an earlier one.

    Parameters
    ----------
    source: str
        A file, a folder of splits, a hub id or a demo name.
    out: Path
        A .jsonl file, or a folder for data with several splits.
    force: bool
        Write over what is there.
    """
    from budwood.data import dedup as leave_out

    sink = (talk or Talk()).sink()
    corpus = (reading or Reading()).corpus(source, sink)
    kept, gone = leave_out(corpus)
    total = sum(map(len, corpus.splits.values()))
    written = write_splits(kept.splits, out, force=force)
    sink.say(f"{gone} of {total} rows repeat an earlier one and were left out")
    _tell_written(written, sink, {"rows": total, "left_out": gone})
    return 0


@app.command
def split(
    source: Annotated[str, Parameter(name="DATA")], /, *, out: Path,
    shares: str = "train=0.8,validation=0.1,test=0.1", group: str | None = None, seed: int = 0,
    force: bool = False, reading: Reading | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Divide the rows of all splits anew; rows that ask the same stay together.

    Parameters
    ----------
    source: str
        A file, a folder of splits, a hub id or a demo name.
    out: Path
        Folder for one .jsonl file a split.
    shares: str
        Share of each split. [train=0.8,validation=0.1,test=0.1]
    group: str
        A column whose equal values stay together.
    seed: int
        Another seed is another division. [0]
    force: bool
        Write over what is there.
    """
    from budwood.data import split as divide

    sink = (talk or Talk()).sink()
    corpus = (reading or Reading()).corpus(source, sink)
    rows = [row for _, row in corpus.all_rows()]
    parts = divide(rows, _shares(shares), group=group, seed=seed)
    written = write_splits(parts, out, force=force, is_folder=True)
    sink.say(", ".join(f"{name} {len(part)} ({len(part) / len(rows):.0%})" for name, part in parts.items()))
    _tell_written(written, sink, {"rows": {name: len(part) for name, part in parts.items()}})
    return 0


def _summary(corpus: Corpus) -> dict[str, Any]:
    return {
        "data": corpus.origin, "shape": corpus.shape, "task": corpus.task, "columns": dict(corpus.used),
        "rows": {name: len(rows) for name, rows in corpus.splits.items()}, "labels": corpus.labels,
        "notes": corpus.notes, "hash": corpus.hash(),
    }  # fmt: skip


def _show_rows(name: str, rows: Sequence[Row], corpus: Corpus, sink: Sink) -> None:
    sink.data("")
    for row in rows:
        sink.data(f"{name}: {row.where}")
        for label, text in _parts(row, corpus):
            sink.data(f"    {label:<9}  {one_line(text, 160)}")


def _parts(row: Row, corpus: Corpus) -> list[tuple[str, str]]:
    """What a row says, piece by piece."""
    from budwood.data import Conversation, Labelled, Passage, Tagged, Text, marked

    match row.value:
        case Conversation(turns):
            return [(turn.role, turn.content) for turn in turns]
        case Text(text):
            return [("text", text)]
        case Labelled(text, pair, label):
            pairs = [("text", text), ("text 2", pair or ""), ("label", (corpus.labels or ())[label])]
            return [(name, value) for name, value in pairs if value]
        case Tagged(words, tags):
            return [("tagged", marked(words, [(corpus.labels or ())[number] for number in tags]))]
        case Passage(context, question, answers):
            said = [("answer", answer.text) for answer in answers] or [("answer", "(none)")]
            return [("context", context), ("question", question), *said]


def _show_tokens(
    model: str, corpus: Corpus, name: str, rows: int, max_length: int | None, sink: Sink
) -> dict[str, Any]:
    """The rows as a model reads them, and the counts."""
    from budwood.assets import load_tokenizer, resolve_model, stored_kind
    from budwood.data import encode, for_encoder_decoder, preview

    ref = resolve_model(model, say=sink.say)
    tokenizer = load_tokenizer(ref)
    if stored_kind(ref) == "encoder-decoder":
        corpus = for_encoder_decoder(corpus)
    encoded = encode(corpus, name, tokenizer, max_length=max_length)
    sink.data("")
    for line in encoded.report.describe():
        sink.data(f"{name}: {line}")
    shown = [preview(example, tokenizer, labels=corpus.labels) for example in encoded.examples[:rows]]
    for text in shown:
        sink.data(text)
    return {**asdict(encoded.report), "template": encoded.template, "examples_shown": shown}


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        raise BadConfig(f"--shares is {text!r}; write it as train=0.8,validation=0.1,test=0.1") from error


def _tell_written(paths: Sequence[Path], sink: Sink, payload: dict[str, Any]) -> None:
    for path in paths:
        sink.data(str(path))
    sink.result({**payload, "paths": paths})
