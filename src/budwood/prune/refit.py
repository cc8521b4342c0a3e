"""New weights for what reads cut units: least squares on calibration text, one linear after another, in one forward.

Where a linear has lost inputs, its new weights W' are solved for on the spot, from what the cut network reads there,

    min ||X W'^T - T||^2 + lambda ||W' - W||^2,    lambda = ridge * mean diagonal of X^T X

and the forward goes on with them. Two targets T:

local:  what the uncut linear makes of the cut network's own full input;
global: what leaves the residual stream after the sub-layer as it is in the uncut network, whose forward over the same
        rows runs beside. So every linear behind a cut also makes up for it, blocks that are gone included. Where the
        sum is not linear in the weights (a norm of the output before it, Gemma 2), the target is the local one.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from budwood.anatomy import Anatomy, Site, SubLayer, discover
from budwood.core import adapters
from budwood.data import Batch
from budwood.errors import BadConfig, WrongOrder
from budwood.evaluate import evaluating
from budwood.prune.calibration import After, joined, listening, logits_at, rows_of, summed_loss, text
from budwood.prune.kept import Kept, Structure

TOKENS = 32768
"""Calibration tokens of one refit, padding included; rows beyond are left out. All go through one forward, which takes
about 20 (d + f) bytes for each in a model of width d with f neurons, and twice that for the global target (135 M
parameters: 1.4 and 2.8 GB)."""

Target = Literal["global", "local"]


def refit(
    model: Any,
    kept: Kept,
    batches: Iterable[Batch],
    *,
    structure: Structure,
    anatomy: Anatomy | None = None,
    ridge: float = 1e-2,
    target: Target | None = None,
) -> dict[str, Tensor]:
    """New full-size values by parameter name, for `cut(..., weights=...)`; columns of units that are cut are zero.

    target: None is global where blocks are cut, which nothing else makes up for, and local elsewhere, at half the cost
    Raises BadData where there is no text, WrongOrder where an adapter is attached.
    """
    lost = any(len(numbers) < structure.depths[stack] for stack, numbers in kept.layers.items())
    target = target or ("global" if lost else "local")
    fit = Fit(model, kept, joined(model, batches, TOKENS), structure, anatomy=anatomy, ridge=ridge, target=target)
    first = torch.zeros(1, dtype=torch.int64, device=model.device)
    with evaluating(model), fit.listening():
        logits_at(model, fit.batch, first, first)
    return fit.weights


@dataclass(frozen=True)
class _Linear:
    """One linear that may get new weights."""

    site: Site
    sublayer: SubLayer | None
    features: Tensor | None
    """[kept] int64 of the inputs that stay; None for all."""
    share: float
    """Of the difference between the streams, how much it makes up for; 0 where that is not possible."""
    is_fitted: bool
    """False for a linear that one forward runs several times: it only loses inputs."""


class Fit:
    """One refit: what happens in a forward over `batch`, for the global target with the uncut model's rows first."""

    def __init__(
        self,
        model: Any,
        kept: Kept,
        batch: Batch,
        structure: Structure,
        *,
        anatomy: Anatomy | None,
        ridge: float,
        target: Target,
    ) -> None:
        if adapters(model):
            raise WrongOrder(f"adapter {next(iter(adapters(model)))!r} is attached; merge or detach it, then refit")
        self.model, self.batch, self.ridge, self.target = model, batch, ridge, target
        if target == "global":
            self.batch = batch.repeated(2)
        self.weights: dict[str, Tensor] = {}
        self._there = {stack: text(batch, stack) for stack in structure.depths}
        self._streams: dict[tuple[str, str], Tensor] = {}
        self._is_changed = False
        anatomy = anatomy or discover(model)
        blocks = [s for s in anatomy.sites if s.role == "block" and s.layer is not None]
        self._blocks = [s.path for s in blocks]
        self._gone = [s.path for s in blocks if s.layer not in kept.layers.get(s.stack, (s.layer,))]
        self._linears = _linears(anatomy, structure, kept, is_global=target == "global", device=model.device)

    def listening(self) -> AbstractContextManager[None]:
        """Inside, forwards over `batch` solve for weights; there must be no second one."""
        residuals = {one.sublayer.r for one in self._linears if one.sublayer is not None and one.share}
        before = [(path, partial(self._keep, (path, end))) for path, end in residuals if end == "input"]
        after: list[tuple[str, After]] = [(path, self._skip) for path in self._gone]
        after += [(one.site.path, partial(self._solve, one)) for one in self._linears]
        after += [(path, partial(self._keep_output, (path, end))) for path, end in residuals if end == "output"]
        after += [(path, self._forget) for path in self._blocks]
        return listening(self.model, before, after)

    def loss(self) -> float:
        """Solve, and the summed loss of what is kept on the way. Raises BadData where nothing is labelled."""
        with evaluating(self.model), self.listening():
            return float(summed_loss(self.model, self.batch, after=self._uncut(self.batch.input_ids)))

    def _uncut(self, states: Tensor) -> int:
        """How many rows, or positions, of some states [2 B, *] are the uncut model's: none where only one runs."""
        return len(states) // 2 if self.target == "global" else 0

    def _keep(self, key: tuple[str, str], states: Tensor) -> None:
        self._streams[key] = states

    def _keep_output(self, key: tuple[str, str], x: Tensor, y: Tensor) -> None:
        self._streams[key] = y

    def _forget(self, x: Tensor, y: Tensor) -> None:
        """Behind a block nothing asks for its streams."""
        self._streams.clear()

    def _skip(self, x: Tensor, y: Tensor) -> Tensor:
        """A block that is cut returns what it reads. x, y: [2 B, T, d]"""
        self._is_changed = True
        return torch.cat([y[: self._uncut(y)], x[self._uncut(x) :]])

    def _solve(self, linear: _Linear, x: Tensor, y: Tensor) -> Tensor | None:
        """x: [2 B, T, in], y: [2 B, T, out] -> y with the cut network's half by the new weights."""
        module = self.model.get_submodule(linear.site.path)
        if linear.features is None and not (self._is_changed and linear.share):
            return None
        half = self._uncut(y)
        weight, bias = _values(module, linear.site)
        new = weight.clone()
        if linear.features is not None:
            self._is_changed = True
            new = torch.zeros_like(weight)
            new[:, linear.features] = weight[:, linear.features]
        if linear.is_fitted:
            there = self._there[linear.site.stack]
            target = rows_of(y[:half] if linear.share else y[half:], there).to(weight)
            if linear.share:
                target += linear.share * self._behind(linear, there).to(weight)
            read = rows_of(x[half:], there).to(weight)
            error = target - F.linear(read, new, bias)
            read = read if linear.features is None else read[:, linear.features]
            change, shift = solve(read, error, self.ridge, centred=bias is not None)
            new[:, slice(None) if linear.features is None else linear.features] += change
            bias = None if bias is None else bias + shift
            self._note(linear.site, module, new, bias)
        return torch.cat([y[:half], F.linear(x[half:].to(weight), new, bias).to(y)])

    def _behind(self, linear: _Linear, there: Tensor) -> Tensor:
        """What the cut network's stream lacks, in terms of the linear's output: [positions, out]."""
        assert linear.sublayer is not None
        stream = self._streams[linear.sublayer.r]
        half = self._uncut(stream)
        return (rows_of(stream[:half], there) - rows_of(stream[half:], there)) / linear.sublayer.scale

    def _note(self, site: Site, module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
        own = module.get_parameter("weight")
        self.weights[f"{site.path}.weight"] = (weight.T if site.kind == "conv1d" else weight).to(own.dtype).contiguous()
        if bias is not None:
            self.weights[f"{site.path}.bias"] = bias.to(own.dtype)


def solve(x: Tensor, error: Tensor, ridge: float, *, centred: bool) -> tuple[Tensor, Tensor]:
    """(D, b) that minimise ||x D^T + b - error||^2 + lambda ||D||^2: [out, in] and [out], 0 unless centred.

    x: [n, in];  error: [n, out];  lambda: ridge times the mean diagonal of x^T x. Products of 4,096 rows are added up,
    and the system is solved, in float64.
    """
    shift = error.new_zeros(error.shape[1])
    x_mean = x.mean(dim=0) if centred else None
    if x_mean is not None:
        shift = error.mean(dim=0)
        x, error = x - x_mean, error - shift
    exact = "cpu" if x.device.type == "mps" else x.device  # which has no float64
    gram = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64, device=exact)
    cross = torch.zeros(x.shape[1], error.shape[1], dtype=torch.float64, device=exact)
    for part, wrong in zip(x.split(4096), error.split(4096), strict=True):
        gram += (part.T @ part).to(gram)
        cross += (part.T @ wrong).to(cross)
    size = gram.diagonal().mean()
    if not size > 0:  # inputs that are always zero say nothing
        return error.new_zeros(error.shape[1], x.shape[1]), shift
    gram.diagonal().add_(ridge * size)
    change = torch.cholesky_solve(cross, torch.linalg.cholesky(gram)).T.to(x)
    return change, shift if x_mean is None else shift - change @ x_mean


