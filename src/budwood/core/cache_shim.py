"""Trained keys and values for attention that computes by itself, but lets a cache change its keys and values.

Shapes as in `core.rows`. GPT-J, GPT-Neo, CodeGen, Falcon, MPT, BLOOM and others hand new keys and values to a cache
and go on with what it returns. Before such a module runs, a hook gives it a stand-in for the cache, which asks the real
one, if there is one, and returns its keys and values with the rows in front; mask and position bias grow with them.

What a module takes is measured when attaching, on one short text with a pad at its end: the argument that is a cache,
which entries of the mask mean hidden, how ALiBi grows from key to key. It has to return what it returned before when
the rows are hidden, and something else for every token when they are not; else it is refused.

ALiBi is known up to a number for each query, to which softmax is blind. Here a token's bias on itself is 0, and so is a
row's, at any distance; or the rows have positions -P to -1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from budwood.anatomy import AttentionCall, Site, probe
from budwood.core.attach import using
from budwood.core.hooks import named, remove
from budwood.core.plan import Part
from budwood.core.registry import registry_of
from budwood.core.rows import FrontDelta, acting, in_front, with_columns
from budwood.errors import NoSuchSite, WrongOrder

CACHES = ("past_key_values", "layer_past")
"""Names under which an attention module is given its cache."""
BIASES = ("alibi", "position_bias")
"""Names under which it is given a position bias to be added, a row of numbers for each head."""
_CALL, _EAR = "budwood_cache_call", "budwood_cache_ear"
Pairs = list[tuple[Tensor, Tensor]]
Given = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class CacheCall(AttentionCall):
    """How a module that computes by itself is given its cache, mask and position bias."""

    arguments: tuple[str, ...]
    """What its forward takes, in order."""
    cache: str
    layer: int
    """The number under which it calls the cache."""
    bias: str | None = None
    mask: bool | None = None
    """What a bool mask says of a visible key; None for a mask that is added."""
    is_causal: bool = False
    slopes: tuple[float, ...] = ()
    """What the position bias grows by from key to key, for each head."""
    share: float = 0.0
    """How much of the position bias the mask holds, too; the module then reads it there."""
    table: str | None = None
    """A buffer [1, 1, N, N] that says which keys of N a query sees."""
    positions: int = 0
    """N."""
    waves: str | None = None
    """A buffer [N, d] that has sines and cosines for the positions 0 to N - 1."""
    is_measured: bool = True
    """Whether there were numbers to look at."""


@dataclass(frozen=True)
class _Front:
    """Rows that stand in front in this call."""

    part: Part
    delta: FrontDelta
    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        return self.keys.shape[2]


@dataclass
class StandIn:
    """What a module takes for its cache."""

    cache: Cache | None
    fronts: list[_Front] = field(default_factory=list)
    ear: Pairs | None = None
    layer: int = 0

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any) -> tuple[Tensor, Tensor]:
        """[B, H, S, D] of new tokens -> [B, H, P + K, D], the real cache told of the text alone."""
        self.layer = layer_idx
        if self.cache is not None:
            key, value = self.cache.update(key, value, layer_idx, *args)
        if self.ear is not None:
            self.ear.append((key, value))
        for front in reversed(self.fronts):
            front.delta.note_met()
            key, value = in_front(front.keys, key), in_front(front.values, value)
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens of the text that are in the real cache."""
        return 0 if self.cache is None else int(self.cache.get_seq_length(layer_idx))


def cache_calls(model: nn.Module, sites: Iterable[Site]) -> dict[str, CacheCall]:
    """How those of the modules that take a cache are called, by path. Raises NoSuchSite where one takes no rows."""
    modules = {site.path: model.get_submodule(site.path) for site in sites}
    takers = {path: module for path, module in modules.items() if _argument(module, CACHES) is not None}
    if not takers:
        return {}
    batch = probe.without_cache(model, probe.synthetic_batch(model))
    if "attention_mask" in inspect.signature(model.forward).parameters:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        batch["attention_mask"][:, -1] = 0
    with nullcontext() if registry_of(model) is None else using(model, None), probe.mixed(model):
        trace = probe.run(model, {module: path for path, module in takers.items()}, batch, takers)
        with probe.undisturbed(model), torch.no_grad():
            found = {path: _measured(takers[path], path, *given) for path, given in trace.arguments.items()}
    return {path: call for path, call in found.items() if call is not None}


def open_cache(module: nn.Module, call: CacheCall) -> None:
    """Have the module take stand-ins for its cache."""
    if _CALL not in vars(module):
        object.__setattr__(module, _CALL, call)
        module.register_forward_pre_hook(stand_in_hook, with_kwargs=True)


def close_cache(module: nn.Module) -> None:
    """The inverse of `open_cache`."""
    if _CALL in vars(module):
        _see(module, vars(module)[_CALL], 0)
        object.__delattr__(module, _CALL)
        remove(module, stand_in_hook)


