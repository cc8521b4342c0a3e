"""What readers of other tools' folders have in common."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from budwood.anatomy import is_called
from budwood.core import Method


@dataclass(frozen=True)
class Read:
    """What a folder says: the method, and its tensors by our names (`<site path>.<letter>`)."""

    method: Method
    tensors: dict[str, Tensor]
    base: dict[str, Tensor] = field(default_factory=dict)
    """Weights of the base that the folder repeats, as adapted embeddings, by name: they have to be the model's."""


def compress(paths: Iterable[str], names: Iterable[str], everything: Iterable[str]) -> list[str]:
    """The names, where they select exactly `paths` among all modules; else the whole paths."""
    paths, names = list(paths), list(dict.fromkeys(names))
    matched = {path for path in everything if any(is_called(path, name) for name in names)}
    return names if matched == set(paths) else paths


def last_names(paths: Iterable[str]) -> list[str]:
    """The last parts of module paths, each once."""
    return sorted({path.rpartition(".")[2] for path in paths})


def has_position_bias(model: nn.Module) -> bool:
    """Whether the model adds a bias by position to attention scores, from a table (T5)."""
    return any(path.endswith("relative_attention_bias") for path, _ in model.named_modules())
