"""What a model offers to be cut, and why not where it does not: found by trying on the meta device, not by its name."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, discover
from budwood.core import adapters
from budwood.errors import BadConfig, WrongOrder
from budwood.prune.fit import Subject, fit, read
from budwood.prune.kept import CUT_HERE, Kept, Structure
from budwood.prune.sizes import Misfit


def structure_of(model: PreTrainedModel, anatomy: Anatomy | None = None) -> Structure:
    """What the model offers to be cut, with a reason for each dimension in which it cannot be.

    Raises BadConfig for what is no transformers model, or is quantised; WrongOrder where adapters are attached.
    """
    subject = subject_of(model, anatomy)
    whole = outline(subject)
    refused: dict[str, str] = {}
    for dimension in CUT_HERE:
        why = why_not(subject, whole, dimension)
        if why is not None:
            refused[dimension] = why
    return Structure(
        depths=whole.depths, units=whole.units, hidden=whole.hidden, refused=refused, together=whole.together
    )


def subject_of(model: PreTrainedModel, anatomy: Anatomy | None) -> Subject:
    """The model read for a cut. Raises as `structure_of` does."""
    if not isinstance(model, PreTrainedModel):
        raise BadConfig(
            f"{type(model).__name__} is no transformers model, so there is no configuration that could say smaller "
            "sizes; give the model itself, not compiled or wrapped"
        )
    if attached := list(adapters(model)):
        raise WrongOrder(f"adapter {attached[0]!r} is attached; merge or detach it, then cut")
    anatomy = anatomy or discover(model)
    for site in anatomy.sites:
        weight = model.get_submodule(site.path)._parameters.get("weight") if site.is_linear else None
        if weight is not None and not weight.is_floating_point():
            raise BadConfig(f"{site.path} is quantised ({weight.dtype}); cut the model first, then quantise it")
    return read(model, anatomy)


def outline(subject: Subject) -> Structure:
    """The structure, without what is refused."""
    units = tuple(group.units for group in subject.groups)
    return Structure(
        depths={stack: len(paths) for stack, paths in subject.blocks.items()},
        units=units,
        hidden=subject.anatomy.hidden_size,
        together=_together(subject),
    )


def _together(subject: Subject) -> tuple[tuple[str, ...], ...]:
    """Attentions that share a table with one entry for each head (T5's relative positions, kept in one block)."""
    found: list[tuple[str, ...]] = []
    for group in subject.groups:
        tables = [s for s in subject.anatomy.sites if s.role == "embed.position" and s.out_features == group.heads]
        if any(group.within and table.path.startswith(f"{group.within}.") for table in tables):
            role, stack = group.reader.role, group.units.stack
            found.append(
                tuple(g.units.path for g in subject.groups if g.reader.role == role and g.units.stack == stack)
            )
    return tuple(found)


def why_not(subject: Subject, structure: Structure, dimension: str) -> str | None:
    """Why the model cannot be cut in a dimension; None where it can."""
    problem = known(subject, structure, dimension)
    if problem is not None:
        return problem
    for trial in _trials(subject, structure, dimension):
        try:
            fit(subject, structure, trial)
        except Misfit as why:
            problem = str(why)
        else:
            return None
    return problem or "it has only one"


def known(subject: Subject, structure: Structure, dimension: str) -> str | None:
    """A reason that shapes do not show."""
    roles, config = subject.anatomy.roles, subject.model.config.to_dict()
    every = config.get("rescale_every")
    if every and any(depth > every for depth in structure.depths.values()):
        return (
            f"it changes its own weights as it runs (rescale_every: {every}); set config.rescale_every = 0 and reload"
        )
    match dimension:
        case "layers" if subject.anatomy.repeated:
            return "one block is run several times, so there is none to take out"
        case "layers" if config.get("scale_attn_by_inverse_layer_idx"):
            return "its blocks scale attention by their number (scale_attn_by_inverse_layer_idx)"
        case "ffn" if any(role.startswith("experts.") for role in roles):
            return "its feed-forwards are experts, which are not cut"
        case "ffn" | "heads" if not any(units.dimension == dimension for units in structure.units):
            what = "feed-forward" if dimension == "ffn" else "attention with query, key and value heads that add up"
            return f"no {what} was found in it"
        case "heads" if _counts_heads(subject):
            return "its attention tells positions by the number of a head (ALiBi), so other heads would see others"
    return None


def _counts_heads(subject: Subject) -> bool:
    """Whether positions enter by biases that depend on the number of a head: said so, or no other way is there."""
    config = subject.model.config.to_dict()
    nested = [config, *(value for value in config.values() if isinstance(value, dict))]
    if any(place.get("alibi") for place in nested):
        return True
    turned = any("rope" in name or "rotary" in name for name in config)
    roles = subject.anatomy.roles
    return not turned and not any(role in roles for role in ("embed.position", "attn.pos_k", "mixer"))


def _trials(subject: Subject, structure: Structure, dimension: str) -> Iterator[Kept]:
    """A few small cuts of a dimension."""
    if dimension == "layers":
        for stack, depth in structure.depths.items():
            for gone in (depth - 1, depth // 2):
                if depth > 1:
                    yield Kept(layers={stack: tuple(i for i in range(depth) if i != gone)})
    elif dimension == "hidden":
        step = 2 * max((group.heads for group in subject.groups), default=1) or 1
        for left in (structure.hidden - step, structure.hidden - 2 * step):
            if left > 0:
                yield Kept(channels=tuple(range(left)))
    else:
        counts = {units.count for units in structure.units if units.dimension == dimension}
        smallest = min(counts)
        for fewer in dict.fromkeys((1, smallest // 2, smallest - 1)):
            if 0 < fewer < smallest:
                yield Kept(
                    units={u.path: tuple(range(u.count - fewer)) for u in structure.units if u.dimension == dimension}
                )