@contextmanager
def hearing(module: nn.Module, call: CacheCall, ear: Pairs) -> Iterator[None]:
    """While this lasts, the module's keys and values go into `ear`, too."""
    was_open = _CALL in vars(module)
    open_cache(module, call)
    object.__setattr__(module, _EAR, ear)
    waves = None if call.waves is None else module.get_buffer(call.waves)
    if call.waves is not None and waves is not None:
        sines, cosines = waves[1:].flip(0).chunk(2, dim=1)
        module._buffers[call.waves] = torch.cat([waves, torch.cat([-sines, cosines], dim=1)])  # row -p: position -p
    try:
        yield
    finally:
        object.__delattr__(module, _EAR)
        if call.waves is not None:
            module._buffers[call.waves] = waves
        if not was_open:
            close_cache(module)


def stand_in_hook(module: nn.Module, args: tuple[Any, ...], kwargs: Given) -> tuple[Any, Any] | None:
    """Before the module's forward: a stand-in for its cache, and what has to be as long as the keys."""
    call: CacheCall = vars(module)[_CALL]
    given = named(call.arguments, args, kwargs)
    batch = given[call.arguments[0]].shape[0]
    fronts = [_Front(part, delta, *delta.rows(batch)) for part, delta in acting(module, batch)]
    ear = vars(module).get(_EAR)
    _see(module, call, sum(front.length for front in fronts))
    if not fronts and ear is None:
        return None
    changed = {**given, **_changed(call, given, fronts, ear)}
    if ear is not None and call.waves is not None:
        changed["position_ids"] = given["position_ids"] % len(module.get_buffer(call.waves))
    return args[:1], {k: v for k, v in changed.items() if not (args and k == call.arguments[0])}


def _changed(call: CacheCall, given: Given, fronts: list[_Front], ear: Pairs | None) -> Given:
    """The arguments that are others with rows in front."""
    stand = StandIn(_own_cache(call, given), fronts, ear)
    if not fronts:
        return {call.cache: stand}
    if not call.is_measured:
        raise WrongOrder("the prefix was attached before the model had weights; load the model, then attach")
    total = sum(front.length for front in fronts)
    queries = given[call.arguments[0]].shape[1]
    past = stand.get_seq_length(call.layer)
    mask = _mask(call, given, queries, past, fronts)
    changed: Given = {call.cache: stand, "attention_mask": mask}
    if call.bias is not None and given.get(call.bias) is not None:
        bias = given[call.bias]
        keys: int = bias.shape[-1] if mask is None else mask.shape[-1] - total
        own = bias[..., -keys:].reshape(-1, len(call.slopes), 1, keys)
        columns = _columns(own, own[..., past : past + queries].transpose(-1, -2), fronts)
        if call.share and mask is not None:
            changed["attention_mask"] = torch.cat([mask[..., :total] + call.share * columns, mask[..., total:]], dim=-1)
            changed[call.bias] = bias.new_zeros(*bias.shape[:-1], total + keys)
        else:
            whole = torch.cat([columns, own.expand(-1, -1, queries, -1)], dim=-1)
            changed[call.bias] = whole.reshape(*bias.shape[:-2], queries, total + keys)
    if mask is not None and call.mask is False:
        changed["attention_mask"] = ~mask
    return changed


def _own_cache(call: CacheCall, given: Given) -> Cache | None:
    """The real cache of the text; cross-attention reads its keys anew, for its cache would keep them without rows."""
    cache: Cache | None = given.get(call.cache)
    if not isinstance(cache, EncoderDecoderCache):
        return cache
    crosses = any(given.get(name) is not None for name in ("key_value_states", "encoder_hidden_states"))
    return None if crosses else cache.self_attention_cache


def _mask(call: CacheCall, given: Given, queries: int, past: int, fronts: list[_Front]) -> Tensor | None:
    """The mask with columns for the rows, true where a key is visible if it is bool; None where all are."""
    mask: Tensor | None = given.get("attention_mask")
    x: Tensor = given[call.arguments[0]]
    if mask is None and call.is_causal and queries > 1:
        seen = torch.ones(queries, past + queries, dtype=torch.bool, device=x.device).tril(past)[None, None]
        mask = seen if call.mask is not None else torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, _least(x))
    elif mask is None and any(front.part.rows is not None for front in fronts):
        states = next((s for n in ("key_value_states", "encoder_hidden_states") if (s := given.get(n)) is not None), x)
        mask = x.new_zeros(1, 1, 1, past + states.shape[1])
    elif mask is not None and call.mask is False:
        mask = ~mask
    for front in reversed(fronts):
        mask = None if mask is None else with_columns(mask, front.part, front.length)
    return mask


def _columns(own: Tensor, at: Tensor, fronts: list[_Front]) -> Tensor:
    """The position bias of the rows in the text's terms: own [*, heads, 1, K], at [*, heads, Q, 1] each query's on
    itself -> [*, heads, Q, P]."""
    each = [front.delta.bias(own - at, at.shape[-2], front.length)[..., : front.length] for front in fronts]
    return torch.cat(each, dim=-1) + at


