"""AdapterHub's prefix and prompt tuning, read.

Its text starts at position 0 beside a prefix, and its prefixes stand in front of the keys at every step, as ours do.
Where it computes otherwise than its papers there are options here: T5's position bias is moved by the prefix's length,
gates are means over padding, too, and prompts enter encoders behind positions and norms.
The networks that prefixes come out of are computed once, as this is all they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor, equal, nn
from torch.nn.functional import linear

from budwood.anatomy import Site
from budwood.core.entrance import embeddings_site
from budwood.errors import BadCheckpoint
from budwood.interop.adapterhub_names import ACTIVATIONS, Key, Names, check_fields
from budwood.interop.reading import Read, has_position_bias
from budwood.methods import PrefixTuning, PromptTuning
from budwood.methods.narrow import ACTIVATIONS as FUNCTIONS

_PREFIX: dict[str, Any] = {
    "encoder_prefix": True, "cross_prefix": True, "leave_out": [], "flat": False, "prefix_length": 30,
    "bottleneck_size": 512, "non_linearity": "tanh", "dropout": 0.0, "use_gating": False, "shared_gating": True,
    "init_weights_seed": None,
}  # fmt: skip
_PROMPT: dict[str, Any] = {
    "prompt_length": 10, "prompt_init": "random_uniform", "prompt_init_text": None, "combine": "prefix",
    "init_weights_seed": None, "random_uniform_scale": 0.5,
}  # fmt: skip
"""What the configurations mean where they do not say."""
_COMBINE: dict[str, Literal["front", "after-first"]] = {"prefix": "front", "prefix_after_bos": "after-first"}


def read_prefix(
    given: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names, model: nn.Module
) -> Read:
    """Its prefixes as ours. Raises BadCheckpoint for tensors that do not fit the configuration or this model."""
    check_fields(given, _PREFIX)
    fields = {**_PREFIX, **given}
    places, pools = _places(fields, names), _pools(keys, tensors)
    _check_bias(fields, places, names, model)
    if set(pools) != set(places):
        raise BadCheckpoint(
            f"the configuration puts prefixes in this model at {', '.join(places)}, and the file holds "
            f"{', '.join(pools) or 'none'}: one is wrong, or it is for another kind of model"
        )
    paths = {path for found in places.values() for path in found}
    everywhere = [site.path for site in names.anatomy.sites if site.role in ("attn", "cross")]
    method = PrefixTuning(
        length=fields["prefix_length"], width=None, init="random", dropout=fields["dropout"], trained=(),
        targets=("attn", "cross?") if len(paths) == len(everywhere) else tuple(p for p in everywhere if p in paths),
        bias="adapterhub" if has_position_bias(model) else "zero",
        gate=("shared" if fields["shared_gating"] else "separate") if fields["use_gating"] else None,
        gate_over="all" if fields["use_gating"] else "text",
    )  # fmt: skip
    sites = {site.path: site for site in method.sites(model, names.anatomy)}
    ours = _gates(keys, tensors, names)
    for key, found in places.items():
        flat = _flat(key, pools[key], fields)
        ours |= _rows(key, flat, fields["prefix_length"], [sites[path] for path in found])
    return Read(method, ours)


def read_prompt(
    given: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names, model: nn.Module
) -> Read:
    """Its prompt as ours. Raises BadCheckpoint for tensors that do not fit."""
    check_fields(given, _PROMPT)
    fields = {**_PROMPT, **given}
    if fields["combine"] not in _COMBINE:
        raise BadCheckpoint(f"combine is {fields['combine']!r} in adapter_config.json; known: {', '.join(_COMBINE)}")
    if [parsed.leaf for parsed in keys.values()] != ["prompt_embedding.weight"]:
        raise BadCheckpoint(f"the file of a prompt holds prompt_embedding.weight alone, and this one {sorted(keys)}")
    (P,), site = tensors.values(), embeddings_site(model, names.anatomy)
    expected = (fields["prompt_length"], site.out_features)
    if P.shape != expected:
        raise BadCheckpoint(
            f"wrong base: the prompt is {list(P.shape)} in the file, and prompt_length and the width of {site.path} "
            f"make {list(expected)}"
        )
    method = PromptTuning(
        length=fields["prompt_length"], init="random", place=_COMBINE[fields["combine"]], level="states", trained=(),
    )  # fmt: skip
    return Read(method, {f"{site.path}.P": P})


def _places(fields: Mapping[str, Any], names: Names) -> dict[str, list[str]]:
    """Paths of the attention modules that get a prefix, by its names of places, in model order."""
    places: dict[str, list[str]] = {}
    for site in names.anatomy.sites:
        if site.role not in ("attn", "cross") or site.layer is None:
            continue
        is_first = site.stack == "encoder" and len(names.stacks) > 1
        key = "cross_prefix" if site.role == "cross" else "encoder_prefix" if is_first else "self_prefix"
        if fields.get(key, True) and names.index(site.stack, site.layer) not in (fields["leave_out"] or ()):
            places.setdefault(key, []).append(site.path)
    return places


def _check_bias(fields: Mapping[str, Any], places: Mapping[str, Sequence[str]], names: Names, model: nn.Module) -> None:
    """Raises BadCheckpoint for a T5 of which some layers have no prefix: the library's lose their position bias."""
    if not has_position_bias(model):
        return
    for key, stack in (("self_prefix", names.stacks[-1]), ("encoder_prefix", names.stacks[0])):
        if 0 < len(places.get(key, ())) < names.anatomy.num_layers(stack):
            raise BadCheckpoint(
                f"AdapterHub gives T5 no position bias where leave_out ({fields['leave_out']}) changes how many keys "
                "there are: this prefix would not be what it was trained to be; train it again here"
            )


