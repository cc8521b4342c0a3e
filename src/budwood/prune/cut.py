"""A smaller model of the same class out of a larger one: the configuration follows, every tensor is accounted for."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from budwood.anatomy import Anatomy
from budwood.errors import BadConfig
from budwood.prune.asked import check, dimensions_of
from budwood.prune.fit import Fit, Subject, fit
from budwood.prune.kept import CUT_HERE, Kept, Structure
from budwood.prune.norms import rescaled
from budwood.prune.proof import prove
from budwood.prune.sizes import Misfit
from budwood.prune.structure import known, outline, subject_of, why_not


def cut(
    model: PreTrainedModel, kept: Kept, *, anatomy: Anatomy | None = None, weights: Mapping[str, Tensor] | None = None
) -> PreTrainedModel:
    """A new model with what is kept of `model`, which stays as it is.

    weights: values that some parameters are to have before they are cut, whole, by their names (as `refit` gives them)
    Norms over fewer channels: their weights grow by sqrt(before / after), which is exact where the channels that go
    are zero; those that do carry something are for the recovery to make up for.
    Raises BadConfig where the model cannot be cut so, naming what of it can be; VerificationFailed where the result
    does not compute what the uncut model does with closed gates.
    """
    subject = subject_of(model, anatomy)
    structure = outline(subject)
    check(kept, structure)
    _check_weights(subject, weights or {})
    try:
        for dimension in dimensions_of(kept, structure):
            if (why := known(subject, structure, dimension)) is not None:
                raise Misfit(why)
        found = fit(subject, structure, kept)
    except Misfit as why:
        raise BadConfig(_refusal(subject, structure, kept, str(why))) from why
    new = _built(model, found)
    _fill(new, subject, found, kept, weights or {})
    prove(subject, found, new, kept, is_exact=not weights and kept.channels is None)
    return new


def _check_weights(subject: Subject, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        own = subject.state.get(name)
        if own is None or own.shape != value.shape:
            expected = "a name of the uncut model" if own is None else f"the whole {tuple(own.shape)}"
            raise BadConfig(f"weights has {name} {tuple(value.shape)}; give {expected}")


def _refusal(subject: Subject, structure: Structure, kept: Kept, why: str) -> str:
    """What was asked, why it is not to be had, and what is."""
    asked = dimensions_of(kept, structure)
    if len(asked) == 1:  # what holds for any size says more than what this one met first
        why = why_not(subject, structure, asked[0]) or why
    can = [d for d in CUT_HERE if why_not(subject, structure, d) is None]
    can = [f"{d} (to other sizes)" if d in asked else d for d in can]
    name = subject.model.config.model_type
    return f"{name} cannot be cut so in {' and '.join(asked)}: {why}; it can be cut in: {', '.join(can) or 'nothing'}"


def _built(model: PreTrainedModel, found: Fit) -> PreTrainedModel:
    """The class at its new sizes, where and as the model is; its weights are not worth anything yet."""
    with torch.random.fork_rng(devices=[]), torch.device(model.device), no_init_weights():
        new = type(model)(copy.deepcopy(found.config))
    new.tie_weights()
    if model.can_generate() and model.generation_config is not None:
        new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


def _fill(new: PreTrainedModel, subject: Subject, found: Fit, kept: Kept, weights: Mapping[str, Tensor]) -> None:
    """Give every tensor its values, those that several modules share once."""
    parameters = dict(subject.model.named_parameters(remove_duplicate=False))
    gain = {} if kept.channels is None else rescaled(subject, found.axes, kept.channels)
    filled: dict[int, str] = {}
    with torch.no_grad():
        for name, old in found.names.items():
            path, _, key = name.rpartition(".")
            module = new.get_submodule(path)
            target: Any = module._parameters.get(key)
            source = parameters.get(old)
            if id(target) in filled:
                _check_tied(subject, old, filled[id(target)])
                continue
            value = gain.get(old, weights.get(old, subject.state[old])).detach()
            value = _selected(value, found.axes.get(old, {})).to(subject.state[old])
            if target is None or source is None:
                module._buffers[key] = value
                continue
            target.data = value
            target.requires_grad_(source.requires_grad)
            filled[id(target)] = old


def _selected(value: Tensor, axes: Mapping[int, Sequence[int]]) -> Tensor:
    """The entries that stay, in memory of their own."""
    for axis, index in axes.items():
        value = value.index_select(axis, torch.tensor(index, device=value.device))
    return value if axes else value.clone()


def _check_tied(subject: Subject, name: str, other: str) -> None:
    if subject.state[name].data_ptr() != subject.state[other].data_ptr():
        raise BadConfig(
            f"{name} and {other} are two weights, and the configuration says that they are one; set "
            "config.tie_word_embeddings = False"
        )
