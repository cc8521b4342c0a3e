"""`budwood export`: an adapter in the form that another tool reads, checked by reading it back."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from budwood.cli.layers import layered
from budwood.cli.merge import merge_to, tell
from budwood.cli.options import Machine, Talk, given
from budwood.cli.output import Sink, size
from budwood.cli.places import new_folder
from budwood.cli.runs import FORMS
from budwood.cli.subject import Subject, open_subject
from budwood.errors import BadConfig, VerificationFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CARD = "README.md"
COPY = "read-back"
"""What the written folder is called while it is compared."""
LOAD_WITH = {
    "peft": "peft.PeftModel.from_pretrained(model, {folder!r})",
    "adapterhub": "adapters.init(model); model.load_adapter({folder!r}, use_safetensors=True, set_active=True)",
    "fusion": "model.load_adapter_fusion({folder!r}, use_safetensors=True, set_active=True), with its adapters there",
}


def export(
    run: str, /, *, to: Literal["peft", "adapterhub", "merged"], out: Path | None = None, model: str | None = None,
    force: bool = False, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Write an adapter for other tools.

    Parameters
    ----------
    run: str
        A run (folder, name or latest) or an adapter folder.
    to: str
        peft: an adapter folder for PEFT, transformers and vLLM; adapterhub: one for the adapters library; merged: a
        plain model folder.
    out: Path
        Where to. [the run's folder, under the form's name]
    model: str
        The base, where the adapter does not say or it moved.
    force: bool
        Replace what is in --out.
    """
    machine, talk = machine or Machine(), talk or Talk()
    sink = talk.sink()
    subject = open_subject(run, layered(given(machine), machine.config), sink, model=model)
    place = out or (subject.run.path if subject.run else subject.folder) / to
    if to == "merged":
        tell(merge_to(subject, place, dtype=None, force=force), place, sink)
    else:
        _to_folder(subject, to, place, sink, force=force)
    return 0


def _to_folder(subject: Subject, to: Literal["peft", "adapterhub"], out: Path, sink: Sink, *, force: bool) -> None:
    """The adapter in another tool's files, loaded again and compared."""
    from budwood.core import adapters
    from budwood.interop import describe, load, save
    from budwood.train.stacking import lay

    model, name = subject.load_base(), _name(subject)
    if describe(subject.folder).kind.endswith("_FUSION"):  # it mixes adapters that have to be there
        lay(model, subject.on, top=name, allow_pickle=bool(subject.settings.get("allow_pickle")))
    load(model, subject.folder, name=name, allow_pickle=bool(subject.settings.get("allow_pickle")))
    method = adapters(model)[name].method
    other = "merged" if adapters(model)[name].unfrozen else FORMS.get(method.name)
    if to == "peft" and other not in (None, to):
        raise BadConfig(f"PEFT has no adapter of the type {method.name}; write it --to {other}")
    with new_folder(out, force=force) as draft:
        save(model, draft, name=name, to=to)
        if (subject.folder / CARD).is_file():
            shutil.copyfile(subject.folder / CARD, draft / CARD)
        _check(model, draft, name, out)
        num_bytes = sum(path.stat().st_size for path in draft.iterdir())
    sink.say(f"{method.name} adapter for {subject.base}, {size(num_bytes)}; read back, it gives the same logits")
    for below in subject.on:
        sink.complain(
            f"it was trained on top of {below}, which is not in it: export that, too, and use both"
            + ("; or --to merged" if to == "peft" else ""),
            style="yellow",
        )
    if to == "adapterhub" and _has_inverse(model, name):
        sink.complain(
            "the adapters library applies the inverse only in front of its own heads (BertAdapterModel, ...), not of "
            "those of transformers: give it one of its own",
            style="yellow",
        )
    reader = LOAD_WITH["fusion" if method.name == "fusion" else to]
    sink.say(f"load it with: {reader.format(folder=str(out))}")
    sink.data(str(out))
    sink.result({"out": out, "type": method.name, "base": subject.base, "bytes": num_bytes})


def _name(subject: Subject) -> str:
    """What the adapter is called in the files: after its run or folder."""
    stem = (subject.run.path if subject.run else subject.folder).name
    return re.sub(r"[^A-Za-z0-9_-]", "-", stem).strip("-") or "adapter"


def _has_inverse(model: PreTrainedModel, name: str) -> bool:
    """Whether the adapter changes what the output embedding of a language model reads."""
    from budwood.core import adapters

    return any(site.role == "head.lm" for site in adapters(model)[name].sites)


def _check(model: PreTrainedModel, draft: Path, name: str, out: Path) -> None:
    """What was written gives the logits of the original. Raises VerificationFailed."""
    import torch

    from budwood.anatomy.probe import synthetic_batch
    from budwood.core import adapters, using
    from budwood.evaluate import evaluating
    from budwood.interop import load

    load(model, draft, name=COPY)
    batch = synthetic_batch(model)
    with evaluating(model):
        with using(model, adapters(model)[name].method.plan(name)):
            expected = model(**batch).logits
        with using(model, adapters(model)[COPY].method.plan(COPY)):
            found = model(**batch).logits
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())):
        raise VerificationFailed(f"{out} does not hold what was trained; free some disk space and try again")
