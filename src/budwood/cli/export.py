"""`budwood export`: an adapter in the form that another tool reads, checked by reading it back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from budwood.cli.layers import layered
from budwood.cli.merge import merge_to, tell
from budwood.cli.options import Machine, Talk, given
from budwood.cli.output import Sink, size
from budwood.cli.places import new_folder
from budwood.cli.subject import NAME, Subject, open_subject
from budwood.errors import BadConfig, VerificationFailed

FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md")


def export(
    run: str, /, *, to: Literal["peft", "merged"], out: Path | None = None, model: str | None = None,
    force: bool = False, machine: Machine | None = None, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Write an adapter for other tools.

    Parameters
    ----------
    run: str
        A run (folder, name or latest) or an adapter folder.
    to: str
        peft: an adapter folder for PEFT, transformers and vLLM; merged: a plain model folder.
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
        _to_peft(subject, place, sink, force=force)
    return 0


def _to_peft(subject: Subject, out: Path, sink: Sink, *, force: bool) -> None:
    """The adapter's own files, which are PEFT's where PEFT has the type, loaded again and compared."""
    from budwood.interop import describe

    kind = describe(subject.folder).kind
    if kind.startswith("BUDWOOD_"):
        word = kind.removeprefix("BUDWOOD_").lower()
        raise BadConfig(f"PEFT has no adapter of the type {word}; hand it on as a model with --to merged")
    with new_folder(out, force=force) as draft:
        for name in FILES:
            if (subject.folder / name).is_file():
                shutil.copyfile(subject.folder / name, draft / name)
        _check(subject, draft)
        num_bytes = sum(path.stat().st_size for path in draft.iterdir())
    sink.say(f"{kind} adapter for {subject.base}, {size(num_bytes)}; every tensor is as trained")
    for below in subject.on:
        sink.complain(
            f"it was trained on top of {below}, which is not in it: export that, too, and use both; or --to merged",
            style="yellow",
        )
    sink.say(f"load it with: peft.PeftModel.from_pretrained(model, {str(out)!r})")
    sink.data(str(out))
    sink.result({"out": out, "type": kind, "base": subject.base, "bytes": num_bytes})


def _check(subject: Subject, copy: Path) -> None:
    """The copy, put on a fresh base, has the parameters of the original. Raises VerificationFailed."""
    from budwood.core import detach, parameters
    from budwood.interop import load

    model = subject.load()
    expected = [p.detach().clone() for p in parameters(model, NAME)]
    detach(model, NAME)
    load(model, copy, name=NAME)
    found = parameters(model, NAME)
    if not all(one.equal(other) for one, other in zip(found, expected, strict=True)):
        raise VerificationFailed(f"{copy} does not hold what {subject.folder} does; free some disk space and try again")
