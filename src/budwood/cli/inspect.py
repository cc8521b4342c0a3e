"""`budwood inspect`: the places of a model, their roles, and what each method would train there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from budwood.cli.options import Talk
from budwood.cli.output import Sink, Table, amount, size
from budwood.errors import BudwoodError, NotAvailable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from budwood.anatomy import Anatomy, Site, SubLayer
    from budwood.core import Method

ADAM_BYTES = 12
"""Bytes a trained parameter needs beside its value: a gradient and two moments, in float32."""


def inspect(
    model: str, /, *, method: Annotated[tuple[str, ...], Parameter(negative=())] = (), sites: bool = False,
    offline: bool = False, trust_remote_code: bool = False, talk: Talk | None = None,
) -> int:  # fmt: skip
    """What a model is made of, and what each method would train in it.

    Parameters
    ----------
    model: str
        A folder, a hub id, a .gguf file or a demo name.
    method: str
        Count for this method, as lora:rank=16,targets=all; repeat it for several. [every method]
    sites: bool
        One line for every place, not one for each role.
    offline: bool
        Never use the network.
    trust_remote_code: bool
        Run the code that the model brings along.
    """
    sink = (talk or Talk()).sink()
    loaded = load_any(model, offline=offline, trust_remote_code=trust_remote_code, sink=sink)

    from budwood.anatomy import discover  # after the model was found: this imports torch

    anatomy = discover(loaded)
    total, num_bytes = _weights(loaded)
    blocks = len({(site.stack, site.layer) for site in anatomy.sites if site.layer is not None})
    sink.data(f"{model}: {type(loaded).__name__}, {amount(total)} parameters ({size(num_bytes)}), {blocks} blocks")
    sink.data("")
    sink.show(_site_table(anatomy.sites) if sites else _role_table(anatomy.sites))
    if anatomy.sublayers:
        sink.data("")
        sink.show(_sublayer_table(anatomy.sublayers, each=sites))
    for why in (f"{why}: {path}" for path, why in _oddities(anatomy)):
        sink.data(why)
    for why in anatomy.unknown_sublayers:
        sink.data(f"where its output is added is not clear: {why}")
    counts = [_count(loaded, anatomy, one, num_bytes) for one in _methods(method)]
    sink.data("")
    sink.show(Table(("method", ">trains", ">share", ">places", ">memory", ""), [_count_row(c, total) for c in counts]))
    sink.say("memory: weights, gradients, optimizer; `budwood train ... --dry-run` measures with activations")
    sink.result({
        "model": model, "class": type(loaded).__name__, "parameters": total, "bytes": num_bytes, "blocks": blocks,
        "hidden_size": anatomy.hidden_size, "roles": dict(Counter(site.role for site in anatomy.sites)),
        "sites": [_site_facts(site) for site in anatomy.sites], "unresolved": anatomy.unresolved,
        "sublayers": [asdict(one) for one in anatomy.sublayers], "unknown_sublayers": anatomy.unknown_sublayers,
        "uncalled": anatomy.uncalled, "methods": counts,
    })  # fmt: skip
    return 0


def load_any(model: str, *, offline: bool, trust_remote_code: bool, sink: Sink) -> PreTrainedModel:
    """The model as a causal LM where it is one, else as a classifier with the labels it has (or two new ones)."""
    from budwood.assets import load_model, resolve_model, stored_labels

    ref = resolve_model(model, offline=offline, say=sink.say)
    try:
        return load_model(ref, task="causal-lm", trust_remote_code=trust_remote_code)
    except NotAvailable:
        labels = stored_labels(ref, trust_remote_code=trust_remote_code) or ("0", "1")
        return load_model(ref, task="classification", labels=labels, trust_remote_code=trust_remote_code)


def _weights(model: PreTrainedModel) -> tuple[int, int]:
    from budwood.records import count

    return count(model.parameters())


def _methods(typed: Iterable[str]) -> list[tuple[str, Method]]:
    """The methods to count for, each with the words for it."""
    from budwood.core import Method
    from budwood.methods import METHODS, parse_method

    alone = [method.name for method in METHODS if method.plan is Method.plan]  # a fusion needs others to be there
    return [(word, parse_method(word)) for word in list(typed) or alone]


def _role_table(sites: Iterable[Site]) -> Table:
    """One line a role: how many, which shapes, and the path of the first with its number left out."""
    groups: dict[tuple[str, str, int, int], list[Site]] = {}
    for site in sites:
        groups.setdefault((site.role, site.kind, site.in_features, site.out_features), []).append(site)
    rows = [
        (role, len(found), kind, _shape(found[0]), _pattern(found), " + ".join(part.role for part in found[0].parts))
        for (role, kind, _, _), found in groups.items()
    ]
    return Table(("role", ">sites", "kind", ">in -> out", "path", "parts"), rows)


def _sublayer_table(sublayers: Iterable[SubLayer], *, each: bool) -> Table:
    """Where bottleneck adapters act: what they find there, one line for all sub-layers of a kind."""
    groups: dict[tuple[str, str, str, str], int] = {}
    for one in sublayers:
        paths = [one.path, one.r[0], one.norm or ""]
        place, residual, norm = paths if each else [re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path) for path in paths]
        key = (one.role, place, f"{one.r[1]} of {residual}", norm or "none (pre-LN)")
        groups[key] = groups.get(key, 0) + 1
    rows = [(role, found, place, residual, norm) for (role, place, residual, norm), found in groups.items()]
    return Table(("sub-layer", ">places", "output", "residual", "norm after it"), rows)


def _site_table(sites: Iterable[Site]) -> Table:
    rows = [(site.path, site.role, site.kind, _shape(site)) for site in sites]
    return Table(("path", "role", "kind", ">in -> out"), rows)


def _shape(site: Site) -> str:
    return f"{site.in_features} -> {site.out_features}" if site.in_features or site.out_features else ""


def _pattern(sites: list[Site]) -> str:
    """The common form of paths: model.layers.*.self_attn.q_proj."""
    forms = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", site.path) for site in sites)
    shown = list(forms)[:2]
    return ", ".join(shown) + (f" and {len(forms) - 2} more" if len(forms) > 2 else "")


def _oddities(anatomy: Anatomy) -> list[tuple[str, str]]:
    """Paths that deserve a word, and the word."""
    return [(path, "no role found for the linear") for path in anatomy.unresolved] + [
        (path, "not run as a module, so nothing can be attached there") for path in anatomy.uncalled
    ]


def _count(model: PreTrainedModel, anatomy: Anatomy, named: tuple[str, Method], base_bytes: int) -> dict[str, Any]:
    """What a method would train here, or why it cannot."""
    from budwood.core import attach, detach, parameters
    from budwood.records import count

    word, method = named
    try:
        if unfrozen := method.unfreeze(model, anatomy):  # counted without the copy that attaching keeps
            own = dict(model.named_parameters())
            trained, num_sites = sum(own[name].numel() for name in unfrozen), len(unfrozen)
            held = base_bytes + trained * (4 + ADAM_BYTES)
        else:
            adapter = attach(model, method, name="inspected", anatomy=anatomy)
            trained, num_sites = count(parameters(model, "inspected"))[0], len(adapter.sites)
            detach(model, "inspected")
            held = base_bytes + trained * (4 + ADAM_BYTES)
    except BudwoodError as error:
        return {"method": word, "error": str(error)}
    return {"method": word, "trained": trained, "sites": num_sites, "bytes": held, "learning_rate": method.rate}


def _count_row(counted: dict[str, Any], total: int) -> tuple[object, ...]:
    if "error" in counted:
        return (counted["method"], "", "", "", "", counted["error"])
    share = counted["trained"] / total
    return (counted["method"], amount(counted["trained"]), f"{share:.2%}", counted["sites"], size(counted["bytes"]), "")


def _site_facts(site: Site) -> dict[str, Any]:
    return {
        "path": site.path, "role": site.role, "stack": site.stack, "layer": site.layer, "kind": site.kind,
        "in_features": site.in_features, "out_features": site.out_features, "parts": [part.role for part in site.parts],
    }  # fmt: skip
