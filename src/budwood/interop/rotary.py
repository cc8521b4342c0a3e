"""How a model's positions turn its keys: what makes a prefix for one numbering of positions that for another.

A rotary embedding turns pairs of a key's numbers by an angle that grows with the position. The angles are read off the
model: which of its frequencies, in which layout, takes the keys it makes at one position to those at another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site, probe
from budwood.core import using
from budwood.core.attention import ears

_SAMPLES = 16
"""Tokens whose keys are compared."""


@dataclass(frozen=True)
class Turn:
    """What a step of positions does to keys [*, D]: pairs of the first numbers are turned, the others stay."""

    angles: tuple[float, ...] = ()
    interleaved: bool = False
    """Pairs are neighbours (GPT-J, Cohere); else each half holds one of each pair (Llama, GPT-NeoX)."""

    def __call__(self, keys: Tensor, *, back: bool = False) -> Tensor:
        """keys: [*, D] -> [*, D] float64. back: the inverse."""
        keys = keys.detach().cpu().double()
        num = len(self.angles)
        first, second = (slice(0, 2 * num, 2), slice(1, 2 * num, 2)) if self.interleaved else _halves(num)
        angles = torch.tensor(self.angles, dtype=torch.float64) * (-1 if back else 1)
        a, b, turned = keys[..., first], keys[..., second], keys.clone()
        turned[..., first] = a * angles.cos() - b * angles.sin()
        turned[..., second] = b * angles.cos() + a * angles.sin()
        return turned

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"angles": list(self.angles), "interleaved": self.interleaved}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Turn:
        """The inverse of `to_dict`."""
        return cls(tuple(float(angle) for angle in fields["angles"]), bool(fields["interleaved"]))


def turns(model: nn.Module, anatomy: Anatomy, sites: Sequence[Site], steps: int) -> dict[str, Turn] | None:
    """By path, what `steps` positions do to the keys of each attention; None where they do anything but turn them."""
    if any(site.role == "embed.position" and site.layer is None for site in anatomy.sites):
        return None
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return {site.path: Turn() for site in sites}
    known = [Turn(), *_candidates(model, steps)]
    found: dict[str, Turn] = {}
    with probe.undisturbed(model), torch.no_grad(), using(model, None), ears(model, sites) as heard, probe.mixed(model):
        ids = torch.arange(_SAMPLES, device=next(model.parameters()).device).unsqueeze(1)  # [samples, 1]
        for position in (0, steps):
            model(input_ids=ids, position_ids=torch.full_like(ids, position))
    is_short = any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    for site in sites:
        (before, _), (after, _) = heard[site.path]
        tolerance, wanted = 5e-2 if is_short else 1e-4, after.cpu().double()
        fits = [(float((turn(before) - wanted).abs().max()), turn) for turn in known if _has_room(turn, site)]
        error, found[site.path] = min(fits, key=lambda fit: fit[0])
        if error > tolerance * float(before.abs().max()):
            return None
    return found


def _candidates(model: nn.Module, steps: int) -> Iterator[Turn]:
    """Every frequency table of the model, in both layouts."""
    for name, buffer in model.named_buffers():
        if name.endswith("inv_freq"):
            angles = tuple((buffer.detach().cpu().double() * steps).tolist())
            yield from (Turn(angles, interleaved) for interleaved in (False, True))


def _has_room(turn: Turn, site: Site) -> bool:
    return site.call is not None and 2 * len(turn.angles) <= site.call.key_size


def _halves(num: int) -> tuple[slice, slice]:
    return slice(0, num), slice(num, 2 * num)