def _values(module: nn.Module, site: Site) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias in float32 at least. Raises BadConfig for a quantised linear."""
    weight = module.get_parameter("weight")
    if not weight.is_floating_point():
        raise BadConfig(f"{site.path} is stored as {weight.dtype}; load the model unquantised, then refit")
    dtype = torch.promote_types(weight.dtype, torch.float32)
    bias = module._parameters.get("bias")
    return (weight.T if site.kind == "conv1d" else weight).to(dtype), None if bias is None else bias.to(dtype)


def _linears(anatomy: Anatomy, structure: Structure, kept: Kept, *, is_global: bool, device: Any) -> list[_Linear]:
    """Every linear that loses inputs or, for the global target, adds to the stream of a block that stays."""
    sites, sublayers = {s.path: s for s in anatomy.sites}, {s.linear: s for s in anatomy.sublayers}
    features = {
        u.path: torch.tensor(kept.units[u.path], device=device)[:, None] * u.width
        + torch.arange(u.width, device=device)
        for u in structure.units
        if len(kept.units.get(u.path, range(u.count))) < u.count
    }
    found = []
    for path in dict.fromkeys([*features, *sublayers]):
        site, sublayer = sites[path], sublayers.get(path)
        if not site.is_linear or site.layer not in kept.layers.get(site.stack, (site.layer,)):
            continue
        repeated = any(path.startswith(f"{block}.") for block in anatomy.repeated)
        beside = [s for s in anatomy.sublayers if (s.stack, s.layer) == (site.stack, site.layer) and s.is_parallel]
        share = 0.0
        if is_global and sublayer is not None and sublayer.output_norm is None and not repeated:
            share = 1 / sum(sites[s.linear].is_linear for s in beside) if sublayer.is_parallel else 1.0
        lost = features[path].flatten() if path in features else None
        if lost is not None or share:
            found.append(_Linear(site, sublayer, lost, share, is_fitted=not repeated))
    return found
