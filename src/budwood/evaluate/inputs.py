"""What one model is given of a batch, and its logits where they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from budwood.core import pseudo_tokens
from budwood.data import Batch
from budwood.errors import BadConfig


def fitted(model: Any, batch: Batch) -> Batch:
    """The batch as this model takes it with the plan in force; most batches are so already.

    An encoder-decoder gets its decoder's inputs. Pseudo tokens are left out where no adapter stands in for them.
    Raises BadConfig for a batch of another kind of model, or with more pseudo tokens than the adapter has.
    """
    own = bare(model)
    if batch.pseudo:
        filled = pseudo_tokens(own)
        if batch.pseudo > filled > 0:
            raise BadConfig(
                f"the pattern has {batch.pseudo} <p> and the adapter {filled} pseudo tokens; write {filled} <p>"
            )
        batch = batch if filled else batch.without_pseudo()
    if batch.labels is None or batch.labels.ndim != 2 or batch.decoder_input_ids is not None:
        return batch
    if batch.target_lengths is None:
        if batch.shift and own.config.is_encoder_decoder:
            raise BadConfig(
                f"{type(own).__name__} is an encoder-decoder, and these rows are for a decoder; "
                "read them with task seq2seq"
            )
        return batch
    if not own.config.is_encoder_decoder:
        raise BadConfig(
            f"{type(own).__name__} is no encoder-decoder, and these rows have a source and a target apart; "
            "read them with task causal-lm"
        )
    return replace(batch, decoder_input_ids=own.prepare_decoder_input_ids_from_labels(batch.labels))


def class_logits(model: Any, batch: Batch) -> Tensor:
    """[B, classes] of a classifier, or of a language model as a cloze asks it: the mean of each class' words."""
    batch = fitted(model, batch)
    if batch.places is None or batch.words is None:
        logits: Tensor = model(**batch.inputs()).logits
        return logits
    positions, column = batch.places.unique(return_inverse=True)  # [K], [B]
    vocabulary = logits_at(model, batch, positions)[torch.arange(len(batch), device=column.device), column]  # [B, V]
    there = batch.words >= 0  # [classes, most words]
    words = vocabulary[:, batch.words.clamp(min=0)].float()  # [B, classes, most words]
    return (words * there).sum(dim=-1) / there.sum(dim=-1)


def logits_at(model: nn.Module, batch: Batch, positions: Tensor) -> Tensor:
    """[B, K, V] logits at the given positions of every row, counted from the end where the model can skip the rest.

    positions: [K] int64 in [0, T), of what the decoder writes for an encoder-decoder
    """
    batch = fitted(model, batch)
    known = forward_arguments(type(bare(model)).forward)
    extra: dict[str, Any] = {"use_cache": False} if "use_cache" in known else {}
    if "logits_to_keep" in known:
        written = batch.input_ids if batch.decoder_input_ids is None else batch.decoder_input_ids
        return model(**batch.inputs(), **extra, logits_to_keep=positions - written.shape[1]).logits
    return model(**batch.inputs(), **extra).logits[:, positions]


@cache
def forward_arguments(forward: Callable[..., Any]) -> frozenset[str]:
    """Names of the arguments that a model class' forward takes."""
    return frozenset(inspect.signature(forward).parameters)


def bare(model: Any) -> Any:
    """The model inside a DistributedDataParallel wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
