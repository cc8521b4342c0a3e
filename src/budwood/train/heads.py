"""Parts of a model that its checkpoint does not have: drawn at random, so they must be trained and saved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from budwood.anatomy import Anatomy
from budwood.core import Method
from budwood.errors import BadConfig


def new_modules(model: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Paths of modules whose weights differ between two loads from different seeds: those that nobody stored."""
    theirs = dict(other.named_parameters())
    drawn = [name for name, p in model.named_parameters() if not torch.equal(p, theirs[name])]
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in drawn))


def train_new_modules(method: Method, model: nn.Module, anatomy: Anatomy, new: tuple[str, ...]) -> Method:
    """`method`, training these modules in full beside what it trains already, so that they are saved with it."""
    missing = _untrained(method, model, anatomy, new)
    if not missing:
        return method
    heads = tuple(site.path for site in method.trained_sites(anatomy))
    return replace(method, trained=(*heads, *missing))


def refuse_untrained(method: Method, model: nn.Module, anatomy: Anatomy, new: tuple[str, ...]) -> None:
    """Raise BadConfig where a language model's head is new and stays as it was drawn: it says nothing about words."""
    missing = _untrained(method, model, anatomy, new)
    if missing:
        raise BadConfig(
            f"{type(model).__name__}: {', '.join(missing)} is not in the checkpoint, so the head that names words "
            f"would stay random, and nothing could be learned through it. Take a checkpoint that has its head, or "
            f"train it, too: --method {method.name}:trained={'+'.join(missing)}"
        )


def _untrained(method: Method, model: nn.Module, anatomy: Anatomy, new: tuple[str, ...]) -> list[str]:
    """Those of the new modules that the method does not train in full."""
    in_place = method.unfreeze(model, anatomy)
    heads = tuple(site.path for site in method.trained_sites(anatomy))
    return [
        path
        for path in new
        if path not in heads and not all(f"{path}.{key}" in in_place for key, _ in _own(model, path))
    ]


def _own(model: nn.Module, path: str) -> list[tuple[str, nn.Parameter]]:
    return list(model.get_submodule(path).named_parameters(recurse=False))
