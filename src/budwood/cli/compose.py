"""`budwood compose`: several LoRA adapters of one base into one adapter folder, with what the merge could not keep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.layers import Settings, layered
from budwood.cli.options import Talk, Unlisted
from budwood.cli.output import Sink, Table, amount, size
from budwood.cli.places import new_folder
from budwood.cli.subject import Subject, open_subject, whole
from budwood.errors import BadConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from budwood.combine import Combined

RESULT = "combined"
"""What the new adapter is called while it is attached here."""
NOTABLE = 0.1
"""Share of an update lost to its rank from which it is worth a warning."""


def compose(
    *folders: str, out: Path, how: str = "linear",
    weights: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None, rank: int | None = None,
    density: float | None = None, sign: str | None = None, head: str | None = None, model: str | None = None,
    seed: int | None = None, device: str | None = None, offline: bool = False, force: bool = False,
    trust_remote_code: Annotated[bool, Unlisted] = False, talk: Talk | None = None,
) -> int:  # fmt: skip
    """Merge several LoRA adapters of one base into one adapter.

    Parameters
    ----------
    folders: str
        Two or more runs (folder, name or latest) or adapter folders.
    out: Path
        Folder for the new adapter.
    how: str
        linear, cat (sums, exact); svd, ties, dare-linear, dare-ties, prune (cut to a rank). [linear]
    weights: str
        One number an adapter, as 0.5,0.5; not divided by anything. [1 each]
    rank: int
        Largest rank of the result. [svd: the largest of theirs; else their sum]
    density: float
        Share of the values that ties, dare-* and prune keep, in (0, 1]. [0.5]
    sign: str
        How ties and dare-ties elect signs: total or frequency. [total]
    head: str
        Which of them gives the task head, where theirs differ.
    model: str
        The base, where the adapters do not say or it moved.
    seed: int
        Seed of what dare-* drops. [0]
    device: str
        auto, cpu, cuda, cuda:N or mps. [auto]
    offline: bool
        Never use the network.
    force: bool
        Replace what is in --out.
    """
    sink = (talk or Talk()).sink()
    flags = {"seed": seed, "device": device, "offline": offline, "trust_remote_code": trust_remote_code}
    settings = layered({key: value for key, value in flags.items() if value is not None and value is not False})
    subjects = open_all(folders, settings, sink, model=model)
    names = names_of(subjects)
    chosen = chosen_of(head, folders, names)

    from budwood.combine import HOWS, Recipe, check_weights, combine
    from budwood.interop import save

    recipe = Recipe(how=how, density=density, rank=rank, sign=sign, seed=whole(settings, "seed", 0))
    numbers = check_weights(names, parse_weights(weights))
    with new_folder(out, force=force) as draft:
        loaded = load_all(subjects, names)
        sink.say(f"merging {len(names)} adapters: {HOWS[recipe.how]}")
        result = combine(
            loaded, names, name=RESULT, how=recipe.how, weights=numbers, density=recipe.density, rank=recipe.rank,
            sign=recipe.sign, seed=recipe.seed, head=chosen,
        )  # fmt: skip
        save(loaded, draft, name=RESULT, on=subjects[0].on)
    tell(result, loaded, subjects, out, sink)
    return 0


def parse_weights(text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.5` as numbers. Raises BadConfig."""
    if text is None:
        return None
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise BadConfig(
            f"--weights is {text!r}; write one number an adapter with commas between, as 0.5,0.5"
        ) from error


def chosen_of(head: str | None, folders: Sequence[str], names: Sequence[str]) -> str | None:
    """The name of the adapter that --head means. Raises BadConfig for one that is not among those given."""
    if head is not None and head not in folders:
        raise BadConfig(f"--head is {head!r}; give one of those that are merged: {', '.join(folders)}")
    return None if head is None else names[folders.index(head)]


def open_all(folders: Sequence[str], settings: Settings, sink: Sink, *, model: str | None) -> list[Subject]:
    """The adapters, each once, of one base, task and set of classes. Raises BadConfig, naming those that differ."""
    from budwood.assets import resolve_model

    if len(folders) < 2:
        raise BadConfig(
            f"{len(folders) or 'no'} adapter{' is' if folders else 's are'} given; name two or more runs or adapter "
            "folders, as: budwood compose style facts --out both"
        )
    subjects = [open_subject(folder, settings, sink, model=model) for folder in folders]
    first = next((subject for subject in subjects if subject.labels), subjects[0])
    bases = {s.base: resolve_model(s.base, offline=bool(settings.get("offline"))).path.resolve() for s in subjects}
    seen: set[Path] = set()
    for other in subjects:
        if other.folder.resolve() in seen:
            raise BadConfig(f"{other.shown} is given twice; give it once, with a larger weight")
        seen.add(other.folder.resolve())
        if bases[other.base] != bases[first.base]:
            raise BadConfig(
                f"{first.shown} is for {first.base} and {other.shown} for {other.base}; only adapters of one base can "
                "be merged (where it is the same one in two places, name it with --model)"
            )
        if other.on != first.on:
            raise BadConfig(
                f"{first.in_force} and {other.in_force} were not trained on top of the same; merge adapters that were"
            )
        if (other.task, other.labels) != (first.task, first.labels):
            raise BadConfig(
                f"{first.shown} is for {_purpose(first)} and {other.shown} for {_purpose(other)}; "
                "merge adapters of one task"
            )
    return subjects


