"""Trained keys and values in front of a model's own: the attention function through which prefixes act.

Shapes as in `core.rows`. Families that compute attention by themselves go through `core.cache_shim`.

transformers looks its attention functions up by the name in a model's configuration. Here stands one function in front
of each of two of them; while an adapter with a prefix is attached, the configurations of its model name that one. It
does what the named function does, and where the plan in force has rows for the module that calls, puts them in front of
keys and values. The cache holds the text alone: no length, mask or beam outside of this file knows of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from budwood.anatomy import Anatomy, AttentionCall, Site, probe
from budwood.core.cache_shim import CacheCall, cache_calls, close_cache, hearing, open_cache
from budwood.core.plan import Part
from budwood.core.rows import FrontDelta, acting, has_rows, with_columns
from budwood.errors import NoSuchSite, WrongOrder

KERNELS = ("sdpa", "eager")
"""Attention implementations that rows can be put in front of."""
_LEAD, _EAR = "budwood_", "budwood_ear"
Kernel = Callable[..., tuple[Tensor, Tensor | None]]


class AttentionDelta(FrontDelta):
    """Trained rows in front of the keys and values of a module of the model."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.path)
        self._cached = site.call if isinstance(site.call, CacheCall) else None

    def settle(self, model: nn.Module, name: str) -> None:
        """Have the module meet the rows: through the attention function of this file, or through its cache."""
        if self._cached is None:
            open_attention(model)
        else:
            open_cache(model.get_submodule(self.path), self._cached)

    def unsettle(self, model: nn.Module) -> None:
        """The inverse, once no other prefix is left."""
        module = model.get_submodule(self.path)
        if self._cached is not None and not has_rows(module):
            close_cache(module)
        if not any(has_rows(module) for module in model.modules()):
            close_attention(model)


def attention_sites(
    model: nn.Module, anatomy: Anatomy, targets: Iterable[str], layers: tuple[int, ...] | None = None
) -> tuple[Site, ...]:
    """The attention modules that targets mean, with the shapes of their keys and values, seen in one forward.

    Raises NoSuchSite where one of them hands its keys and values neither to transformers' attention function nor to a
    cache.
    """
    if not {"attn", "cross"} & set(anatomy.roles):
        raise NoSuchSite(f"{type(model).__name__} has no attention for a prefix to stand in; use lora or an adapter")
    sites = anatomy.select(*targets, layers=layers)
    plain = next((site.path for site in sites if site.kind != "module"), None)
    if plain is not None:
        raise NoSuchSite(f"a prefix stands in attention modules, and {plain} is a part of one; say attn or cross")
    calls: dict[str, AttentionCall] = {**_function_calls(model, sites)}
    own = [site for site in sites if site.path not in calls]
    if own:
        _check_kernel(configs_of(model))
        calls.update(cache_calls(model, own))
    silent = [site.path for site in sites if site.path not in calls]
    if silent:
        raise NoSuchSite(
            f"{silent[0]} ({type(model.get_submodule(silent[0])).__name__}; {len(silent)} modules in all) computes its "
            "attention itself, neither through transformers' attention functions nor with a cache's keys, so no prefix "
            "can be put in front of them; use prompt-tuning or p-tuning, which act on the embeddings, or an adapter"
        )
    return tuple(replace(site, kind="attention", call=calls[site.path]) for site in sites)


def _function_calls(model: nn.Module, sites: Iterable[Site]) -> dict[str, AttentionCall]:
    """What those of the modules hand to transformers' attention function whose files know of it."""
    knowing = [site for site in sites if _knows_functions(type(model.get_submodule(site.path)))]
    if not knowing:
        return {}
    with ears(model, knowing) as heard, probe.mixed(model):
        probe.run(model, {}, probe.without_cache(model, probe.synthetic_batch(model)), ())
    shapes = {path: (pairs[0][0].shape, pairs[0][1].shape) for path, pairs in heard.items() if pairs}
    return {path: AttentionCall(k[1], k[3], v[3]) for path, (k, v) in shapes.items()}


