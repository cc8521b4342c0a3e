"""Attention of packed tokens, and of short rows.

Two attention functions beside transformers' own, looked up by the name in a model's configuration while a fast forward
runs. `PACKED + name` puts packed tokens back beside each other, row by row, calls the function of that name, and packs
what it returns. `SHORT` keeps the probabilities, which for short rows is less work than computing them again in the
backward, and takes grouped heads as more rows instead of repeating keys; it serves any row up to `LONGEST` keys, and
leaves longer ones, dropout and everything it does not know to `sdpa`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from budwood.core.attention import admit
from budwood.fast.packing import Packed

LONGEST = 256
"""Most keys of a row for which probabilities are kept."""
SHORT = "budwood-short"
PACKED = "budwood-packed-"
SLOT = "budwood_packed"
"""Name under which an attention module is told of the packing, while a fast forward runs."""
UNKNOWN = ("position_bias", "softcap", "s_aux", "cache")
"""What `SHORT` leaves to sdpa."""


def attend_short(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **rest: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As transformers' sdpa. query: [B, heads, Q, D]; key, value: [B, H, K, D] -> [B, Q, heads, D]."""
    asked = any(rest.get(name) is not None for name in UNKNOWN)
    if dropout or asked or key.shape[2] > LONGEST or query.shape[2] == 1 or query.dtype != key.dtype:
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **rest
        )
        return found
    causal = vars(module).get("is_causal", True) if is_causal is None else is_causal
    if attention_mask is None and causal:
        length = query.shape[2]
        key, value = key[:, :, :length], value[:, :, :length]
        attention_mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=query.device).tril()
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    out: Tensor = _Attend.apply(query, key, value, _added(attention_mask, query.dtype), scale)
    return out, None


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers that are added to scores; where nothing may be seen, they are all alike."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


class _Attend(torch.autograd.Function):
    """softmax(s q k^T + mask) v, the probabilities kept."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """-> [B, Q, heads, D]."""
        B, heads, Q, D = query.shape
        H, K = key.shape[1:3]
        q = query.reshape(B * H, heads // H * Q, D)  # heads of one group as more rows
        k, v = key.reshape(B * H, K, D), value.reshape(B * H, K, value.shape[3])
        scores = torch.bmm(q, k.transpose(1, 2)).mul_(scale)  # [B * H, heads / H * Q, K]
        if mask is not None:
            scores.view(B, heads, Q, K).add_(mask[..., :K])
        weights = torch._softmax(scores, -1, False)
        ctx.save_for_backward(q, k, v, weights)
        ctx.shapes, ctx.scale = (query.shape, key.shape, value.shape), scale
        return torch.bmm(weights, v).view(B, heads, Q, -1).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """[B, Q, heads, D] -> of query, key and value."""
        q, k, v, weights = ctx.saved_tensors
        out = gradients[0].transpose(1, 2).reshape(q.shape[0], q.shape[1], v.shape[2])
        d_value = torch.bmm(weights.transpose(1, 2), out)
        d_weights = torch.bmm(out, v.transpose(1, 2))
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(ctx.scale)
        d_query, d_key = torch.bmm(d_scores, k), torch.bmm(d_scores.transpose(1, 2), q)
        query, key, value = ctx.shapes
        return d_query.view(query), d_key.view(key), d_value.view(value), None, None


def _register_packed(name: str) -> None:
    """The function `name`, for packed tokens."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
        *args: Any, **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        packed: Packed = vars(module)[SLOT]
        packed.calls += 1
        function, packing = AttentionInterface()[name], packed.packing
        if packing is None:
            plain: tuple[Tensor, Tensor | None] = function(module, query, key, value, attention_mask, *args, **kwargs)
            return plain
        query, key, value = (packing.unpack_heads(states) for states in (query, key, value))
        out, weights = function(module, query, key, value, attention_mask, *args, **kwargs)
        return packing.pack(out), weights

    AttentionInterface.register(PACKED + name, attend)
    AttentionMaskInterface.register(PACKED + name, AttentionMaskInterface()[name])


AttentionInterface.register(SHORT, attend_short)
AttentionMaskInterface.register(SHORT, AttentionMaskInterface()["sdpa"])
SHORT_BEHIND_ROWS = admit(SHORT)
NAMES = {"sdpa": SHORT, admit("sdpa"): SHORT_BEHIND_ROWS}
"""What a model is configured with, and the function that stands in for it where tokens are packed on a CPU."""
for _name in (*NAMES, *NAMES.values()):
    _register_packed(_name)
