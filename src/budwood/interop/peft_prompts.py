"""PEFT's folders of prompts and prefixes: the only file that knows its names for PREFIX_TUNING, PROMPT_TUNING,
P_TUNING and MULTITASK_PROMPT_TUNING.

PEFT numbers the text from P on, after its prefix, and never turns a prefix's keys. A prefix for text that starts at 0
is written with its keys turned by P positions, in float64 so that reading turns them back to the same bits.
In an encoder-decoder PEFT's prefix is the decoder's own attention's alone, and layer l takes rows 4l and 4l + 1 modulo
their number; with twice as many layers in the configuration every layer has rows of its own. Its multitask prompts of
an encoder-decoder stand before the decoder's text, too, while they are trained, but not when it generates: they are
read as it generates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site, probe
from budwood.core import Adapter, Delta, Method, attach, delta_at, detach, using
from budwood.core.cache_shim import CacheCall
from budwood.core.entrance import input_site, owner_of
from budwood.core.registry import registry_of
from budwood.core.trained import Trained
from budwood.errors import BadCheckpoint
from budwood.interop.peft import base_name, containers, require_site, task_of
from budwood.interop.reading import Read, has_position_bias
from budwood.interop.rotary import Turn, turns
from budwood.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from budwood.methods.prefix import Prefix
from budwood.methods.words import InText

_PREFIX = "base_model."
_REFUSED = {
    "CPT": "it mixes trained prompts with the tokens of fixed examples and bounds how far they move",
    "CARTRIDGE": "it is a cache of a long text with frozen tokens",
}
_NAMES: dict[str, tuple[str, ...]] = {
    "PREFIX_TUNING": ("prompt_embeddings",),
    "PROMPT_TUNING": ("prompt_embeddings",),
    "P_TUNING": ("prompt_embeddings",),
    "MULTITASK_PROMPT_TUNING": ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"),
}
"""The types that are read, and their tensors."""
_SIZES = ("num_virtual_tokens", "token_dim")
_KNOWN = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "num_attention_heads", "num_layers",
    "num_transformer_submodules", "peft_type", "peft_version", "revision", "task_type", "init_weights",
    "encoder_hidden_size", "encoder_num_layers", "encoder_dropout", "encoder_reparameterization_type",
    "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
    "prompt_tuning_init_state_dict_path", "prompt_tuning_init_task", "num_ranks", "num_tasks", *_SIZES,
}  # fmt: skip
"""Fields whose meaning is known: the sizes are checked, the others say how it was trained."""


@dataclass(frozen=True)
class Form:
    """An adapter in PEFT's form: configuration, tensors, and what our own record says beside them."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    own: dict[str, Any] = field(default_factory=dict)


def knows(config: Mapping[str, Any]) -> bool:
    """True for a configuration that this file can read, or refuse with a reason."""
    return config.get("peft_type") in (*_NAMES, *_REFUSED)


# ---------------------------------------------------------------------------------------------------------- reading
def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: nn.Module, anatomy: Anatomy) -> Read:
    """A PEFT configuration and its tensors as ours.

    Raises BadCheckpoint for a type or a field that is not supported here, and for a prompt or a prefix of other sizes
    than the configuration says or this model has.
    """
    kind = str(config["peft_type"])
    _check_fields(config, kind)
    own = {name: tensors[name] for name in _NAMES[kind] if name in tensors}
    lacking = [name for name in _NAMES[kind] if name not in own]
    if lacking:
        raise BadCheckpoint(f"a {kind} adapter has the tensor {lacking[0]!r}, and this file lacks it; it is incomplete")
    trained = {_head_name(key): tensor for key, tensor in tensors.items() if key not in own}
    paths = tuple(dict.fromkeys(name.rpartition(".")[0] for name in trained))
    for path in paths:
        require_site(path, anatomy)
    if len(own["prompt_embeddings"]) != _rows(config, kind):
        raise BadCheckpoint(
            f"prompt_embeddings has {len(own['prompt_embeddings'])} rows, and num_virtual_tokens "
            f"{config['num_virtual_tokens']} makes {_rows(config, kind)}; one is wrong"
        )
    make = _prefix if kind == "PREFIX_TUNING" else _prompt
    method, found = make(config, own, model, anatomy)
    return Read(replace(method, trained=paths), {**found, **trained})


def _check_fields(config: Mapping[str, Any], kind: str) -> None:
    if kind in _REFUSED:
        raise BadCheckpoint(f"PEFT's {kind} is not read here: {_REFUSED[kind]}; train it again with prompt-tuning")
    strange = next((name for name in sorted(set(config) - _KNOWN) if config[name]), None)
    if strange is not None:
        raise BadCheckpoint(
            f"this PEFT adapter has {strange}={config[strange]!r}, which is not known here and may change what it "
            "computes; take it out of adapter_config.json if it does not"
        )
    needed = (*_SIZES, *(("num_layers", "num_attention_heads") if kind == "PREFIX_TUNING" else ()))
    for name in needed:
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise BadCheckpoint(f"{name} is {config.get(name)!r} in adapter_config.json; it must be a number above 0")


