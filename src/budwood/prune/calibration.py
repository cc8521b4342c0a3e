"""Forwards over calibration text: what modules read and return where it is text, and losses without all the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.data import IGNORE, Batch
from budwood.errors import BadConfig, BadData
from budwood.evaluate import span_logits, span_losses
from budwood.evaluate.head import without_cache
from budwood.evaluate.inputs import class_logits, fitted

Before = Callable[[Tensor], Tensor | None]
"""Given what a module reads; returns what it reads instead, or None."""
After = Callable[[Tensor, Tensor], Tensor | None]
"""Given what a module reads and returns; returns what it returns instead, or None."""


@contextmanager
def listening(
    model: nn.Module, before: Sequence[tuple[str, Before]], after: Sequence[tuple[str, After]] = ()
) -> Iterator[None]:
    """Calls the functions, in order, at the modules of these paths, with their first argument and (first) result."""
    handles = [model.get_submodule(p).register_forward_pre_hook(_entry(f), with_kwargs=True) for p, f in before]
    handles += [model.get_submodule(p).register_forward_hook(_exit(f), with_kwargs=True) for p, f in after]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entry(function: Before) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        new = function(_read(args, kwargs))
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    return hook


def _exit(function: After) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        new = function(_read(args, kwargs), output[0] if isinstance(output, tuple) else output)
        return output if new is None else (new, *output[1:]) if isinstance(output, tuple) else new

    return hook


def _read(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value


def text(batch: Batch, stack: str) -> Tensor:
    """Which positions of a stack's states are text, and not padding: [B, T] bool."""
    written = batch.decoder_input_ids
    if stack == "encoder" or written is None:
        return batch.attention_mask != 0
    ends = batch.target_lengths or (written.shape[1],) * len(batch)
    return torch.arange(written.shape[1], device=written.device) < torch.tensor(ends, device=written.device)[:, None]


def rows_of(states: Tensor, there: Tensor) -> Tensor:
    """states: [B, T, d] or [B T, d], there: [B, T] bool -> [positions of text, d]."""
    flat = states.reshape(-1, states.shape[-1])
    if len(flat) != there.numel():
        raise BadConfig(
            f"a block reads {len(flat)} positions where the batch has {there.numel()}, so padding looks like text; "
            "detach prompts, and load the model with attn_implementation=sdpa"
        )
    return flat[there.flatten().to(flat.device)]


def summed_loss(model: Any, batch: Batch, *, after: int = 0) -> Tensor:
    """Cross-entropy of all labels behind the first `after` rows, summed: [], in nats.

    Logits are made where labels stand, and nowhere else. Raises BadData for a batch without labels.
    """
    batch = fitted(model, batch.to(model.device))
    if batch.spans is not None:
        return span_losses(span_logits(model, batch), batch)[after:].sum()
    if batch.labels is None:
        raise BadData("a batch without labels has no loss; encode rows with answers or labels")
    if batch.labels.ndim == 1:
        logits, labels = class_logits(model, batch)[after:], batch.labels[after:]
    else:
        labels = batch.labels[:, int(batch.shift) :]
        row, place = (labels[after:] != IGNORE).nonzero(as_tuple=True)  # [positions] each
        logits, labels = logits_at(model, batch, row + after, place), labels[row + after, place]
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def logits_at(model: Any, batch: Batch, row: Tensor, place: Tensor) -> Tensor:
    """Logits at some positions, [n, vocab]; for a model without an output embedding, whatever it returns for the rows.

    row, place: [n] int64
    """
    head = model.get_output_embeddings()
    chosen: list[Tensor] = []

    def choose(states: Tensor) -> Tensor | None:
        if states.ndim != 3:
            return None
        chosen.append(states)
        return states[row, place][None]

    inputs, extra = batch.inputs(), without_cache(model)
    if head is None:
        found: Tensor = model(**inputs, **extra)[0]
        return found
    path = next(path for path, module in model.named_modules() if module is head)
    with listening(model, [(path, choose)]):
        logits: Tensor = model(**inputs, **extra).logits
    return logits[0] if chosen else logits[row, place]


def joined(model: Any, batches: Iterable[Batch], limit: int) -> Batch:
    """All rows of the batches as one batch, padded on the right, as far as `limit` tokens (padding included) go.

    Raises BadData where there are none.
    """
    found: list[Batch] = []
    for batch in batches:
        batch = fitted(model, batch.to(model.device))
        widths = [_width(b) for b in (*found, batch)]
        if found and max(widths) * sum(map(len, (*found, batch))) > limit:
            break
        found.append(batch)
    if not found:
        raise BadData("there is no calibration text; give at least one row, better a few hundred")
    pad = model.config.get_text_config().pad_token_id or 0
    lengths = [batch.target_lengths for batch in found]
    return replace(
        found[0],
        input_ids=torch.cat(_level([batch.input_ids for batch in found], pad)),
        attention_mask=torch.cat(_level([batch.attention_mask for batch in found], 0)),
        labels=_stacked([batch.labels for batch in found], IGNORE),
        token_type_ids=_stacked([batch.token_type_ids for batch in found], 0),
        decoder_input_ids=_stacked([batch.decoder_input_ids for batch in found], pad),
        spans=_stacked([batch.spans for batch in found], 0),
        places=_stacked([batch.places for batch in found], 0),
        rows=tuple(row for batch in found for row in batch.rows),
        lengths=tuple(length for batch in found for length in batch.lengths),
        parts=tuple(part for batch in found for part in batch.parts),
        target_lengths=None if lengths[0] is None else tuple(length for some in lengths for length in some or ()),
    )


def _width(batch: Batch) -> int:
    """Tokens of a row, read and written."""
    return batch.input_ids.shape[1] + (0 if batch.decoder_input_ids is None else batch.decoder_input_ids.shape[1])


def _stacked(parts: Sequence[Tensor | None], fill: int) -> Tensor | None:
    """[B, T] or [B] each, or None each -> [sum of B, widest T] or [sum of B], or None."""
    tensors = [part for part in parts if part is not None]
    return torch.cat(_level(tensors, fill)) if tensors else None


def _level(tensors: Sequence[Tensor], fill: int) -> list[Tensor]:
    """[B, T] each -> [B, widest T] each; [B] as they are."""
    widest = max(tensor.shape[-1] for tensor in tensors)
    return [t if t.ndim == 1 else F.pad(t, (0, widest - t.shape[1]), value=fill) for t in tensors]
