"""What identifies the content of a cache of teachers: its rows, and what it was made from, as hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from budwood.core import base_state_dict, named_parameters, names
from budwood.core.registry import registry_of
from budwood.data import IGNORE, Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a teacher's words depend on besides the rows. '' is not known, and fits anything."""

    tokenizer: str
    """`hash_of_tokenizer`."""
    template: str
    """How turns were written: chat, plain or none (`Encoded.template`)."""
    task: str = ""
    """The task of the rows."""
    teacher: str = ""
    """`LiveTeacher.fingerprint`."""

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What is other in `found`, in words."""
        return [
            f"its {name} is {str(found.get(name))[:12]} instead of {value[:12]}"
            for name, value in asdict(self).items()
            if value and found.get(name) != value
        ]


def keys_of(batch: Batch) -> list[bytes]:
    """One for each row: the same for the same tokens and supervised positions, whatever batch and padding."""
    ids, mask = batch.input_ids.cpu(), batch.attention_mask.cpu()
    labels = None if batch.labels is None or batch.labels.ndim == 1 else batch.labels.cpu()
    types = None if batch.token_type_ids is None else batch.token_type_ids.cpu()
    words = b"" if batch.words is None else batch.words.cpu().numpy().tobytes()
    keys = []
    for row, length in enumerate(batch.lengths):
        start = int(mask[row].argmax())
        here = slice(start, start + length)
        there = here if batch.target_lengths is None else slice(0, batch.target_lengths[row])
        parts = [_bytes(ids[row, here]), b"" if labels is None else _bytes(labels[row, there]), words]
        parts.append(b"" if types is None or not bool(types[row].any()) else _bytes(types[row, here]))
        parts.append(b"" if batch.places is None else str(int(batch.places[row]) - start).encode())
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        keys.append(digest.digest())
    return keys


def counts_of(batch: Batch) -> list[int]:
    """Supervised positions of each row, for tasks other than questions."""
    if batch.labels is None or batch.labels.ndim == 1:
        return [1] * len(batch)
    counts: list[int] = (batch.labels[:, int(batch.shift) :] != IGNORE).sum(dim=1).tolist()
    return counts


def fingerprint_of(model: Any) -> str:
    """sha256 of the plan in force and of all weights that act under it: those of other adapters do not count."""
    registry = registry_of(model)
    plan = registry.switch.plan if registry else None
    digest = hashlib.sha256(repr(plan).encode())
    weights: dict[str, Tensor] = dict(base_state_dict(model))
    for adapter in dict.fromkeys(names(plan)):
        weights |= {f"{adapter} {name}": weight for name, weight in named_parameters(model, adapter).items()}
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 of its tokens with their ids, and of what is special."""
    content = sorted(tokenizer.get_vocab().items()), sorted(map(str, tokenizer.special_tokens_map.items()))
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _bytes(row: Tensor) -> bytes:
    return row.numpy().tobytes()
