"""Configurations of smaller models: which fields say a size, and what the class makes of them.

Names only propose. Whether a field was the right one is seen from the class, built from the edited configuration on the
meta device, as it will be when a saved model is loaded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

FIELDS: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "ffn": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "d_ff", "hidden_dim", "n_inner"),
    "heads": ("num_attention_heads", "num_heads", "n_head", "n_heads"),
    "groups": ("num_key_value_heads", "num_kv_heads"),
    "hidden": (
        "hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "pooler_hidden_size",
        "attention_hidden_size",
    ),
}  # fmt: skip
"""What the configurations of transformers call a size. Those that say the old size are given the new one."""
OF_STACK: dict[str, tuple[str, ...]] = {
    "layers": ("{}_layers", "num_{}_layers"),
    "ffn": ("{}_ffn_dim",),
    "heads": ("{}_attention_heads",),
}
"""The same where an encoder-decoder has one for each stack: these count before the others."""
UNSAID: dict[str, tuple[str, ...]] = {"ffn": ("n_inner",), "head size": ("head_dim", "attention_head_size")}
"""Fields that a class takes, and works out from others where they are not said."""
PER_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "attention_layers")
"""Lists with one entry for each block."""
NUMBERS = ("mlp_only_layers",)
"""Lists of numbers of blocks."""
FIRST = ("first_k_dense_replace", "max_window_layers")
"""How many blocks from the first on are of a kind."""


class Misfit(Exception):
    """Why a class cannot be built at some sizes, in words that go on after "because". Never leaves `prune`."""


def names_of(config: PreTrainedConfig, size: str, stack: str) -> tuple[str, ...]:
    """The fields of this configuration that may say a size of a stack."""
    said = config.to_dict()
    own = [pattern.format(stack) for pattern in OF_STACK.get(size, ())]
    return tuple(n for n in own if n in said) or tuple(n for n in FIELDS[size] if n in said)


def said(config: PreTrainedConfig, size: str, stack: str) -> int | None:
    """What the configuration says of a size, None where it says nothing."""
    values = (getattr(config, name) for name in names_of(config, size, stack))
    return next((value for value in values if isinstance(value, int)), None)


def resized(
    config: PreTrainedConfig,
    sizes: Mapping[tuple[str, str], tuple[int, int]],
    kept: Mapping[str, tuple[int, ...]],
    explicit: Mapping[str, int],
) -> PreTrainedConfig:
    """A copy of the configuration with other sizes.

    sizes: (what, stack) to old and new;  kept: stack to blocks that stay;  explicit: what of `UNSAID` is to be said
    Raises Misfit where one field would have to say two things, or the class of the configuration refuses.
    """
    fields: dict[str, Any] = {}
    for (what, stack), (old, new) in sizes.items():
        for name in names_of(config, what, stack):
            if getattr(config, name) != old:
                continue
            if fields.setdefault(name, new) != new:
                raise Misfit(f"its {name} is one for all stacks, and would have to be {fields[name]} and {new}")
    fields |= {name: value for what, value in explicit.items() for name in UNSAID[what] if name not in fields}
    for stack, layers in kept.items():
        fields |= _per_layer(config, sizes["layers", stack][0], layers)
    edited = copy.deepcopy(config)
    try:
        for name, value in fields.items():
            setattr(edited, name, value)
        return type(config).from_dict(edited.to_dict(), attn_implementation=config._attn_implementation)
    except Exception as error:  # whatever a configuration raises where its own checks fail
        raise Misfit(f"its configuration refuses ({str(error).strip().splitlines()[-1].strip()})") from error


def _per_layer(config: PreTrainedConfig, depth: int, layers: tuple[int, ...]) -> dict[str, Any]:
    """What says something of each block, for the blocks that stay."""
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        if name in PER_LAYER and isinstance(value, list | tuple) and len(value) == depth:
            found[name] = [value[layer] for layer in layers]
        elif name in NUMBERS and value:
            found[name] = [new for new, layer in enumerate(layers) if layer in value]
        elif name in FIRST and isinstance(value, int) and value <= depth:
            found[name] = sum(layer < value for layer in layers)
    if "attention_types" in config.to_dict() and "attention_layers" in found:  # GPT-Neo's short form of the list
        found["attention_types"] = [[found["attention_layers"], 1]]
    return found


def built(kind: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    """The class built from a configuration, without memory for its weights. Raises Misfit where it refuses."""
    try:
        with torch.device("meta"):
            model = kind(copy.deepcopy(config))
            model.initialize_weights()  # as loading does, for what a checkpoint lacks
            return model
    except Exception as error:  # whatever a class raises at sizes that do not suit it
        raise Misfit(f"its class refuses these sizes ({str(error).strip().splitlines()[0]})") from error


def listed(names: Iterable[str]) -> str:
    """A few of the names, for a sentence."""
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
