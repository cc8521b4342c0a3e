"""A model with some rows of its vocabulary: embeddings, output embedding and its bias, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from budwood.core import adapters
from budwood.errors import BadConfig, WrongOrder
from budwood.prune.ids import configured

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def rows_of(model: PreTrainedModel) -> int:
    """How many tokens the model has rows for.  Raises BadConfig or WrongOrder for a model that cannot lose any."""
    if adapters(model):
        raise WrongOrder(
            f"adapters are attached ({', '.join(adapters(model))}); merge or detach them, then cut the vocabulary"
        )
    settings = model.config.get_text_config().to_dict()
    if settings.get("quantization_config") is not None:
        raise WrongOrder("the model is quantised; load it in full precision, cut its vocabulary, then quantise it")
    embedding = model.get_input_embeddings()
    rows = settings.get("vocab_size")
    if not isinstance(embedding, nn.Embedding) or not isinstance(rows, int):
        raise BadConfig(
            f"{type(model).__name__} has no table with a row for each token (its embedding is a "
            f"{type(embedding).__name__}), so its vocabulary cannot be cut; leave the vocabulary whole"
        )
    if embedding.num_embeddings != rows:
        raise BadConfig(
            f"{type(model).__name__} has {embedding.num_embeddings} embeddings and its config says vocab_size {rows}; "
            f"set config.vocab_size = {embedding.num_embeddings} if the weights are right"
        )
    return rows


def fewer_rows(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new model of the same class with the kept rows of the vocabulary, in that order; the old one is left alone.

    The class itself says what has a row for each token: what changes its shape when the config's vocabulary does.
    Raises BadConfig where the class does not follow its config so.
    """
    config, generation = configured(model, {old: new for new, old in enumerate(kept)})
    smaller = _empty(model, config)
    old, index = dict(_tensors(model)), torch.tensor(kept, device=model.device)
    made: dict[int, Tensor] = {}
    shapes = {name: tensor.shape for name, tensor in _tensors(smaller)}
    if strange := sorted(shapes.keys() ^ old.keys()):
        raise BadConfig(
            f"{len(strange)} weights of the model are not those that a {type(model).__name__} has by its config, "
            f"{strange[0]} among them; merge or take off what was put into it, then cut the vocabulary"
        )
    for name, tensor in old.items():
        if id(tensor) not in made:  # one copy of what is tied
            made[id(tensor)] = _cut(name, tensor, shapes[name], index)
        path, _, leaf = name.rpartition(".")
        setattr(smaller.get_submodule(path), leaf, made[id(tensor)])
    if generation is not None:
        smaller.generation_config = generation
    return smaller.train(model.training)


def parameters_with(model: PreTrainedModel, tokens: int) -> int:
    """How many parameters the model would have with so many tokens."""
    config = configured(model, dict.fromkeys(range(tokens), 0))[0]
    return sum(parameter.numel() for parameter in _empty(model, config).parameters())


def _empty(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The model's class, built from another config and without values."""
    with torch.device("meta"):
        return type(model)(config)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer by every name that it has."""
    return chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))


def _cut(name: str, tensor: Tensor, shape: torch.Size, index: Tensor) -> Tensor:
    """A copy of the tensor with the kept rows along the one axis in which it is to differ."""
    axes = [axis for axis, size in enumerate(tensor.shape) if tensor.ndim == len(shape) and size != shape[axis]]
    fits = tensor.ndim == len(shape) and (not axes or (len(axes) == 1 and shape[axes[0]] == len(index)))
    if not fits:
        raise BadConfig(
            f"{name} is {list(tensor.shape)}, and would be {list(shape)} with {len(index)} tokens, so which of its "
            "numbers belong to tokens is not clear; leave the vocabulary whole"
        )
    copy = tensor.detach().index_select(axes[0], index.to(tensor.device)) if axes else tensor.detach().clone()
    return nn.Parameter(copy, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