def _purpose(subject: Subject) -> str:
    return f"the classes {', '.join(subject.labels)}" if subject.labels else subject.task


def names_of(subjects: Sequence[Subject]) -> list[str]:
    """A name for each adapter, from its own folder, so that it does not depend on the order they are given in."""
    names: list[str] = []
    for subject in subjects:
        place = subject.run.path if subject.run else subject.folder
        word = re.sub(r"[^A-Za-z0-9_-]", "_", place.resolve().name)
        name = next(w for n in range(1, len(subjects) + 2) if (w := word if n == 1 else f"{word}_{n}") not in names)
        names.append(name)
    return names


def load_all(subjects: Sequence[Subject], names: Sequence[str]) -> PreTrainedModel:
    """The base with all of them on it. Raises BadCheckpoint for a wrong base or damaged files."""
    from budwood.interop import load

    model = subjects[0].load_base()
    for subject, name in zip(subjects, names, strict=True):
        load(model, subject.folder, name=name)
    return model


def tell(result: Combined, model: PreTrainedModel, subjects: Sequence[Subject], out: Path, sink: Sink) -> None:
    """What came out and what to type next, for people and with --json."""
    rows = [_facts(role, paths, result, model) for role, paths in _by_role(result).items()]
    num_bytes = sum(path.stat().st_size for path in out.iterdir())
    (where, worst), total = result.worst, sum(int(row["parameters"]) for row in rows)
    sink.tell(Table(("role", ">sites", ">rank", ">parameters", ">worst error", ">mean error"), [_row(r) for r in rows]))
    shares = ", ".join(f"{weight:g} x {name}" for name, weight in result.weights.items())
    sink.say(f"{result.recipe.how} of {shares}: {amount(total)} parameters, {size(num_bytes)}")
    sink.say(f"error, as a share of what was asked for: {worst:.2%} at worst ({where}), {result.mean:.2%} on average")
    if worst > NOTABLE:
        sink.complain("the rank is too low to hold all of it; a larger --rank loses less", style="yellow")
    heads = [site.path for site in result.adapter.sites if site.path not in result.ranks]
    if heads:
        sink.say(f"trained in full beside it: {', '.join(heads)}")
    sink.say(f"type next: budwood eval {out} {_data_of(subjects)}  or  budwood merge {out} --out {out}-merged")
    sink.data(str(out))
    sink.result({
        "out": out, "bytes": num_bytes, "how": result.recipe.how, "weights": list(result.weights.values()),
        "base": subjects[0].base, "parameters": total, "worst_error": worst, "worst_site": where,
        "mean_error": result.mean, "roles": rows, "errors": result.errors, "ranks": result.ranks, "heads": heads,
    })  # fmt: skip


def _data_of(subjects: Sequence[Subject]) -> str:
    """What the first run among them was trained on."""
    return next((subject.run.manifest().data for subject in subjects if subject.run), "DATA")


def _by_role(result: Combined) -> dict[str, list[str]]:
    """Paths of the merged sites by their role."""
    found: dict[str, list[str]] = {}
    for site in result.adapter.sites:
        if site.path in result.ranks:
            found.setdefault(site.role, []).append(site.path)
    return found


def _facts(role: str, paths: Sequence[str], result: Combined, model: PreTrainedModel) -> dict[str, Any]:
    """One line of the table, as plain data."""
    from budwood.core import named_parameters

    own = named_parameters(model, RESULT)
    ranks, errors = [result.ranks[path] for path in paths], [result.errors[path] for path in paths]
    return {
        "role": role, "sites": len(paths), "ranks": sorted(set(ranks)),
        "parameters": sum(own[f"{path}.{letter}"].numel() for path in paths for letter in "AB"),
        "worst_error": max(errors), "mean_error": sum(errors) / len(errors),
    }  # fmt: skip


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    low, high = facts["ranks"][0], facts["ranks"][-1]
    rank = low if low == high else f"{low} to {high}"
    errors = (f"{facts[key]:.2%}" for key in ("worst_error", "mean_error"))
    return (facts["role"], facts["sites"], rank, amount(facts["parameters"]), *errors)
