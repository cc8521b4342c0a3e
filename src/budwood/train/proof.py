"""Proof that training changed what it should and nothing else, checked while it is cheap to stop."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from budwood.core.registry import registry_of
from budwood.errors import VerificationFailed
from budwood.train.feed import Feed
from budwood.train.objective import Objective
from budwood.train.setup import Prepared

FIRST = 4
"""Steps whose rows and gradients are remembered, for the reasons of tensors that did not move."""

NOISE = 1e-5
"""A gradient below this share of the largest one is rounding: the loss does not depend on that tensor."""


@dataclass(frozen=True, kw_only=True)
class Movement:
    """What is proved of a run's parameters."""

    steps: int
    """After so many steps."""
    moved: int
    """Trained tensors that changed."""
    frozen: int
    """Other tensors, all bit for bit what they were."""
    unmoved: dict[str, str] = field(default_factory=dict)
    """Trained tensors that did not change, each with the reason found for it."""

    def __str__(self) -> str:
        text = f"{self.moved} trained tensors moved, {self.frozen} others are unchanged, after {self.steps} steps"
        return text + "".join(f"; {name} did not move: {reason}" for name, reason in self.unmoved.items())


class Ledger:
    """Remembers every tensor's digest before training, and compares.

    Make it after `prepare` and before a state is loaded: a resumed run then proves itself against its beginning.
    """

    def __init__(self, prepared: Prepared, objective: Objective, feed: Feed, *, after: int) -> None:
        self.prepared, self.objective, self.feed, self.after = prepared, objective, feed, after
        self._trained = {name: digest(p) for name, p in prepared.parameters.items()}
        self._frozen = {name: digest(t) for name, t in frozen_tensors(prepared)}
        self._seen: list[int] = []
        self._largest: dict[str, float] = {}
        self._steps = 0
        self._excused: dict[str, str] = {}
        self.movement: Movement | None = None

    def after_step(self, step: int, rows: Sequence[int]) -> None:
        """To be called between the update and the clearing of gradients; proves once, after `after` steps.

        Raises VerificationFailed, naming tensors and reasons.
        """
        self._steps += 1
        if self._steps <= max(self.after, FIRST):
            self._seen += rows
            self._measure(self.prepared.parameters)
        else:
            self._measure(self._excused)  # an expert that is chosen later has moved after all
        if self.movement is None and self.after and step >= self.after:
            self.movement = self._prove(step)

    def finish(self, step: int) -> Movement:
        """The proof for the whole run. Raises VerificationFailed, naming tensors and reasons."""
        self.movement = self._prove(step)
        return self.movement

    def _prove(self, step: int) -> Movement:
        changed = [name for name, tensor in frozen_tensors(self.prepared) if digest(tensor) != self._frozen[name]]
        if changed:
            raise VerificationFailed(
                f"{len(changed)} tensors that are not trained changed within {step} steps: {_shown(changed)}. "
                "Something outside of this run writes to the model; load it again and train nothing else meanwhile"
            )
        still = [name for name in self._trained if not self._has_moved(name)]
        fresh = [name for name in still if name not in self._excused]
        if fresh:
            self._excused |= self._explain(fresh, step)
        return Movement(
            steps=step,
            moved=len(self._trained) - len(still),
            frozen=len(self._frozen),
            unmoved={name: self._excused[name] for name in still},
        )

    def _measure(self, names: Iterable[str]) -> None:
        """Remember the largest gradients."""
        for name in names:
            grad = self.prepared.parameters[name].grad
            if grad is not None:
                self._largest[name] = max(grad.abs().max().item(), self._largest.get(name, 0.0))

    def _has_moved(self, name: str) -> bool:
        """Changed, and by a gradient: weight decay alone moves a tensor that learns nothing."""
        changed = digest(self.prepared.parameters[name]) != self._trained[name]
        return changed and (self._steps == 0 or self._largest.get(name, 0.0) > 0.0)

    def _explain(self, still: Sequence[str], step: int) -> dict[str, str]:
        """A checked reason for each tensor that did not move; VerificationFailed for those that have none."""
        largest = max(self._largest.values(), default=0.0)
        use = _watch(self.prepared, self.objective, self.feed, self._seen, still)
        excused, dead = {}, {}
        for name in still:
            size = self._largest.get(name)
            reason = self._reason(name, size, largest, step, use[name])
            if reason is None:
                dead[name] = _symptom(size)
            else:
                excused[name] = reason
        if dead:
            shown = "; ".join(f"{name}: {why}" for name, why in list(dead.items())[:6])
            more = f" and {len(dead) - 6} more" if len(dead) > 6 else ""
            raise VerificationFailed(
                f"{len(dead)} of {len(self._trained)} trained tensors did not move in {step} steps: {shown}{more}. "
                "Leave these targets out, or raise the learning rate if it is very small "
                f"(now {self.prepared.learning_rate:g})"
            )
        return excused

    def _reason(self, name: str, size: float | None, largest: float, step: int, use: _Use) -> str | None:
        """Why a tensor cannot have moved, None if there is no such reason."""
        if use.rows is not None and not use.rows:
            return "none of its rows was looked up"
        if not use.ran and use.is_one_of_many:
            return "no token was sent to this expert"
        if not use.ran and name in self.prepared.adapter.unfrozen:
            return "the model's forward does not use it"
        if size is not None and size <= NOISE * largest and _is_key_bias(self.prepared, name):
            return "attention does not depend on a shift of all keys"
        if size == 0.0 and step < 2:
            return "its gradient is zero in the first step, as its partner starts at zero"
        return None


