"""Which rows of a fused projection are queries, keys and values: asked of the attention itself, not of a table.

The attention module is run again with the projection's output `y` [tokens, rows] replaced, and differentiated
at its last token:

  - `y` random: the rows of earlier tokens that matter are keys and values (a token's query serves itself only);
  - `y` the same at every token: all values are equal, so how they are weighed cannot matter, and the only rows
    with a gradient are values.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy.probe import Trace, first_tensor, undisturbed
from budwood.anatomy.site import Part


def find_parts(model: nn.Module, fused: Mapping[str, tuple[str, str]], trace: Trace) -> dict[str, tuple[Part, ...]]:
    """Parts by path of fused projection.

    `fused`: for each projection, the paths of its attention module and of the output projection that reads
    the heads, or of the attention module again where the heads are its result.
    A projection whose rows do not fall apart into queries, keys and values is left out.
    On the meta device one copy per kind of attention is given random weights, and its answer used for all.
    """
    found: dict[str, tuple[Part, ...]] = {}
    known: dict[str, tuple[Part, ...]] = {}
    for path, (attention, out) in fused.items():
        module = model.get_submodule(attention)
        names = (path.removeprefix(f"{attention}."), out.removeprefix(attention).lstrip("."))
        is_meta = any(p.is_meta for p in module.parameters())
        if is_meta and (kind := str(module)) in known:
            found[path] = known[kind]
            continue
        args, kwargs = trace.arguments[attention]
        if is_meta:
            parts = known[kind] = _ask_copy(module, names, args, kwargs)
        else:
            parts = _ask(module, names, args, kwargs)
        if parts:
            found[path] = parts
    return {path: parts for path, parts in found.items() if parts}


def _ask_copy(module: nn.Module, names: tuple[str, str], args: Any, kwargs: Any) -> tuple[Part, ...]:
    """The answer of a copy with random weights, empty where that cannot run on random arguments.

    Whether a mask hides or shows where it is true is told by trying both.
    """
    copied = _materialise(copy.deepcopy(module), True)
    for truth in (True, False):
        try:
            parts = _ask(copied, names, _materialise(args, truth), _materialise(kwargs, truth))
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return ()
        if parts:
            return parts
    return ()


def _ask(module: nn.Module, names: tuple[str, str], args: Any, kwargs: Any) -> tuple[Part, ...]:
    """Queries, keys and values of one attention; empty if any row is none of them."""
    generator = torch.Generator().manual_seed(0)
    linear, out = (module.get_submodule(name) for name in names)
    run = (module, linear, out, args, kwargs, generator)
    earlier, own = _gradients(*run, is_constant=False)
    same = torch.stack(_gradients(*run, is_constant=True)).sum(0)
    is_value = same > 0.1 * same.max()
    is_key = (earlier > 0) & ~is_value
    is_query = (earlier == 0) & (own > 0) & ~is_value
    if not bool((is_query | is_key | is_value).all()) or int(is_key.sum()) != int(is_value.sum()):
        return ()
    masks = {"attn.q": is_query, "attn.k": is_key, "attn.v": is_value}
    return tuple(Part(role, _ranges(mask)) for role, mask in masks.items())


def _gradients(
    module: nn.Module, linear: nn.Module, out: nn.Module, args: Any, kwargs: Any, generator: torch.Generator,
    *, is_constant: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """How much the last token's heads depend on each row of `y`: at earlier tokens, and at its own. Each [rows]."""
    seen: list[Any] = []
    leaves: list[Tensor] = []

    def replace(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        shape = y.shape if not is_constant else (*[1] * (y.dim() - 1), y.shape[-1])
        random = torch.randn(shape, generator=generator).to(y) * 0.5
        leaves.append(random.expand(y.shape).contiguous().requires_grad_())
        return leaves[-1].clone()

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])

    def keep_result(_: nn.Module, __: Any, y: Any) -> None:
        seen.append(first_tensor(y))

    handles = [linear.register_forward_hook(replace)]
    is_inside = out is not module
    handles.append(out.register_forward_pre_hook(keep) if is_inside else out.register_forward_hook(keep_result))
    try:
        with undisturbed(module), torch.enable_grad():
            module(*args, **kwargs)
            heads = seen[0].reshape(-1, seen[0].shape[-1])[-1]
            weights = torch.rand(heads.shape, generator=generator).to(heads) + 0.5
            (gradient,) = torch.autograd.grad((heads * weights).sum(), leaves)
    finally:
        for handle in handles:
            handle.remove()
    gradient = gradient.reshape(-1, gradient.shape[-1]).float().cpu()
    if is_constant:
        return gradient[:-1].sum(0).abs(), gradient[-1].abs()
    return gradient[:-1].abs().amax(0), gradient[-1].abs()


def _ranges(mask: Tensor) -> tuple[tuple[int, int], ...]:
    """Half-open ranges of the rows where `mask` is true."""
    rows = mask.nonzero().flatten().tolist()
    runs = [list(run) for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0])]
    return tuple((run[0][1], run[-1][1] + 1) for run in runs)


def _materialise(what: Any, truth: bool) -> Any:
    """The same on the CPU in fp32, with random numbers, `truth` or zero indices in place of meta tensors."""
    if isinstance(what, nn.Module):
        what = what.to_empty(device="cpu").float()
        with torch.no_grad():
            for tensor in (*what.parameters(), *what.buffers()):
                tensor.copy_(_numbers(tensor, truth))
        return what
    if isinstance(what, Tensor):
        return _numbers(what, truth)
    if isinstance(what, dict):
        return {name: _materialise(value, truth) for name, value in what.items()}
    if isinstance(what, (tuple, list)):
        return type(what)(_materialise(value, truth) for value in what)
    return what


def _numbers(like: Tensor, truth: bool) -> Tensor:
    if like.dtype == torch.bool:
        return torch.full(like.shape, truth)
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1))