@contextmanager
def ears(model: nn.Module, sites: Iterable[Site]) -> Iterator[Mapping[str, list[tuple[Tensor, Tensor]]]]:
    """While this lasts, the keys and values [B, H, K, D] that the sites' modules hand on, in the order of calls."""
    heard: dict[str, list[tuple[Tensor, Tensor]]] = {site.path: [] for site in sites}
    with ExitStack() as stack:
        for site in sites:
            module = model.get_submodule(site.path)
            if isinstance(site.call, CacheCall):
                stack.enter_context(hearing(module, site.call, heard[site.path]))
            else:
                stack.enter_context(_hearing(model, module, heard[site.path]))
        yield heard


@contextmanager
def _hearing(model: nn.Module, module: nn.Module, ear: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    was_open = is_open(model)
    open_attention(model)
    object.__setattr__(module, _EAR, ear)
    try:
        yield
    finally:
        object.__delattr__(module, _EAR)
        if not was_open:
            close_attention(model)


def is_open(model: nn.Module) -> bool:
    """Whether the model calls the attention function of this file."""
    return any(_named(config).startswith(_LEAD) for config in configs_of(model))


def open_attention(model: nn.Module) -> None:
    """Have the model call the attention function of this file. Raises WrongOrder for other implementations."""
    configs = configs_of(model)
    _check_kernel(configs)
    for config in configs:
        if _named(config) in KERNELS:
            config._attn_implementation_internal = _LEAD + _named(config)


def close_attention(model: nn.Module) -> None:
    """The inverse of `open_attention`."""
    for config in configs_of(model):
        if _named(config).startswith(_LEAD):
            config._attn_implementation_internal = _named(config).removeprefix(_LEAD)


def _check_kernel(configs: Iterable[PretrainedConfig]) -> None:
    for config in configs:
        if _named(config) and _named(config).removeprefix(_LEAD) not in KERNELS:
            raise WrongOrder(
                f"the model's attention implementation is {_named(config)!r}, which puts no prefix in front of "
                "keys; call model.set_attn_implementation('sdpa') first, or load with attn_implementation='sdpa' "
                "('eager' where the model has no sdpa)"
            )


def configs_of(model: nn.Module) -> list[PretrainedConfig]:
    """The configurations that the model's modules look things up in, each once."""
    found = [vars(module).get("config") for module in model.modules()]
    return list({id(config): config for config in found if isinstance(config, PretrainedConfig)}.values())


def _named(config: PretrainedConfig) -> str:
    return config._attn_implementation_internal or ""


def _attend(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers calls. query: [B, heads, Q, D]; key, value: [B, H, K, D]; other arguments are the kernel's."""
    kernel = _kernel(name, type(module))
    ear = vars(module).get(_EAR)
    if ear is not None:
        ear.append((key, value))
    batch, mask, bias = query.shape[0], attention_mask, kwargs.get("position_bias")
    met = acting(module, batch)
    if not met:
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)
    if name != "eager":
        key, value, mask = _unskipped(module, query, key, value, mask, kwargs.get("is_causal"))
        kwargs["is_causal"] = False
    if mask is None and any(part.rows is not None for part, _ in met):
        mask = query.new_zeros(1, 1, 1, key.shape[2])
    mask = None if mask is None else mask[..., : key.shape[2]]
    bias = None if bias is None else bias[..., : key.shape[2]]
    own, wide = bias, value.shape[3]
    weighed: list[Tensor] = []
    for part, delta in reversed(met):
        keys, values = delta.rows(batch)
        delta.note_met()
        weights = delta.weights()
        if weights is not None:
            kwargs["scaling"] = keys.shape[3] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
            weighed.append(weights[1])
        mask = None if mask is None else with_columns(mask, part, keys.shape[2])
        bias = None if bias is None or own is None else _with_bias(bias, own, part, delta, keys.shape[2])
        query, key, value = _joined(query, key, value, keys, values, weights)
    if bias is not None:
        kwargs["position_bias"] = bias
    out, probabilities = kernel(module, query, key, value, mask, *args, **kwargs)
    seen, *others = out.split(wide, dim=-1)
    return sum((w.to(o.dtype).transpose(1, 2) * o for w, o in zip(weighed, others, strict=True)), seen), probabilities


def _with_bias(bias: Tensor, own: Tensor, part: Part, delta: FrontDelta, length: int) -> Tensor:
    """The position bias with columns for rows: [*, heads, Q, K'] -> [*, heads, Q, P + K'].

    own: [*, heads, Q, K], the text's alone, before other rows: where theirs stand is nothing to these
    """
    whole = delta.bias(own, own.shape[-2], length)
    moved = whole[..., length:] - own
    if part.rows is not None:
        moved = moved * part.rows.to(moved)[:, None, None, None]
    front, text = bias.split([bias.shape[-1] - own.shape[-1], own.shape[-1]], dim=-1)
    text = text + moved
    return torch.cat([*(b.expand(*text.shape[:-1], -1) for b in (whole[..., :length], front)), text], dim=-1)


def _joined(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, weights: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with rows in front, which have features of their own where queries weigh them.

    Of [q, w q], the part q meets only [k, 0] and w q only [0, P_K]; of values [v, 0] and [0, P_V] the sums stay apart.
    """
    size, wide, before = keys.shape[3], values.shape[3], 0
    if weights is not None:
        before = key.shape[3] // size
        query = torch.cat([query, query[..., :size] * weights[0].to(query.dtype)], dim=-1)
        key, value = F.pad(key, (0, size)), F.pad(value, (0, wide))
    after = key.shape[3] // size - before - 1
    keys = F.pad(keys.to(key.dtype), (before * size, after * size)).expand(query.shape[0], -1, -1, -1)
    values = F.pad(values.to(value.dtype), (before * wide, after * wide)).expand(query.shape[0], -1, -1, -1)
    return query, torch.cat([keys, key], dim=2), torch.cat([values, value], dim=2)


def _unskipped(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """With a mask where there is none and the kernel would be causal by itself, which it aligns to the first key."""
    length = query.shape[2]
    causal = vars(module).get("is_causal", True) if is_causal is None else is_causal
    if mask is not None or length == 1 or not causal:
        return key, value, mask
    mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=query.device).tril()
    return key[:, :, :length], value[:, :, :length], mask  # a static cache's keys are as long as it will ever be


_KERNELS: dict[tuple[str, type[nn.Module]], Kernel] = {}


def _kernel(name: str, cls: type[nn.Module]) -> Kernel:
    """The function that a module's own file means by an implementation's name."""
    if (name, cls) not in _KERNELS:
        _KERNELS[name, cls] = _find_kernel(name, cls)
    return _KERNELS[name, cls]


def _knows_functions(cls: type[nn.Module]) -> bool:
    """Whether the file of a module looks attention functions up."""
    return any("ALL_ATTENTION_FUNCTIONS" in vars(sys.modules[owner.__module__]) for owner in cls.__mro__)


def _find_kernel(name: str, cls: type[nn.Module]) -> Kernel:
    for owner in cls.__mro__:
        home = vars(sys.modules[owner.__module__])
        if name == "eager" and "eager_attention_forward" in home:
            eager: Kernel = home["eager_attention_forward"]
            return eager
        if name != "eager" and "ALL_ATTENTION_FUNCTIONS" in home:
            kernel: Kernel = home["ALL_ATTENTION_FUNCTIONS"][name]
            return kernel
    raise NoSuchSite(f"the file of {cls.__name__} has no {name} attention function; use another attn_implementation")


def admit(name: str) -> str:
    """Let rows be put in front of another attention function that transformers knows; the name to call both by."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        return _attend(name, module, query, key, value, attention_mask, *args, **kwargs)

    AttentionInterface.register(_LEAD + name, attend)
    AttentionMaskInterface.register(_LEAD + name, AttentionMaskInterface()[name])
    return _LEAD + name


for _name in KERNELS:
    admit(_name)
