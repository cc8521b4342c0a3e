"""Where a sub-layer's output `h` goes: the sum it enters, the residual it meets there, the norm that follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from budwood.anatomy.probe import MAPPED, Call, Op, Trace
from budwood.anatomy.site import SubLayer


class Unknown(Exception):
    """Why one sub-layer cannot be established. Never leaves this module."""


@dataclass(frozen=True, slots=True)
class End:
    """Where a sub-layer ends: its last linear, or the whole module of a mixture of experts."""

    role: Literal["attn", "cross", "mlp"]
    block: str
    stack: str
    layer: int
    path: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """What becomes of `h` on its way into the sum: `value` is what is added."""

    h: str
    value: int
    output_norm: str | None
    scale: float
    tick: int
    """When `h` was there: a residual must be readable before."""


class Finder:
    """Reads sub-layers off a trace. `norms` and `linears` are paths; `modules` is the model's modules by path."""

    def __init__(
        self, trace: Trace, modules: Mapping[str, nn.Module], norms: Iterable[str], linears: Iterable[str]
    ) -> None:
        self.trace, self.modules = trace, modules
        self.norms, self.linears = frozenset(norms), frozenset(linears)

    def find(self, ends: Iterable[End]) -> tuple[tuple[SubLayer, ...], tuple[str, ...]]:
        """The sub-layers, and a sentence for each end for which there is none."""
        found: list[SubLayer] = []
        unknown: list[str] = []
        arrivals: dict[End, list[Arrival]] = {}
        for end in ends:
            try:
                arrivals[end] = [self._arrive(end, call) for call in self._calls(end)]
            except Unknown as why:
                unknown.append(f"{end.block} {end.role}: {why}")
        added = {a.value: end for end, several in arrivals.items() for a in several}
        for end, several in arrivals.items():
            try:
                answers = {self._sublayer(end, arrival, added) for arrival in several}
                if len(answers) != 1:
                    raise Unknown(f"the calls of {end.path} differ in where their results go")
                found.append(answers.pop())
            except Unknown as why:
                unknown.append(f"{end.block} {end.role}: {why}")
        return tuple(found), tuple(unknown)

    def _calls(self, end: End) -> list[Call]:
        calls = self.trace.by_path[end.path]
        if not calls:
            raise Unknown(f"the forward did not run {end.path}")
        return calls

    def _arrive(self, end: End, call: Call) -> Arrival:
        """Follow `h` through dropout, an output norm and a constant factor, up to the sum."""
        assert call.output is not None
        value, output_norm, scale = call.output, None, 1.0
        norm = self._only_norm(value, end.block)
        if norm is not None and norm.output is not None:
            value, output_norm = norm.output, norm.path
        op = self._only_consumer(value, end)
        if op.name.startswith("aten.mul") and op.factor is not None and op.output is not None:
            value, scale = op.output, op.factor
            op = self._only_consumer(value, end)
        if not op.name.startswith("aten.add") or op.factor not in (None, 1):
            raise Unknown(f"the output of {end.path} goes into {op.name} of {op.module}, not into a plain sum")
        self._check_known(op, end)
        return Arrival(self._dropout(end, call), value, output_norm, scale, call.stop)

    @staticmethod
    def _check_known(op: Op, end: End) -> None:
        """A sum with something that is no value of the forward (a bias of the block's own) is not h + r."""
        if len(op.inputs) != 2:
            raise Unknown(f"{op.module} adds a constant or parameter of its own to the output of {end.path}")

    def _only_consumer(self, value: int, end: End) -> Op:
        ops = self.trace.consumers[value]
        if len(ops) != 1:
            raise Unknown(f"{len(ops)} operations read the output of {end.path}, not one sum")
        return ops[0]

    def _dropout(self, end: End, call: Call) -> str:
        """The dropout module that `h` leaves by; the linear itself if there is none of its own."""
        h = end.path
        for reader in self.trace.readers[call.output or 0]:
            module = self.modules[reader.path]
            if reader.start > call.stop and "Dropout" in type(module).__name__ and reader.path != h:
                own = len(self.trace.by_path[reader.path]) == len(self.trace.by_path[end.path])
                h = reader.path if own else h
        return h

    def _only_norm(self, value: int, block: str) -> Call | None:
        """The call of a norm of this block that alone reads the value."""
        for call in self.trace.readers[value]:
            if call.path in self.norms and call.path.startswith(f"{block}."):
                inside = (call.path, f"{call.path}.")
                if all(op.module == inside[0] or op.module.startswith(inside[1]) for op in self.trace.consumers[value]):
                    return call
        return None

    def _sublayer(self, end: End, arrival: Arrival, added: Mapping[int, End]) -> SubLayer:
        total = self._total(arrival.value, end)
        others = [v for v in self._terms(total, end.block, added, keep=arrival.value) if v != arrival.value]
        rest = [v for v in others if v not in added]
        parallel = [v for v in others if v in added]
        if len(rest) != 1:
            raise Unknown(f"{end.path} meets {len(rest)} other terms in its sum, not one residual")
        norm = self._only_norm(total, end.block) or self._only_norm(self._mapped(total), end.block)
        return SubLayer(
            role=end.role,
            stack=end.stack,
            layer=end.layer,
            h=arrival.h,
            linear=end.path,
            r=self._read(rest[0], end, arrival.tick),
            norm=norm.path if norm else None,
            is_parallel=bool(parallel),
            output_norm=arrival.output_norm,
            scale=arrival.scale,
        )

    def _total(self, value: int, end: End) -> int:
        """The whole sum that a term ends up in: as long as nothing but one more addition in the block reads it."""
        total = value
        while len(ops := self.trace.consumers[total]) == 1 and self._is_sum(ops[0], end.block):
            self._check_known(ops[0], end)
            assert ops[0].output is not None
            total = ops[0].output
        return total

    def _terms(self, total: int, block: str, added: Mapping[int, End], *, keep: int) -> list[int]:
        """The summands of a value, taken apart as long as nothing else reads the partial sums."""
        op = self.trace.producer.get(total)
        if total == keep or total in added or op is None or not self._is_sum(op, block):
            return [total]
        terms: list[int] = []
        for value in op.inputs:
            inner = len(self.trace.consumers[value]) == 1
            terms += self._terms(value, block, added, keep=keep) if inner else [value]
        return terms

    @staticmethod
    def _is_sum(op: Op, block: str) -> bool:
        inside = op.module == block or op.module.startswith(f"{block}.")
        return inside and op.name.startswith("aten.add") and op.factor in (None, 1)

    def _mapped(self, value: int) -> int:
        """The same elements in another shape, if that is all that becomes of them."""
        ops = self.trace.consumers[value]
        if len(ops) == 1 and ops[0].name in MAPPED and ops[0].output is not None:
            return ops[0].output
        return value

    def _read(self, residual: int, end: End, before: int) -> tuple[str, Literal["input", "output"]]:
        """Where to read the residual: into a norm, a linear, another module; out of one; into the block itself.

        A module that runs more often than the sub-layer (DeBERTa's queries, of relative positions as well) reads other
        things, too, and will not do.
        """
        ranked: list[tuple[int, int, str, Literal["input", "output"]]] = []
        block, runs = end.block, len(self.trace.by_path[end.path])
        for call in self.trace.calls:
            if len(self.trace.by_path[call.path]) != runs:
                continue
            inside = call.path.startswith(f"{block}.")
            rank = 0 if call.path in self.norms else 1 if call.path in self.linears else 2 if inside else 4
            if call.input == residual and call.start < before and (inside or call.path == block):
                ranked.append((rank, call.start, call.path, "input"))
            if call.output == residual and call.stop < before and inside:
                ranked.append((3, call.stop, call.path, "output"))
        if not ranked:
            raise Unknown("no module of the block receives or returns the residual that it is added to")
        _, _, path, which = min(ranked)
        return path, which
