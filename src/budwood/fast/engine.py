"""Fast forwards of one model: what can be computed with less work, and the proof that it is the same.

A model is tried on a sample of rows, both ways, before anything relies on it: the loss and every gradient must agree.
Where they do not, or where it is known beforehand that they cannot, the plain path is taken, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.core.attention import configs_of
from budwood.core.delta import Deltas
from budwood.errors import BudwoodError
from budwood.fast.attention import NAMES
from budwood.fast.lower import Lower
from budwood.fast.stacks import Stack, frozen_below, packing, stacks_of

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest distance between the two, as a share of the plain one's length, by what products are computed in. Rounding
alone makes some 1e-6 in float32, and 4e-2 in bfloat16, by which either of the two is off."""

Step = Callable[[], Tensor]
"""The loss [] of a sample, with a graph."""


@dataclass(frozen=True, kw_only=True)
class Fast:
    """How forwards of a model are computed."""

    model: nn.Module | None = None
    stacks: tuple[Stack, ...] = ()
    """The stacks that are packed; none takes the plain path."""
    why: str = "nothing else was asked for"
    """Why the plain path is taken; or what showed that the fast one is the same."""

    @property
    def lower(self) -> Lower | None:
        """What frozen blocks made of rows before."""
        return self.stacks[0].packed.lower if self.stacks else None

    @contextmanager
    def reading(self, rows: Sequence[int]) -> Iterator[None]:
        """Forwards inside read these of the rows that `lower` counts; none leaves it out."""
        if self.lower is not None:
            self.stacks[0].packed.rows = tuple(rows)
        try:
            yield
        finally:
            if self.lower is not None:
                self.stacks[0].packed.rows = ()

    @property
    def is_packed(self) -> bool:
        """Whether padding is left out."""
        return bool(self.stacks)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forwards inside, and their backwards, are fast."""
        if self.model is None or not self.stacks:
            yield
            return
        with packing(self.model, self.stacks):
            yield

    def __str__(self) -> str:
        kept = f"; what the {self.lower.cut} frozen blocks make of a row is computed once" if self.lower else ""
        return f"rows are packed{kept}: {self.why}" if self.is_packed else f"rows are padded: {self.why}"


PLAIN = Fast()
"""The plain path, unasked."""


def engage(
    model: nn.Module, anatomy: Anatomy, step: Step, parameters: Mapping[str, nn.Parameter], compute: torch.dtype
) -> Fast:
    """The fast way for a model with its adapters, if it is the same on a sample; the plain one, with why, otherwise.

    step:        of a few rows of different lengths; called twice, in the mode that the model is in
    parameters:  whose gradients must agree; they are thrown away
    compute:     what products are computed in
    """
    try:
        stacks = stacks_of(model, anatomy)
    except BudwoodError as error:
        return Fast(why=str(error))
    refusal = _refusal(model)
    if refusal:
        return Fast(why=refusal)
    plain = _measured(step, parameters)
    try:
        with packing(model, stacks):
            fast = _measured(step, parameters)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Fast(why=f"{type(model).__name__} cannot be computed packed ({text})")
    silent = next((stack for stack in stacks if stack.packed.calls < len(stack.attentions)), None)
    if silent is not None:
        return Fast(why=f"{type(silent.attentions[0]).__name__} computes its attention itself")
    return _verdict(model, stacks, plain, fast, TOLERANCE[compute])


def keep_lower(
    fast: Fast, step: Step, parameters: Mapping[str, nn.Parameter], rows: Sequence[int],
    lower_of: Callable[[int], Lower],
) -> Fast:  # fmt: skip
    """The same, keeping what frozen blocks make of rows, where these make the same of them each time.

    step:      as `engage` has it, of `rows`;  lower_of: a place for it, for so many blocks
    """
    if fast.model is None or len(fast.stacks) != 1:
        return fast
    model, (stack,) = fast.model, fast.stacks
    cut = frozen_below(stack)
    if not cut:
        return fast
    before = _measured_fast(fast, step, parameters, ())
    lower = stack.packed.lower = lower_of(cut)
    seen = []
    mode = model.training
    model.train()  # dropout shows, where there is some
    for _ in range(2):
        lower.forget()
        with fast.running(), fast.reading(rows):
            step()  # with its graph: states that want a gradient are not frozen
        seen.append(lower.get(rows) if lower.has(rows) else None)
    model.train(mode)
    first, second = seen
    same = first is not None and second is not None and torch.equal(first, second)
    if same and stack.packed.lower is not None:
        after = _measured_fast(fast, step, parameters, rows)
        same = before[0] == after[0] and distance(before[1], after[1]) == 0.0
    if not same:
        stack.packed.lower = None
    return fast


def _measured_fast(
    fast: Fast, step: Step, parameters: Mapping[str, nn.Parameter], rows: Sequence[int]
) -> tuple[float, dict[str, Tensor]]:
    with fast.running(), fast.reading(rows):
        return _measured(step, parameters)


def _refusal(model: nn.Module) -> str | None:
    """What is known to need rows beside each other."""
    names = {config._attn_implementation_internal for config in configs_of(model)}
    if not names & set(NAMES):
        return f"the attention implementation is {', '.join(sorted(str(name) for name in names)) or 'its own'}"
    for module in model.modules():
        if isinstance(module, Deltas):
            mixing = next((name for name in module._modules if module[name].mixes_tokens), None)
            if mixing is not None:
                return f"{mixing} weighs what it does to a token by its whole row"
        elif vars(module).get("gradient_checkpointing") is True:
            return "activations are computed again in the backward"
    return None


def _measured(step: Step, parameters: Mapping[str, nn.Parameter]) -> tuple[float, dict[str, Tensor]]:
    """(loss, gradients) of a sample; none stay."""
    own = list(parameters.values())
    loss = step()
    loss.backward()
    found = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for parameter in own:
        parameter.grad = None
    return loss.item(), found


def _verdict(
    model: nn.Module,
    stacks: tuple[Stack, ...],
    plain: tuple[float, dict[str, Tensor]],
    fast: tuple[float, dict[str, Tensor]],
    tolerance: float,
) -> Fast:
    off = abs(fast[0] - plain[0]) / max(abs(plain[0]), 1e-12)
    error = distance(plain[1], fast[1])
    said = f"on a sample the loss is off by {off:.1g} and gradients by {error:.1g} of their length"
    if off <= tolerance and error <= tolerance:
        return Fast(model=model, stacks=stacks, why=said)
    return Fast(why=f"packed, {said}, and at most {tolerance:g} is rounding")


def distance(plain: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """|other - plain| / |plain| over all gradients; infinite for other parameters, and where there is no number."""
    if plain.keys() != other.keys():
        return float("inf")
    apart = sum((float((other[n].double() - g.double()).square().sum()) for n, g in plain.items()), 0.0)
    length = sum((float(g.double().square().sum()) for g in plain.values()), 0.0)
    share = (apart / max(length, 1e-300)) ** 0.5
    return share if share == share else float("inf")
