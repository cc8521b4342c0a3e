"""`budwood merge`: fold an adapter into its base, check the result, and say what the stored type loses."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from budwood.cli.layers import layered
from budwood.cli.options import Machine, Talk, given
from budwood.cli.output import Sink, size
from budwood.cli.places import new_folder
from budwood.cli.subject import PREFERENCE, Subject, open_subject, whole
from budwood.errors import BadConfig

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budwood.data import Batch
    from budwood.train.verify import MergeReport

ROWS = 16
"""Held-out rows that a merge is checked on."""
LONGEST = 256
"""Tokens of a row that the check looks at."""
LOSSY = 0.1
"""Share of the update lost to the stored type from which it is worth a warning."""
DTYPES = ("float32", "bfloat16", "float16")
SENTENCE = "The quick brown fox jumps over the lazy dog, and nobody minds."
"""What an adapter without a run, and so without data, is checked on."""


def merge(
    run: str, /, *, out: Path, dtype: str | None = None, model: str | None = None, force: bool = False,
    machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Fold an adapter into its base's weights, with those it was trained on, and check the result.

    Parameters
    ----------
    run: str
        A run (folder, name or latest) or an adapter folder.
    out: Path
        Folder for the merged model.
    dtype: str
        How its weights are stored: float32, bfloat16 or float16. [as the base's]
    model: str
        The base, where the adapter does not say or it moved.
    force: bool
        Replace what is in --out.
    """
    machine, talk = machine or Machine(), talk or Talk()
    sink = talk.sink()
    subject = open_subject(run, layered(given(machine), machine.config), sink, model=model)
    tell(merge_to(subject, out, dtype=dtype, force=force), out, sink)
    return 0


def merge_to(subject: Subject, out: Path, *, dtype: str | None, force: bool) -> MergeReport:
    """Write the merged model to `out`, checked; nothing is left there if a check fails.

    Raises CannotFold for a method that has no weights to fold into, VerificationFailed where merged is not attached.
    """
    import torch

    from budwood.train.merged import stored_dtype, write_merged

    if dtype is not None and dtype not in DTYPES:
        raise BadConfig(f"--dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    with new_folder(out, force=force) as draft:
        stored: torch.dtype = getattr(torch, dtype) if dtype else stored_dtype(subject.find_base())
        tokenizer, model = subject.load_tokenizer(), subject.load(dtype=torch.float32)
        for below in subject.on:
            subject.sink.say(f"folded in as well: {below}")
        return write_merged(
            model, tokenizer, draft, batches=[_held_out(subject, tokenizer)], stored=stored,
            again=lambda folder: _read_again(subject, folder),
        )  # fmt: skip


def tell(report: MergeReport, out: Path, sink: Sink) -> None:
    """The report, for people and with --json."""
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    sink.say(str(report))
    if report.update_lost > LOSSY:
        sink.complain(
            f"{report.dtype} has too few digits for {report.update_lost:.0%} of this update; keep it with "
            "--dtype float32, or use the adapter unmerged",
            style="yellow",
        )
    sink.say(f"written and read again: {size(num_bytes)} as {report.dtype}")
    sink.data(str(out))
    sink.result({"out": out, "bytes": num_bytes, **asdict(report)})


def _held_out(subject: Subject, tokenizer: PreTrainedTokenizerBase) -> Batch:
    """Held-out rows of the run's data; for a bare adapter, one fixed sentence."""
    from budwood.data import Example, collate, encode

    limit = min(whole(subject.settings, "max_length", LONGEST), LONGEST)
    if subject.run is None:
        ids = list(tokenizer(SENTENCE)["input_ids"])
        kinds = {
            "causal-lm": Example(ids=ids, labels=ids, row=0),
            "classification": Example(ids=ids, label=0, row=0),
            "masked-lm": Example(ids=ids, labels=ids, whole=ids, row=0),
            "seq2seq": Example(ids=ids, target=ids, row=0),
            "cloze": Example(ids=ids, labels=ids, whole=ids, row=0),
            "token-classification": Example(ids=ids, labels=[0] * len(ids), parts=[(0, 1)] * len(ids), row=0),
            "question-answering": Example(ids=ids, span=(0, 0), parts=[(0, 1)] * len(ids), row=0),
        }
        examples = [kinds[subject.task]]
    else:
        corpus = subject.read(None)
        split = next(name for name in PREFERENCE if name in corpus.splits)
        few = corpus.replace_splits({split: corpus.rows(split)[:ROWS]})
        examples = encode(few, split, tokenizer, max_length=limit).examples
    pad = tokenizer.pad_token_id
    return collate(examples, 0 if pad is None else int(pad))


def _read_again(subject: Subject, folder: Path) -> PreTrainedModel:
    """The written folder as anyone would load it, computing in float32."""
    import torch

    from budwood.assets import load_model, resolve_model

    model = load_model(resolve_model(folder), task=subject.task, labels=subject.labels, dtype=torch.float32)
    return model.to(subject.device)