def _see(module: nn.Module, call: CacheCall, length: int) -> None:
    """Have the table of a local window show every query the rows: [1, 1, length + N, length + N]."""
    if call.table is None:
        return
    table = module.get_buffer(call.table)
    there = table.shape[-1] - call.positions
    if there != length:
        own = table[..., there:, there:]
        below = torch.cat([own.new_ones(1, 1, call.positions, length), own], dim=-1)
        module._buffers[call.table] = F.pad(below, (0, 0, length, 0))


def _argument(module: nn.Module, names: tuple[str, ...]) -> str | None:
    """The one of the names that the module's forward takes."""
    arguments = inspect.signature(module.forward).parameters
    return next((name for name in names if name in arguments), None) if "attention_mask" in arguments else None


def _measured(module: nn.Module, path: str, args: tuple[Any, ...], kwargs: Given) -> CacheCall | None:
    """How the module is called, from the arguments of one call; None where it tells its cache nothing."""
    arguments = tuple(inspect.signature(module.forward).parameters)
    cache = _argument(module, CACHES)
    assert cache is not None
    given = named(arguments, args, kwargs)
    heard = StandIn(None, ear=[])
    module(**{**given, cache: heard})
    if not heard.ear or len(heard.ear) != 1 or heard.ear[0][0].dim() != 4:
        return None
    key, value = heard.ear[0]
    bias = _argument(module, BIASES)
    call = CacheCall(
        key.shape[1], key.shape[3], value.shape[3],
        arguments=arguments, cache=cache, layer=heard.layer, bias=bias, is_measured=not key.is_meta,
    )  # fmt: skip
    call = _with_tables(module, call)
    if key.is_meta:
        return call
    call = _with_mask(call, given)
    _prove(module, path, call, given, (key, value))
    return call


def _with_tables(module: nn.Module, call: CacheCall) -> CacheCall:
    """With buffers that have a row for each position and are not saved."""
    for name in module._non_persistent_buffers_set:
        table = module.get_buffer(name)
        if table.dtype == torch.bool and table.shape == (1, 1, table.shape[-1], table.shape[-1]):
            call = replace(call, table=name, positions=table.shape[-1])
        if table.is_floating_point() and table.dim() == 2 and "position_ids" in call.arguments:
            call = replace(call, waves=name)
    return call


def _with_mask(call: CacheCall, given: Given) -> CacheCall:
    """With what the mask and the bias of a text of one row say, of which the last token alone is a pad."""
    mask, bias = given.get("attention_mask"), None if call.bias is None else given.get(call.bias)
    if mask is not None:
        hidden = mask[0, 0, 0, -1]
        visible = bool(mask[0, 0, 0, 0]) if mask.dtype == torch.bool else None
        call = replace(call, mask=visible, is_causal=bool(mask[0, 0, 0, 1] == hidden))
    if bias is None:
        return replace(call, bias=None)
    slopes = (bias[..., 1] - bias[..., 0]).reshape(-1)
    call = replace(call, slopes=tuple(slopes.tolist()))
    if mask is not None and mask.dtype != torch.bool:
        rise = mask[0, 0, -2, 1] - mask[0, 0, -2, 0]
        call = replace(call, share=float(rise / slopes[0]))
    return call


def _prove(module: nn.Module, path: str, call: CacheCall, given: Given, own: tuple[Tensor, Tensor]) -> None:
    """Raises NoSuchSite where hidden rows change what the module returns, or visible ones leave a token as it is."""
    key, value = own
    plain = probe.first_tensor(module(**given))
    moved = value + 1 + value.abs().max()
    assert plain is not None
    tolerance = 200 * torch.finfo(plain.dtype).eps * max(1.0, float(plain.abs().max()))
    real = slice(0, -1)
    for visible in (False, True):
        front = _Front(Part("", torch.tensor([visible])), FrontDelta(path), key, moved)
        try:
            _see(module, call, front.length)
            found = probe.first_tensor(module(**{**given, **_changed(call, given, [front], None)}))
        except (RuntimeError, ValueError, IndexError) as error:
            raise NoSuchSite(_refusal(module, path, f"takes no more keys than its own: {error}")) from error
        finally:
            _see(module, call, 0)
        assert found is not None
        change = (found - plain).abs()[:, real].amax(dim=-1)
        if not bool((change > tolerance).all() if visible else (change <= tolerance).all()):
            raise NoSuchSite(_refusal(module, path, "does not attend to keys in front of its own as to others"))


def _refusal(module: nn.Module, path: str, reason: str) -> str:
    return (
        f"{path} ({type(module).__name__}) {reason}; use prompt-tuning or p-tuning, which act on the embeddings, or an "
        "adapter"
    )


def _least(x: Tensor) -> float:
    return torch.finfo(x.dtype).min