def _pools(keys: Mapping[str, Key], tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Tensors of each place's network: the file repeats them under every layer, all the same."""
    pools: dict[str, dict[str, Tensor]] = {}
    for key, parsed in keys.items():
        if parsed.kind == "prefix_gates":
            continue
        if parsed.kind != "prefix_tunings":
            raise BadCheckpoint(f"the tensor {key!r} does not belong to a prefix")
        place, _, leaf = parsed.leaf.partition(".")
        place = "self_prefix" if place == "self" else place  # DistilBERT
        known = pools.setdefault(place, {}).setdefault(leaf, tensors[key])
        if not equal(known, tensors[key]):
            raise BadCheckpoint(f"{key} differs from the same tensor under another layer; the file is damaged")
    return pools


def _gates(keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The gate of each attention module, which lies beside its prefix."""
    letters, paths = {"weight": "W_g", "bias": "b_g"}, {names.bare(s.path): s.path for s in names.anatomy.sites}
    found: dict[str, Tensor] = {}
    for key, parsed in keys.items():
        if parsed.kind != "prefix_gates":
            continue
        path = paths.get(names.bare(parsed.path).removesuffix(".prefix_tuning"))
        if path is None or parsed.leaf not in letters:
            raise BadCheckpoint(f"wrong base: the adapter has a gate {key!r}, and this model no such attention")
        found[f"{path}.{letters[parsed.leaf]}"] = tensors[key]
    return found


def _flat(key: str, pool: Mapping[str, Tensor], fields: Mapping[str, Any]) -> Tensor:
    """All rows of a place: [P, *]."""
    layers = [f"control_trans.{layer}.{what}" for layer in (0, 2) for what in ("bias", "weight")]
    names = ["control_trans"] if fields["flat"] else [*layers, "wte.weight"]
    if sorted(pool) != names:
        raise BadCheckpoint(f"a prefix with flat={fields['flat']} has {', '.join(names)}; {key} has {', '.join(pool)}")
    length = fields["prefix_length"]
    if fields["flat"]:
        rows = pool["control_trans"].reshape(length, -1) if pool["control_trans"].numel() % length == 0 else None
    else:
        act = str(fields["non_linearity"]).lower()
        if act not in ACTIVATIONS:
            raise BadCheckpoint(f"the prefix has the non-linearity {act!r}; known: {', '.join(ACTIVATIONS)}")
        hidden = linear(pool["wte.weight"], pool["control_trans.0.weight"], pool["control_trans.0.bias"])
        hidden = FUNCTIONS[ACTIVATIONS[act]](hidden)
        rows = linear(hidden, pool["control_trans.2.weight"], pool["control_trans.2.bias"])
    if rows is None or len(rows) != length:
        raise BadCheckpoint(f"prefix_length is {length}, and the tensors of {key} are for another; one is wrong")
    return rows


def _rows(key: str, flat: Tensor, length: int, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Keys and values of each site: [H, P, D]."""
    calls = [site.call for site in sites if site.call is not None]
    heads, width = calls[0].heads, calls[0].key_size
    expected = 2 * len(sites) * heads * width
    differ = any((call.heads, call.key_size, call.value_size) != (heads, width, width) for call in calls)
    if differ or flat.shape[1] != expected:
        raise BadCheckpoint(
            f"wrong base: {key} has {flat.shape[1]} numbers a row, and the {len(sites)} modules of this model, with "
            f"{heads} heads of width {width}, take {expected}"
        )
    table = flat.view(length, 2 * len(sites), heads, width).permute(1, 2, 0, 3)
    ends = list(enumerate(("PK", "PV")))
    return {f"{site.path}.{letter}": table[2 * n + end] for n, site in enumerate(sites) for end, letter in ends}
