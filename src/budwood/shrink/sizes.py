"""Ways to cut a model to a number of parameters: a few shapes, all of the same size, of which the best is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, prod
from typing import Any, TypeAlias

from budwood.anatomy import Anatomy
from budwood.prune.fit import fit
from budwood.prune.importance import importance, keep
from budwood.prune.kept import Sizes, Structure
from budwood.prune.sizes import Misfit
from budwood.prune.structure import known, outline, subject_of

SLACK = 0.05
"""How far beyond its target a stage may cut where steps are coarse, as a share of what it was to cut."""

ORDER = ("ffn", "layers", "hidden", "heads")
"""Ways to cut, by what a shape that is still too large is cut in next."""
Step: TypeAlias = Mapping[str, int]
"""Sizes by the names of `Shape`."""
Ladders: TypeAlias = Mapping[str, Sequence[Step]]
"""For each way to cut, the sizes that it leads through, the largest first."""


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
        self._counts: dict[Shape, int | None] = {}

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
        if shape not in self._counts:
            self._counts[shape] = self._counted(shape)
        return self._counts[shape]

    def _counted(self, shape: Shape) -> int | None:
        kept = keep(self.outline, self.random, self.sizes(shape))
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

    def ladders(self, dimensions: Sequence[str]) -> Ladders:
        """The ways to cut: one dimension, or those that a class ties to each other (BERT, GPT-2: width and heads)."""
        refused = self.structure.refused
        found = {d: self._ladder(d) for d in ORDER if d in dimensions and d not in refused}
        tied = [d for d in ("hidden", "heads", "ffn") if d in dimensions and d in refused]
        tied = [d for d in tied if known(self.subject, self.outline, d) is None]
        for together in (tied[:2], tied):
            steps = self._tied(together) if "hidden" in together and len(together) > 1 else ()
            if any(self.count(replace(self.now, **step)) is not None for step in steps[:2]):
                found["+".join(together)] = steps
                break
        return {name: steps for name, steps in found.items() if steps}

    def _ladder(self, dimension: str) -> tuple[Step, ...]:
        now = self.now.to_dict().get(dimension, 0)
        step = {"ffn": _grain(now), "hidden": self._channels()}.get(dimension, 1) if now else 1
        least = {"layers": 2, "hidden": 2 * step}.get(dimension, step)
        return tuple({dimension: size} for size in range((now - 1) // step * step, least - 1, -step))

    def _tied(self, together: Sequence[str]) -> tuple[Step, ...]:
        """All by one share, in steps that leave whole numbers."""
        now = {name: size for name, size in self.now.to_dict().items() if name in together}
        whole = gcd(*now.values())
        return tuple({name: size // whole * part for name, size in now.items()} for part in range(whole - 1, 0, -1))

    def _channels(self) -> int:
        """Channels are cut so many at a time: classes want their number to be a multiple of that of heads."""
        heads = max((group.heads for group in self.subject.groups), default=1) or 1
        return heads * -(-_grain(self.now.hidden) // heads)

    def candidates(self, target: int, dimensions: Sequence[str]) -> Iterator[Shape]:
        """Shapes of at most `target` parameters and not much less, each cut in another way.

        Where no one or two ways lead so far, one shape that is cut in more; and the smallest that there is where that
        is not enough either: the last stage of a shrinking that ends by its quality or its speed.
        """
        ladders = self.ladders(dimensions)
        found: set[Shape] = set()
        for start, way in self._starts(target, ladders):
            shape = self._filled(start, target, {name: ladders[name] for name in ladders if name != way})
            if shape is not None and shape not in found:
                found.add(shape)
                yield shape
        if not found and (furthest := self._further(self.now, target, ladders)) != self.now:
            yield furthest

    def _starts(self, target: int, ladders: Ladders) -> Iterator[tuple[Shape, str]]:
        """(a shape that may still be too large, the way in which it was cut)."""
        now = self.now
        for way, steps in ladders.items():
            enough = self._enough(now, target, steps)
            if way == "layers":
                depths = [now.layers * part // 4 for part in (3, 2, 1)]
                if enough is not None:
                    depths = [enough.layers, now.layers - max(1, (now.layers - enough.layers) // 2)]
                yield from ((replace(now, layers=max(2, depth)), way) for depth in depths)
            elif way == "heads":  # there are few of them: one at a time
                yield replace(now, **steps[0]), way
            elif enough is not None:
                yield enough, way

    def _enough(self, base: Shape, target: int, steps: Sequence[Step]) -> Shape | None:
        """The largest of some sizes, in falling order, at which the target is met; None where none does.

        Sizes that the class cannot be built at are passed over.
        """
        shapes = [shape for step in steps if (shape := replace(base, **step)) != base]
        low, high = -1, self._countable(shapes, reversed(range(len(shapes))))
        large, small = self.count(base), None if high is None else self.count(shapes[high])
        if high is None or small is None or large is None or small > target:
            return None
        while high - low > 1:
            guess = low + ceil((large - target) / max(1, large - small) * (high - low))  # nearly a straight line
            guess = min(max(guess, low + 1), high - 1)
            place = self._countable(shapes, (*range(guess, high), *range(guess - 1, low, -1)))
            count = None if place is None else self.count(shapes[place])
            if place is None or count is None:
                break
            if count > target:
                low, large = place, count
            else:
                high, small = place, count
        return shapes[high]

    def _countable(self, shapes: Sequence[Shape], places: Iterable[int]) -> int | None:
        """The first of some places where the class can be built."""
        return next((place for place in places if self.count(shapes[place]) is not None), None)

    def _filled(self, start: Shape, target: int, ladders: Ladders) -> Shape | None:
        """The shape, cut in one way more where that brings it to the target; None where none does, or it is far below.

        ladders: the ways in which it was not cut yet
        """
        count, whole = self.count(start), self.count(self.now)
        if count is None or whole is None:
            return None
        if count <= target:
            return start if target - count <= max(SLACK * whole, whole - target) else None
        found = (self._enough(start, target, steps) for steps in ladders.values())
        return next((shape for shape in found if shape is not None), None)

    def _further(self, base: Shape, target: int, ladders: Ladders) -> Shape:
        """Cut in one way after another, as far as each leads, until the target is met."""
        for steps in ladders.values():
            enough = self._enough(base, target, steps)
            if enough is not None:
                return enough
            shapes = [replace(base, **step) for step in steps]
            place = self._countable(shapes, reversed(range(len(shapes))))
            base = base if place is None else shapes[place]
        return base

    def smallest(self, ladders: Ladders) -> Shape:
        """As small as all ways together lead."""
        return self._further(self.now, 0, ladders)


def _grain(size: int) -> int:
    """Sizes are kept multiples of this: what kernels like, or less for small models."""
    return next(grain for grain in (32, 16, 8, 4, 2, 1) if size % grain == 0 and size >= 4 * grain or grain == 1)


def least(sizing: Sizing, dimensions: Sequence[str]) -> tuple[int, Mapping[str, int]]:
    """(the fewest parameters that these dimensions can come to, the shape of that)."""
    shape = sizing.smallest(sizing.ladders(dimensions))
    return sizing.count(shape) or 0, shape.to_dict()