def _head_name(key: str) -> str:
    return re.sub(r"\.modules_to_save(\.default)?\.", ".", key.removeprefix(_PREFIX))


def _submodules(config: Mapping[str, Any]) -> int:
    return int(config.get("num_transformer_submodules") or (2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1))


def _rows(config: Mapping[str, Any], kind: str) -> int:
    """Prompts have rows for encoder and decoder, of which PEFT uses the first; prefixes have not."""
    return int(config["num_virtual_tokens"]) * (1 if kind == "PREFIX_TUNING" else _submodules(config))


def _prefix(
    config: Mapping[str, Any], own: Mapping[str, Tensor], model: nn.Module, anatomy: Anatomy
) -> tuple[PrefixTuning, dict[str, Tensor]]:
    length, width, heads = (int(config[name]) for name in (*_SIZES, "num_attention_heads"))
    stacks = _stacks(anatomy)
    method = PrefixTuning(
        length=length, width=None, targets=("attn",), stacks=(stacks[-1],), init="random", positions="shifted",
    )  # fmt: skip
    sites = [site for site in method.sites(model, anatomy) if site.kind == "attention"]
    method = replace(method, bias=_bias(model, sites))
    layers, flat = int(config["num_layers"]), own["prompt_embeddings"]
    if flat.shape[1] != 2 * layers * width or width % heads:
        raise BadCheckpoint(
            f"prompt_embeddings has {flat.shape[1]} columns, and num_layers {layers}, token_dim {width} and "
            f"num_attention_heads {heads} make 2 * {layers} * {width}; one is wrong"
        )
    if _submodules(config) != len(stacks):
        raise BadCheckpoint(
            f"wrong base: this prefix is for a model of {_submodules(config)} stacks (num_transformer_submodules), "
            f"and this one has {len(stacks)}"
        )
    if layers < len(sites) or (len(stacks) == 1 and layers != len(sites)):
        raise BadCheckpoint(f"wrong base: this prefix is for a model of {layers} layers, and this one has {len(sites)}")
    for site in sites:
        assert site.call is not None
        found, size = site.call.heads, site.call.key_size
        if (found, size, site.call.value_size) != (heads, width // heads, width // heads):
            raise BadCheckpoint(
                f"wrong base: this prefix is for {heads} heads of keys and values of width {width // heads}, and "
                f"{site.path} has {found} of width {size}"
            )
    table = flat.view(length, 2 * layers, heads, width // heads).permute(1, 2, 0, 3)  # [2 * layers, heads, P, D]
    places = _places(layers, len(sites), crossed=len(stacks) > 1)
    return method, {
        f"{site.path}.{letter}": table[place]
        for site, pair in zip(sites, places, strict=True)
        for letter, place in zip(("PK", "PV"), pair, strict=True)
    }


def _bias(model: nn.Module, sites: Sequence[Site]) -> Literal["zero", "looked-up"]:
    """PEFT's prefix has the position bias of real tokens, where there is one (T5, ALiBi)."""
    sloped = any(isinstance(site.call, CacheCall) and site.call.slopes for site in sites)
    return "looked-up" if sloped or has_position_bias(model) else "zero"


def _places(layers: int, sites: int, *, crossed: bool) -> list[tuple[int, int]]:
    """Where the table has keys and values of each site.

    crossed: PEFT makes room for cross-attention and never uses it
    """
    step = 4 if crossed else 2
    return [(step * n % (2 * layers), (step * n + 1) % (2 * layers)) for n in range(sites)]


def _prompt(
    config: Mapping[str, Any], own: Mapping[str, Tensor], model: nn.Module, anatomy: Anatomy
) -> tuple[Method, dict[str, Tensor]]:
    length, width = (int(config[name]) for name in _SIZES)
    site = input_site(model, anatomy)
    P = own["prompt_embeddings"]
    if P.shape[1] != width or width != site.out_features:
        raise BadCheckpoint(
            f"wrong base: this prompt is {P.shape[1]} numbers wide (token_dim {width}), and {site.path} "
            f"{site.out_features}"
        )
    ours = {f"{site.path}.P": P[:length]}
    if config["peft_type"] == "PROMPT_TUNING":
        return PromptTuning(length=length, place="front", init="random"), ours
    if config["peft_type"] == "P_TUNING":
        return PTuning(length=length, place="front", init="random", encoder=None), ours
    cols, rows = own["prefix_task_cols"], own["prefix_task_rows"]
    tasks, rank = int(config.get("num_tasks", 1)), int(config.get("num_ranks", 1))
    if cols.shape != (tasks, len(P), rank) or rows.shape != (tasks, rank, width):
        raise BadCheckpoint(
            f"num_tasks {tasks} and num_ranks {rank} make prefix_task_cols {[tasks, len(P), rank]} and "
            f"prefix_task_rows {[tasks, rank, width]}; the file has {list(cols.shape)} and {list(rows.shape)}"
        )
    ours |= {f"{site.path}.U": cols[:, :length], f"{site.path}.V": rows}
    return MultitaskPrompt(length=length, tasks=tasks, rank=rank, place="front", init="random"), ours


def _stacks(anatomy: Anatomy) -> list[str]:
    return list(dict.fromkeys(site.stack for site in anatomy.sites if site.role == "block"))


# ---------------------------------------------------------------------------------------------------------- writing
def can_write(adapter: Adapter) -> bool:
    """True where PEFT has the type."""
    return isinstance(adapter.method, Prefix | InText)


def write(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> Form | str:
    """The adapter in PEFT's form, or why PEFT cannot compute what it does and what to do about it."""
    task = task_of(model) or ("FEATURE_EXTRACTION" if type(model).__name__.endswith("Model") else None)
    if task is None:
        return f"PEFT has no prompts and prefixes for a {type(model).__name__}; use it with Budwood"
    make = _written_prefix if isinstance(adapter.method, Prefix) else _written_prompt
    form = make(model, adapter, anatomy)
    if isinstance(form, str):
        return form
    deltas = {site.path: delta_at(model, site, adapter.name) for site in adapter.sites}
    trained = {path: delta for path, delta in deltas.items() if isinstance(delta, Trained)}
    heads = {f"{_PREFIX}{path}.{key}": t for path, delta in trained.items() for key, t in delta.named_parameters()}
    config = {
        "task_type": task, "base_model_name_or_path": base_name(model), "revision": None, "inference_mode": True,
        "modules_to_save": containers(model, list(trained)) or None, **form.config,
    }  # fmt: skip
    return Form(config, {**heads, **form.tensors}, form.own)


def _written_prefix(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> Form | str:
    assert isinstance(adapter.method, Prefix)
    stacks, length = _stacks(anatomy), adapter.method.length
    sites = [site for site in adapter.sites if site.kind == "attention"]
    expected = [site.path for site in anatomy.sites if site.role == "attn" and site.stack == stacks[-1]]
    shapes = {(site.call.heads, site.call.key_size, site.call.value_size) for site in sites if site.call is not None}
    if [site.path for site in sites] != expected:
        return (
            f"a prefix in PEFT is in front of every self-attention of the {stacks[-1]} and nowhere else, and this one "
            f"acts at {len(sites)} modules of which {len(expected)} are that; train it with targets=attn"
            + (f" and stacks={stacks[-1]}" if len(stacks) > 1 else "")
        )
    heads, width, value_width = shapes.pop()
    if shapes or width != value_width:
        return "PEFT writes a prefix as one table, and keys and values have several sizes here; use it with Budwood"
    takers = (model, owner_of(model, anatomy, stacks[-1]))
    if not any("past_key_values" in signature(taker.forward).parameters for taker in takers):
        return f"PEFT puts a prefix in the cache, and {type(model).__name__} has none; use it with Budwood"
    if _slides(model):
        return "PEFT's prefix is in the cache and leaves a sliding window, this one stays visible; use it with Budwood"
    found = _as_shifted(model, adapter, anatomy, sites)
    if found is None:
        return (
            "PEFT numbers the text from the prefix's length on and looks up position biases for the prefix, and no "
            f"change of its keys makes up for that in {type(model).__name__}; train it with positions=shifted"
            + (",bias=looked-up" if _bias(model, sites) != "zero" else "")
        )
    layers = len(sites) * len(stacks)
    pairs = [_pair(delta_at(model, site, adapter.name), found[site.path]) for site in sites]
    table = torch.zeros(2 * layers, heads, length, width, dtype=pairs[0][0].dtype)
    for pair, places in zip(pairs, _places(layers, len(sites), crossed=len(stacks) > 1), strict=True):
        for rows, place in zip(pair, places, strict=True):
            table[place] = rows
    config = {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": length, "num_transformer_submodules": len(stacks),
        "num_layers": layers, "num_attention_heads": heads, "token_dim": heads * width, "prefix_projection": False,
        "encoder_hidden_size": heads * width,
    }  # fmt: skip
    flat = table.permute(2, 0, 1, 3).reshape(length, -1)
    turned = {path: turn.to_dict() for path, turn in found.items() if turn.angles}
    return Form(config, {"prompt_embeddings": flat}, {"turned": turned} if turned else {})


def _pair(delta: Delta, turn: Turn) -> tuple[Tensor, Tensor]:
    """Keys and values [H, P, D]: float64 where keys are turned, else float32."""
    stored = delta.stored()
    keys, values = (stored[letter].detach().cpu() for letter in ("PK", "PV"))
    return (turn(keys), values.double()) if turn.angles else (keys.float(), values.float())


def _slides(model: nn.Module) -> bool:
    """Whether some layer sees the last tokens of the cache only."""
    config = vars(model)["config"].get_text_config().to_dict()
    kinds = config.get("layer_types") or ("sliding_attention",)
    return config.get("sliding_window") is not None and "sliding_attention" in kinds


def _as_shifted(model: nn.Module, adapter: Adapter, anatomy: Anatomy, sites: Sequence[Site]) -> dict[str, Turn] | None:
    """How keys are turned for a text that starts behind the prefix; None where the model would compute otherwise."""
    method = adapter.method.deployed
    assert isinstance(method, Prefix)
    target = replace(method, positions="shifted", bias=_bias(model, sites), init="random", text=None, ids=(), sizes=())
    still: dict[str, Turn] | None = {site.path: Turn() for site in sites}
    if (method.positions, method.bias) == (target.positions, target.bias):
        return still
    found = turns(model, anatomy, sites, method.length) if method.positions == "kept" else still
    return found if found is not None and _computes_the_same(model, adapter, target, found) else None


def _computes_the_same(model: nn.Module, adapter: Adapter, target: Prefix, found: Mapping[str, Turn]) -> bool:
    """Whether the adapter with its keys turned and another method gives what the adapter gives."""
    registry = registry_of(model)
    assert registry is not None
    before, flags = registry.switch.plan, [(p, p.requires_grad) for p in model.parameters()]
    copy = f"{adapter.name}_shifted"
    other = attach(model, target, name=copy)
    try:
        with torch.no_grad():
            for site in adapter.sites:
                state = delta_at(model, site, adapter.name).stored()
                for letter, parameter in delta_at(model, site, copy).named_parameters():
                    value = state[letter]
                    parameter.copy_(found[site.path](value) if letter == "PK" else value)
        mine, theirs = (_output(model, a) for a in (adapter, other))
    finally:
        detach(model, copy)
        registry.switch.plan = before
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    tolerance = 1e-4 if mine.dtype == torch.float32 else 5e-2
    return bool((mine - theirs).abs().max() <= tolerance * mine.abs().max())


def _output(model: nn.Module, adapter: Adapter) -> Tensor:
    with probe.undisturbed(model), torch.no_grad(), using(model, adapter.method.plan(adapter.name)):
        batch = probe.without_cache(model, probe.synthetic_batch(model))
        with probe.mixed(model):
            found: Tensor = model(**batch)[0]
    return found


def _written_prompt(model: nn.Module, adapter: Adapter, anatomy: Anatomy) -> Form | str:
    method, site = adapter.method, next(site for site in adapter.sites if site.role.startswith("embed"))
    assert isinstance(method, InText)
    if isinstance(method, PromptTuning) and method.level != "words":
        return "PEFT's prompts are words, and this one enters behind the embeddings; train it with level=words"
    if method.place != "front":
        return (
            f"PEFT puts a prompt in front of the text, and this one stands {method.place}; train it with place=front, "
            "or use it with Budwood"
        )
    stored = delta_at(model, site, adapter.name).stored()
    state = {letter: tensor.detach().cpu().float() for letter, tensor in stored.items()}
    kind = {MultitaskPrompt: "MULTITASK_PROMPT_TUNING", PTuning: "P_TUNING"}.get(type(method), "PROMPT_TUNING")
    config = {
        "peft_type": kind, "num_virtual_tokens": method.length, "num_transformer_submodules": 1,
        "token_dim": state["P"].shape[1], "num_layers": anatomy.num_layers(_stacks(anatomy)[0]),
        "num_attention_heads": 1,
    }  # fmt: skip
    tensors = {"prompt_embeddings": state["P"]}
    if isinstance(method, MultitaskPrompt):
        config |= {"num_tasks": method.tasks, "num_ranks": method.rank}
        tensors |= {"prefix_task_cols": state["U"], "prefix_task_rows": state["V"]}
    return Form(config, tensors)


def split(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `write` for an adapter of ours: keys turned back."""
    turned = {f"{path}.PK": Turn.from_dict(fields) for path, fields in own.get("turned", {}).items()}
    return {key: turned[key](tensor, back=True) if key in turned else tensor for key, tensor in tensors.items()}
