"""Trained keys and values in front of a model's own: the attention function through which prefixes act.

Shapes: B batch, H heads of keys and values, Q and K their lengths in tokens, P rows in front, D a head's width.

transformers looks its attention functions up by the name in a model's configuration. Here stands one function in front
of each of two of them; while an adapter with a prefix is attached, the configurations of its model name that one. It
does what the named function does, and where the plan in force has rows for the module that calls, puts them in front of
keys and values. The cache holds the text alone: no length, mask or beam outside of this file knows of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import local
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig

from budwood.anatomy import Anatomy, AttentionCall, Site, probe
from budwood.core.delta import Delta, deltas_of
from budwood.core.plan import Part, parts_of
from budwood.errors import NoSuchSite, WrongOrder

KERNELS = ("sdpa", "eager")
"""Attention implementations that rows can be put in front of."""
_LEAD, _EAR = "budwood_", "budwood_ear"
Kernel = Callable[..., tuple[Tensor, Tensor | None]]


class _Met(local):
    """Whether the attention function asked for the rows in this call of the module."""

    value = False

    def __reduce__(self) -> tuple[type[_Met], tuple[()]]:
        return _Met, ()


class AttentionDelta(Delta):
    """A delta that puts trained rows in front of an attention's keys and values; what the module returns stays."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.path = site.path
        self._met = _Met()

    def rows(self, batch: int) -> tuple[Tensor, Tensor]:
        """Keys [B or 1, H, P, D_k] and values [B or 1, H, P, D_v]."""
        raise NotImplementedError

    def weights(self) -> tuple[Tensor, Tensor] | None:
        """What every query multiplies the rows' keys and values by: [B, 1, Q, 1] each; None where nothing."""
        return None

    def bias(self, own: Tensor, queries: int, length: int) -> Tensor:
        """An additive position bias with the columns of P = length rows: [*, heads, Q, K] -> [*, heads, Q, P + K]."""
        return F.pad(own, (length, 0))

    def settle(self, model: nn.Module, name: str) -> None:
        """Have the model call the attention function of this file."""
        open_attention(model)

    def unsettle(self, model: nn.Module) -> None:
        """The inverse, once no other prefix is left."""
        inside = (deltas for module in model.modules() if (deltas := deltas_of(module)) is not None)
        if not any(isinstance(delta, AttentionDelta) for deltas in inside for delta in deltas.children()):
            close_attention(model)

    def meet(self, batch: int) -> tuple[Tensor, Tensor]:
        """The rows, remembering that they were asked for."""
        self._met.value = True
        return self.rows(batch)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y as it is. Raises WrongOrder where the attention function was not this file's."""
        if not self._met.value:
            raise WrongOrder(
                f"{self.path} ran without its prefix: the attention implementation was changed after attaching; "
                "detach, change it with set_attn_implementation, then attach again"
            )
        self._met.value = False
        return y


def attention_sites(
    model: nn.Module, anatomy: Anatomy, targets: Iterable[str], layers: tuple[int, ...] | None = None
) -> tuple[Site, ...]:
    """The attention modules that targets mean, with the shapes of their keys and values, seen in one forward.

    Raises NoSuchSite where one of them does not hand its keys and values to transformers' attention function.
    """
    sites = anatomy.select(*targets, layers=layers)
    with ears(model, sites) as heard:
        probe.run(model, {}, probe.without_cache(model, probe.synthetic_batch(model)), ())
    silent = [site.path for site in sites if not heard[site.path]]
    if silent:
        raise NoSuchSite(
            f"{silent[0]} ({type(model.get_submodule(silent[0])).__name__}; {len(silent)} modules in all) computes its "
            "attention itself, not through transformers' attention functions, so no prefix can be put in front of its "
            "keys; use prompt-tuning or p-tuning, which act on the embeddings, or an adapter"
        )
    shapes = {path: (k.shape, v.shape) for path, ((k, v), *_) in heard.items()}
    return tuple(
        replace(site, kind="attention", call=AttentionCall(k[1], k[3], v[3]))
        for site in sites
        for k, v in [shapes[site.path]]
    )


@contextmanager
def ears(model: nn.Module, sites: Iterable[Site]) -> Iterator[Mapping[str, list[tuple[Tensor, Tensor]]]]:
    """While this lasts, the keys and values [B, H, K, D] that the sites' modules hand on, in the order of calls."""
    modules = {site.path: model.get_submodule(site.path) for site in sites}
    heard: dict[str, list[tuple[Tensor, Tensor]]] = {path: [] for path in modules}
    was_open = is_open(model)
    open_attention(model)
    for path, module in modules.items():
        object.__setattr__(module, _EAR, heard[path])
    try:
        yield heard
    finally:
        for module in modules.values():
            object.__delattr__(module, _EAR)
        if not was_open:
            close_attention(model)