@dataclass
class _Use:
    """What a few forwards did with the module that a parameter belongs to."""

    ran: bool = False
    is_one_of_many: bool = False
    """It stands in a list of modules of which others ran."""
    rows: set[int] | None = None
    """For an embedding's table, the rows that were looked up (padding's left out)."""


def frozen_tensors(prepared: Prepared) -> Iterable[tuple[str, Tensor]]:
    """Every saved tensor of the model that is not trained: base weights, buffers, other adapters."""
    trained = {id(parameter) for parameter in prepared.parameters.values()}
    for name, tensor in prepared.model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in trained:
            yield name, tensor


def digest(tensor: Tensor) -> bytes:
    """Of the tensor's exact bytes: 16 bytes."""
    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(plain.numpy().data, digest_size=16).digest()


def _watch(
    prepared: Prepared, objective: Objective, feed: Feed, seen: Sequence[int], names: Sequence[str]
) -> dict[str, _Use]:
    """How the owners of some parameters are used by forwards over the rows seen so far."""
    uses = {name: _Use() for name in names}
    owners = {name: _owner(prepared, name) for name in names}
    ran: set[nn.Module] = set()
    handles = []

    def listener(name: str) -> Any:
        def listen(module: nn.Module, args: Any, output: Any) -> None:
            ran.add(module)
            if isinstance(module, nn.Embedding) and args:
                rows = set(args[0].flatten().tolist()) - {module.padding_idx}
                uses[name].rows = (uses[name].rows or set()) | rows

        return listen

    for name, owner in owners.items():
        handles.append(owner.register_forward_hook(listener(name)))
    siblings = {name: _siblings(prepared.model, owner) for name, owner in owners.items()}
    for module in {module for group in siblings.values() for module in group}:
        handles.append(module.register_forward_hook(lambda module, args, output: ran.add(module)))
    try:
        with torch.no_grad(), prepared.arithmetic():
            for index in dict.fromkeys(seen):
                objective(prepared.model, feed.batch([index]).to(prepared.device))
    finally:
        for handle in handles:
            handle.remove()
    for name, owner in owners.items():
        uses[name].ran = owner in ran
        uses[name].is_one_of_many = any(module in ran for module in siblings[name])
        if isinstance(owner, nn.Embedding) and owner in ran:
            uses[name].rows = uses[name].rows or set()
    return uses


def _owner(prepared: Prepared, name: str) -> nn.Module:
    """The base module that a trained parameter belongs to or acts at."""
    paths = [name.rsplit(".", 1)[0], *sorted((s.path for s in prepared.adapter.sites), key=len, reverse=True)]
    path = next((p for p in paths[1:] if name.startswith(f"{p}.")), paths[0])
    return prepared.model.get_submodule(path)


def _siblings(model: nn.Module, owner: nn.Module) -> list[nn.Module]:
    """The other members of the innermost list of experts around a module, if it is inside of one."""
    found: list[nn.Module] = []
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and "expert" in path.rsplit(".", 1)[-1].lower():
            members = [m for m in module if owner not in set(m.modules())]
            if len(members) == len(module) - 1:
                found = members
    return found


def _is_key_bias(prepared: Prepared, name: str) -> bool:
    """Whether the parameter is added to every key alike, which a softmax over keys cannot see."""
    registry = registry_of(prepared.model)
    sites = registry.anatomy.sites if registry else ()
    keys = {f"{site.path}." for site in sites if site.role in ("attn.k", "cross.k")}
    return name.startswith(tuple(keys)) and name.rsplit(".", 1)[-1] in ("bias", "b")


def _symptom(size: float | None) -> str:
    if size is None:
        return "no gradient reached it"
    if size == 0.0:
        return "its gradient is exactly zero"
    return f"it has a gradient (up to {size:.3g}) but was not updated"


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
