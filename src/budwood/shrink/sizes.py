"""Ways to cut a model to a number of parameters: a few shapes, all of the same size, of which the best is taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from budwood.anatomy import Anatomy
from budwood.prune.fit import fit
from budwood.prune.importance import importance, keep
from budwood.prune.kept import Sizes, Structure
from budwood.prune.sizes import Misfit
from budwood.prune.structure import outline, subject_of

SLACK = 0.05
"""How far beyond its target a stage may cut where steps are coarse, as a share of what it was to cut."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of one model, of its deepest stack where there are several."""

    layers: int
    ffn: int | None
    heads: int | None
    hidden: int

    @classmethod
    def of(cls, structure: Structure) -> Shape:
        """What a model has now."""
        counts = {units.dimension: units.count for units in structure.units}
        return cls(
            layers=max(structure.depths.values()),
            ffn=counts.get("ffn"),
            heads=counts.get("heads"),
            hidden=structure.hidden,
        )

    def to_dict(self) -> dict[str, int]:
        """The sizes that there are."""
        found = {"layers": self.layers, "ffn": self.ffn, "heads": self.heads, "hidden": self.hidden}
        return {name: size for name, size in found.items() if size is not None}

    def change(self, after: Shape) -> str:
        """What becomes of it, for people."""
        now, then = self.to_dict(), after.to_dict()
        changed = [f"{name} {now[name]} -> {then[name]}" for name in now if now[name] != then[name]]
        return ", ".join(changed) or "nothing"


class Sizing:
    """How many parameters a model would have at other sizes: the class itself says, built without memory."""

    def __init__(self, model: Any, structure: Structure, anatomy: Anatomy) -> None:
        self.subject, self.structure = subject_of(model, anatomy), structure
        self.outline = outline(self.subject)
        self.random = importance(model, (), structure=structure, score="random")
        self.now = Shape.of(structure)

    def sizes(self, shape: Shape) -> Sizes:
        """What is to stay of each stack; every stack is cut in the same share of its depth."""
        share = shape.layers / self.now.layers
        depths = {s: max(min(2, d), round(d * share)) for s, d in self.structure.depths.items()}
        return Sizes(
            layers=depths if shape.layers < self.now.layers else None,
            ffn=shape.ffn if shape.ffn != self.now.ffn else None,
            heads=shape.heads if shape.heads != self.now.heads else None,
            hidden=shape.hidden if shape.hidden != self.now.hidden else None,
        )

    def count(self, shape: Shape) -> int | None:
        """Parameters at these sizes, shared ones once; None where the class cannot be built so."""
        kept = keep(self.structure, self.random, self.sizes(shape))
        try:
            found = fit(self.subject, self.outline, kept)
        except Misfit:
            return None
        parameters = dict(self.subject.model.named_parameters())
        total = 0
        for name in dict.fromkeys(found.names.values()):
            if name in parameters:
                axes = found.axes.get(name, {})
                total += prod(len(axes[a]) if a in axes else n for a, n in enumerate(parameters[name].shape))
        return total

    def candidates(self, target: int, dimensions: Sequence[str]) -> Iterator[Shape]:
        """Shapes of at most `target` parameters and not much less, each cut in another way."""
        can = [d for d in dimensions if d not in self.structure.refused]
        now, found = self.now, set()
        starts: list[Shape] = [now] if "ffn" in can else []
        if "layers" in can:
            fewest = self._least(target, "layers", range(now.layers - 1, 1, -1))
            starts += [replace(now, layers=n) for n in _between(fewest, now.layers)]
        if "heads" in can and now.heads is not None and now.heads > 1:
            starts.append(replace(now, heads=now.heads - 1))
        if "hidden" in can:
            step = self._channels()
            least = self._least(target, "hidden", range(now.hidden - step, step, -step))
            starts += [replace(now, hidden=least)] if least is not None else []
        for start in starts:
            shape = self._filled(start, target, can)
            if shape is not None and shape != now and shape not in found:
                found.add(shape)
                yield shape

    def _channels(self) -> int:
        """Channels are cut so many at a time: classes want their number to be a multiple of that of heads."""
        heads = max((group.heads for group in self.subject.groups), default=1)
        return heads * -(-_grain(self.now.hidden) // heads)

    def _least(self, target: int, name: str, sizes: Sequence[int]) -> int | None:
        """The largest of some sizes, in falling order, at which the target is met; None where none does."""
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            count = self.count(replace(self.now, **{name: sizes[middle]}))
            if count is not None and count > target:
                low = middle + 1
            else:
                high = middle
        return sizes[low] if low < len(sizes) else None

    def _filled(self, start: Shape, target: int, can: Sequence[str]) -> Shape | None:
        """The shape, with as few neurons as bring it to the target; None where they cannot, or it is far below."""
        count = self.count(start)
        if count is None:
            return None
        if count <= target:
            whole = self.count(self.now) or count
            return start if target - count <= max(SLACK * whole, whole - target) else None
        if "ffn" not in can or start.ffn is None:
            return None
        grain = _grain(start.ffn)
        smaller = self.count(replace(start, ffn=grain))
        if smaller is None or smaller > target or start.ffn <= grain:
            return None
        each = (count - smaller) / (start.ffn - grain)
        neurons = int(start.ffn - (count - target) / each) // grain * grain
        return replace(start, ffn=max(grain, neurons))


def _between(fewest: int | None, now: int) -> list[int]:
    """Depths to try: all of the cut in depth, and half of it."""
    if fewest is None or fewest >= now:
        return []
    return list(dict.fromkeys((fewest, now - max(1, (now - fewest) // 2))))


def _grain(size: int) -> int:
    """Sizes are kept multiples of this: what kernels like, or less for small models."""
    return next(grain for grain in (32, 16, 8, 4, 2, 1) if size % grain == 0 and size >= 4 * grain or grain == 1)


def least(sizing: Sizing, dimensions: Sequence[str]) -> tuple[int, Mapping[str, int]]:
    """(the fewest parameters that these dimensions can come to, the shape of that)."""
    can = [d for d in dimensions if d not in sizing.structure.refused]
    now = sizing.now
    shape = Shape(
        layers=min(2, now.layers) if "layers" in can else now.layers,
        ffn=_grain(now.ffn) if "ffn" in can and now.ffn else now.ffn,
        heads=1 if "heads" in can and now.heads else now.heads,
        hidden=now.hidden,
    )
    return sizing.count(shape) or sizing.count(now) or 0, shape.to_dict()