def is_open(model: nn.Module) -> bool:
    """Whether the model calls the attention function of this file."""
    return any(_named(config).startswith(_LEAD) for config in _configs(model))


def open_attention(model: nn.Module) -> None:
    """Have the model call the attention function of this file. Raises WrongOrder for other implementations."""
    configs = _configs(model)
    for config in configs:
        if _named(config) and _named(config).removeprefix(_LEAD) not in KERNELS:
            raise WrongOrder(
                f"the model's attention implementation is {_named(config)!r}, which puts no prefix in front of "
                "keys; call model.set_attn_implementation('sdpa') first, or load with attn_implementation='sdpa'"
            )
    for config in configs:
        if _named(config) in KERNELS:
            config._attn_implementation_internal = _LEAD + _named(config)


def close_attention(model: nn.Module) -> None:
    """The inverse of `open_attention`."""
    for config in _configs(model):
        if _named(config).startswith(_LEAD):
            config._attn_implementation_internal = _named(config).removeprefix(_LEAD)


def _configs(model: nn.Module) -> list[PretrainedConfig]:
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
    met = _met(module, query.shape[0])
    if not met:
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)
    batch, mask, bias = query.shape[0], attention_mask, kwargs.get("position_bias")
    if name == "sdpa":
        key, value, mask = _unskipped(module, query, key, value, mask, kwargs.get("is_causal"))
        kwargs["is_causal"] = False
    elif mask is None and any(part.rows is not None for part, _ in met):
        mask = query.new_zeros(1, 1, 1, key.shape[2])
    mask = None if mask is None else mask[..., : key.shape[2]]
    bias = None if bias is None else bias[..., : key.shape[2]]
    wide, weighed = value.shape[3], list[Tensor]()
    for part, delta in reversed(met):
        keys, values = delta.meet(batch)
        weights = delta.weights()
        if weights is not None:
            kwargs["scaling"] = keys.shape[3] ** -0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
            weighed.append(weights[1])
        mask = _with_columns(mask, query, key, part, keys.shape[2])
        bias = None if bias is None else delta.bias(bias, query.shape[2], keys.shape[2])
        query, key, value = _joined(query, key, value, keys, values, weights)
    if bias is not None:
        kwargs["position_bias"] = bias
    out, probabilities = kernel(module, query, key, value, mask, *args, **kwargs)
    own, *others = out.split(wide, dim=-1)
    return sum((w.to(o.dtype).transpose(1, 2) * o for w, o in zip(weighed, others, strict=True)), own), probabilities


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


def _met(module: nn.Module, batch: int) -> list[tuple[Part, AttentionDelta]]:
    """The plan's adapters that have rows here."""
    deltas = deltas_of(module)
    if deltas is None or deltas.switch.plan is None:
        return []
    parts = parts_of(deltas.switch.plan, batch, deltas.layer, deltas.stack)
    found = [(part, deltas[part.name]) for part in parts if part.name in deltas]
    return [(part, delta) for part, delta in found if isinstance(delta, AttentionDelta)]


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


def _with_columns(mask: Tensor | None, query: Tensor, key: Tensor, part: Part, length: int) -> Tensor | None:
    """The mask with columns for rows that every query sees, in the rows of the batch that the part is for.

    mask: [B or 1, heads or 1, Q or 1, K], bool (true is visible) or additive; None where all is visible.
    """
    if part.rows is None:
        return None if mask is None else F.pad(mask, (length, 0), value=mask.dtype == torch.bool)
    if mask is None:
        mask = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool, device=query.device)
    visible = part.rows.to(mask.device)[:, None, None, None].expand(-1, *mask.shape[1:-1], length)
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, torch.finfo(mask.dtype).min)
    return torch.cat([visible, mask.expand(len(part.rows), -1, -1, -1)], dim=-1)


_KERNELS: dict[tuple[str, type[nn.Module]], Kernel] = {}


def _kernel(name: str, cls: type[nn.Module]) -> Kernel:
    """The function that a module's own file means by an implementation's name."""
    if (name, cls) not in _KERNELS:
        _KERNELS[name, cls] = _find_kernel(name, cls)
    return _KERNELS[name, cls]


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


def _register(name: str) -> None:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        return _attend(name, module, query, key, value, attention_mask, *args, **kwargs)

    AttentionInterface.register(_LEAD + name, attend)
    AttentionMaskInterface.register(_LEAD + name, AttentionMaskInterface()[name])


for _name in KERNELS:
    _register(_name)
