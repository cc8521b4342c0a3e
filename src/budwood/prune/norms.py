"""Norms over fewer channels: what their weights have to be, asked of the norms themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from budwood.prune.axes import Axes
from budwood.prune.fit import Subject


def rescaled(subject: Subject, axes: Axes, channels: Sequence[int]) -> dict[str, Tensor]:
    """The weights, whole, of the norms that lose channels, by name: larger by sqrt(before / after).

    A norm divides by the root of a mean over the channels. Where those that go carry little, the mean over the others
    is larger by before / after, so the result would be smaller by its root.
    """
    found: dict[str, Tensor] = {}
    for site in subject.anatomy.sites:
        name = f"{site.path}.weight"
        if site.kind == "norm" and name in axes and site.out_features > len(channels):
            weight = subject.state[name]
            offset = _offset(subject.modules[site.path], weight)
            factor = (weight.shape[-1] / len(channels)) ** 0.5
            found[name] = ((weight.detach().double() + offset) * factor - offset).to(weight.dtype)
    return found


def _offset(norm: nn.Module, weight: Tensor) -> float:
    """What a norm adds to its weight before it multiplies by it: 1 in Gemma's, 0 in most."""
    if weight.is_meta:
        return 0.0
    with torch.no_grad():
        x = torch.ones_like(weight)
        x[1::2] = -1
        gain = (norm(x) - norm(-x)) / (2 * x)
        without, with_one = ((gain - weight - offset).float().abs().mean() for offset in (0, 1))
    return 1.0 if bool(with_one < without) else 0.0
