"""AdapterHub's adapter folders, read: bottlenecks, LoRA, (IA)^3, prompts and prefixes, unions, AdapterFusion.

Only this file and its neighbours `adapterhub_*` know the fields and tensors of the `adapters` library. What it computes
otherwise than its papers (DoRA'd LoRA, VeRA, GLOW) is refused by name. Its own Llama calls `down_proj`
intermediate and `up_proj` output; here the tensors' names decide.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from budwood.anatomy import Anatomy
from budwood.core import adapter_of
from budwood.errors import BadCheckpoint
from budwood.interop.adapterhub_lora import read_lora
from budwood.interop.adapterhub_names import (
    ACTIVATIONS,
    DEFAULTS,
    NARROW,
    PRESETS,
    REQUIRED,
    RULE,
    Key,
    Names,
    base_prefix,
    check_fields,
    check_one,
    check_switches,
    parse,
)
from budwood.interop.adapterhub_prompts import read_prefix, read_prompt
from budwood.interop.adapterhub_union import KINDS, joined
from budwood.interop.reading import Read
from budwood.methods import AdapterH, AdapterP, Compacter, Fusion, Parallel
from budwood.methods.bottleneck import Bottleneck, Sequential


def knows(config: Mapping[str, Any]) -> bool:
    """True for a configuration of this library."""
    return "config" in config and "peft_type" not in config


# ---------------------------------------------------------------------------------------------------------- reading
def read(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], anatomy: Anatomy, model: nn.Module, *, is_interface: bool
) -> Read:
    """One of its configurations and its tensors as ours.

    is_interface: the folder says that the library adapted the model through its interface for plain models
    Raises BadCheckpoint for what is not supported here, for a configuration that does not fit the tensors, and for
    tensors that have no place in this model.
    """
    _check_base(config, anatomy, model)
    own = vars(model).get("config")
    names = Names(anatomy, base_prefix(model), "" if own is None else str(own.model_type), is_interface=is_interface)
    keys = {key: parse(key) for key in tensors}
    check_one(keys)
    if "adapter_names" in config:
        differs = differing_part(config["adapter_names"], model)
        if differs is not None:
            raise BadCheckpoint(
                f"this AdapterFusion was trained over adapters as AdapterHub feeds them, {differs}; train it again here"
            )
        return _fusion(config, keys, tensors, names)
    fields = _fields(config)
    if fields.get("architecture") == "union":
        return _union(fields, keys, tensors, names, model)
    return _single(fields, keys, tensors, names, model)


def _single(
    fields: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names, model: nn.Module
) -> Read:
    """An adapter of one method."""
    kind = fields.get("architecture") or "bottleneck"
    if kind == "lora":
        return read_lora(fields, keys, tensors, names)
    if kind == "prefix_tuning":
        return read_prefix(fields, keys, tensors, names, model)
    if kind == "prompt_tuning":
        return read_prompt(fields, keys, tensors, names, model)
    if kind != "bottleneck":
        raise BadCheckpoint(f"this AdapterHub adapter is of the type {kind!r}, which is not read here")
    return _bottleneck(fields, keys, tensors, names)


def _union(
    fields: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names, model: nn.Module
) -> Read:
    """Several methods under one name, each with the tensors of its kinds."""
    parts = list(fields["configs"])
    kinds = [KINDS.get(part.get("architecture") or "bottleneck", ()) for part in parts]
    taken = [kind for some in kinds for kind in some]
    strange = [key for key, parsed in keys.items() if taken.count(parsed.kind) != 1]
    if strange:
        raise BadCheckpoint(f"the tensor {strange[0]!r} belongs to none, or to several, of the methods in this union")
    return joined(
        [
            _single(part, {key: parsed for key, parsed in keys.items() if parsed.kind in some}, tensors, names, model)
            for part, some in zip(parts, kinds, strict=True)
        ]
    )


def _check_base(config: Mapping[str, Any], anatomy: Anatomy, model: nn.Module) -> None:
    size, kind = config.get("hidden_size"), config.get("model_type")
    own = vars(model).get("config")
    if kind is not None and own is not None and kind != own.model_type:
        raise BadCheckpoint(
            f"wrong base: the adapter was made for a model of type {kind}; this one is {own.model_type}"
        )
    if size is not None and size != anatomy.hidden_size:
        raise BadCheckpoint(
            f"wrong base: the adapter was made for a width of {size}; this model's is {anatomy.hidden_size}"
        )


def _fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `config` entry with the library's rules for old files applied."""
    fields = config["config"]
    if isinstance(fields, str):
        if fields not in PRESETS:
            raise BadCheckpoint(
                f"this AdapterHub adapter names its configuration {fields!r}, which is not known here; write the "
                "fields out in adapter_config.json"
            )
        fields = PRESETS[fields]
    if not isinstance(fields, Mapping):
        raise BadCheckpoint(f"the entry `config` is a {type(fields).__name__} where an object is expected")
    fields, version = dict(fields), config.get("version")
    act = fields.get("non_linearity")
    if version is None and act in ("gelu", "gelu_orig"):
        fields["non_linearity"] = {"gelu": "gelu_new", "gelu_orig": "gelu"}[act]
    if fields.get("architecture") == "lora" and _older(version, (1, 1)):
        fields["alpha"] = fields.get("r", 8)  # before 1.1.0 the library did not scale
    return fields


def _older(version: Any, than: tuple[int, int]) -> bool:
    found = re.fullmatch(r"adapters\.(\d+)\.(\d+).*", str(version))
    return found is not None and (int(found[1]), int(found[2])) < than


def _bottleneck(given: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names) -> Read:
    fields = {**DEFAULTS, **given}
    check_fields(given, (*DEFAULTS, *REQUIRED))
    lacking = [name for name in REQUIRED if name not in fields]
    if lacking:
        raise BadCheckpoint(f"adapter_config.json lacks {', '.join(lacking)}, which a bottleneck needs")
    check_switches(fields)
    ours: dict[str, Tensor] = {}
    shared: dict[str, Tensor] = {}
    paths: dict[str, None] = {}
    for key, parsed in keys.items():
        if parsed.kind == "adapters":
            path = names.sublayer(parsed.path)
            paths[path] = None
            leaf = _leaf(parsed.leaf, has_norm=bool(fields["ln_before"]))
            if leaf is not None:
                ours[f"{path}.{leaf}"] = tensors[key]
        elif parsed.kind == "invertible_adapters":
            part, place, what = parsed.leaf.split(".")
            ours[f"{names.first_block}.{part}.{NARROW[what].format('d' if place == '0' else 'u')}"] = tensors[key]
        elif parsed.kind == "shared_parameters":
            shared[_shared(parsed.leaf)] = tensors[key]
        else:
            raise BadCheckpoint(f"the tensor {key!r} does not belong to a bottleneck adapter")
    method = _method(fields, ours, list(paths), names)
    if fields["phm_layer"] and (fields["shared_phm_rule"] or fields["shared_W_phm"]) and not shared:
        raise BadCheckpoint(
            "this Compacter shares weights between its sites, and AdapterHub left them out of the file (as it does for "
            "T5 and for bare models): the adapter cannot be restored from it"
        )
    first = next(s.path for s in names.anatomy.sublayers if s.path in paths)
    return Read(method, {**ours, **{f"{first}.{leaf}": tensor for leaf, tensor in shared.items()}})


def _shared(leaf: str) -> str:
    """Our name of a tensor that all sites of a Compacter share; it lies at the first of them."""
    if leaf in RULE:
        return f"A.{RULE[leaf].format('d')}"
    found = re.fullmatch(r"W_(down|up)(_left|_right|)", leaf)
    if found is None:
        raise BadCheckpoint(f"this AdapterHub adapter shares a tensor {leaf!r}, which is not supported here")
    return f"A.{NARROW[f'W{found[2]}'].format(found[1][0])}"


def _leaf(leaf: str, *, has_norm: bool) -> str | None:
    """Our name of a tensor of one bottleneck; None for one that is there twice."""
    part, _, what = leaf.rpartition(".")
    if has_norm and part == "adapter_down.0":
        return None  # the LayerNorm again, as the first module of a sequence
    if part in ("adapter_norm_before", "adapter_norm_after"):
        return f"ln_{part.rpartition('_')[2]}.{what}"
    if part == "gate":
        return {"weight": "W_g", "bias": "b_g"}[what]
    if leaf == "scaling":
        return "s"
    direction = {"adapter_down.0": "d", "adapter_down.1": "d", "adapter_up": "u"}.get(part)
    if direction is not None and what in NARROW:
        return f"A.{NARROW[what].format(direction)}"
    if direction is not None and what in RULE:
        return f"A.{RULE[what].format(direction)}"
    raise BadCheckpoint(f"this AdapterHub adapter has a tensor {leaf!r} at its sites, which is not supported here")


def _method(fields: Mapping[str, Any], tensors: dict[str, Tensor], paths: list[str], names: Names) -> Bottleneck:
    """The method that a bottleneck configuration means. Raises BadCheckpoint for what it cannot."""
    _check_sites(fields, paths, names)
    _check_agreement(fields, paths, names)
    act = str(fields["non_linearity"]).lower()
    if act not in ACTIVATIONS:
        raise BadCheckpoint(f"this AdapterHub adapter has the non-linearity {act!r}; known: {', '.join(ACTIVATIONS)}")
    if fields["inv_adapter"] not in (None, "nice"):
        raise BadCheckpoint(
            f"inv_adapter is {fields['inv_adapter']!r}, which never worked in AdapterHub; only nice is read"
        )
    scaling = fields["scaling"]
    common: dict[str, Any] = {
        **_targets(fields, paths, names), **_sizes(fields, tensors, paths, names),
        "activation": ACTIVATIONS[act], "dropout": fields["dropout"], "gate": fields["use_gating"],
        "gate_over": "all" if fields["use_gating"] else "text",
        "learn_scale": {"learned": "scalar", "channel": "channel"}.get(str(scaling), "no"),
        "scale": 1.0 if isinstance(scaling, str) else scaling,
        "ln_before": fields["ln_before"], "ln_after": fields["ln_after"], "adds_residual": fields["original_ln_after"],
        "invertible": fields["inv_adapter"] == "nice",
        "invertible_reduction": fields["inv_adapter_reduction_factor"] or 2.0,
        "trained": (),
    }  # fmt: skip
    if fields["is_parallel"]:
        if fields["phm_layer"]:
            raise BadCheckpoint("a parallel Compacter is not supported here; train it with is_parallel=false")
        return Parallel(**common)
    common |= {
        "residual": _residual(fields, names), "stochastic_depth": fields["stochastic_depth"],
        "ln_after_residual": fields["ln_after"] and fields["adapter_residual_before_ln"],
    }  # fmt: skip
    if fields["phm_layer"]:
        return Compacter(
            **common, placement="adapter-p" if fields["original_ln_before"] else "adapter-h",
            n=fields["phm_dim"], rank=fields["phm_rank"], bias=fields["phm_bias"],
            shares_rule=fields["shared_phm_rule"], factorized_rule=fields["factorized_phm_rule"],
            learn_rule=fields["learn_phm"], factorized=fields["factorized_phm_W"],
            shares_weights=fields["shared_W_phm"],
        )  # fmt: skip
    return AdapterP(**common) if fields["original_ln_before"] else AdapterH(**common)


def _residual(fields: Mapping[str, Any], names: Names) -> str:
    """What the output is added to, in our words."""
    said = fields["residual_before_ln"]
    if said == "post_add":
        if not fields["original_ln_before"] or any(s.norm is None for s in names.anatomy.sublayers):
            raise BadCheckpoint(
                "residual_before_ln is post_add, which means something only with original_ln_before in a model with "
                "LayerNorms after its sub-layers"
            )
        return "total"
    return "h" if said else "input"


def expected_sites(fields: Mapping[str, Any], names: Names) -> list[str]:
    """Paths of the sub-layers that the configuration adapts."""
    asked = {"attn": fields["mh_adapter"], "mlp": fields["output_adapter"], "cross": fields["cross_adapter"]}
    left_out = set(fields["leave_out"] or ())
    return [s.path for s in names.anatomy.sublayers if asked[s.role] and names.index(s.stack, s.layer) not in left_out]


def _check_sites(fields: Mapping[str, Any], paths: list[str], names: Names) -> None:
    expected = expected_sites(fields, names)
    missing = [path for path in expected if path not in paths]
    more = [path for path in paths if path not in expected]
    if missing:
        raise BadCheckpoint(
            f"the configuration adapts {missing[0]} and the file has no tensors for it ({len(missing)} places in all): "
            "it is for a model with fewer layers, or incomplete"
        )
    if more:
        raise BadCheckpoint(
            f"the file has tensors for {more[0]}, which the configuration does not adapt ({len(more)} places in all)"
        )


def _check_agreement(fields: Mapping[str, Any], paths: list[str], names: Names) -> None:
    why = disagreement(fields, paths, names)
    if why is not None:
        raise BadCheckpoint(
            f"AdapterHub {why}: this adapter would not be what it was trained to be; train it again here"
        )


def disagreement(fields: Mapping[str, Any], paths: list[str], names: Names) -> str | None:
    """Where the library feeds its adapters something else than the papers say: what it does, None for nothing."""
    reads_r = fields["is_parallel"] or fields["original_ln_before"]
    for sublayer in names.anatomy.sublayers:
        if sublayer.path not in paths:
            continue
        if sublayer.output_norm is not None:
            return f"puts adapters before {sublayer.output_norm}, and adds what that norm has not seen"
        if sublayer.is_parallel and reads_r and sublayer.role == "mlp":
            return f"adds the attention to the residual before the adapter at {sublayer.path} reads it"
        if names.kind == "albert" and sublayer.role == "attn":
            return f"exchanges h and the residual at {sublayer.path}"
        if names.is_interface and sublayer.norm is not None and fields["original_ln_before"]:
            return f"uses the last layer's LayerNorm at {sublayer.path} (its interface for plain models)"
    return None


def _targets(fields: Mapping[str, Any], paths: list[str], names: Names) -> dict[str, Any]:
    roles = [role for role in ("attn", "cross", "mlp") if any(names.role(path) == role for path in paths)]
    left_out = tuple(fields["leave_out"] or ())
    if not left_out:
        return {"targets": tuple(roles)}
    if len(names.stacks) == 1:
        return {"targets": tuple(roles), "leave_out": left_out}
    return {"targets": tuple(paths)}


def _sizes(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], paths: list[str], names: Names) -> dict[str, Any]:
    """Sizes as the configuration says, checked against the tensors."""
    sizes: dict[str, int] = {}
    for path in paths:
        ratio = names.ratio(fields["reduction_factor"], path)
        sizes[path] = max(1, int(names.width(path) // ratio))
        W_d = tensors.get(f"{path}.A.W_d")
        if W_d is not None and W_d.shape != (sizes[path], names.width(path)):
            raise BadCheckpoint(
                f"wrong base, or another bottleneck: {path} has W_d {list(W_d.shape)} in the file, and "
                f"reduction_factor {ratio} of this model's width {names.width(path)} makes {sizes[path]} rows"
            )
    if len(set(sizes.values())) == 1:
        return {"size": next(iter(sizes.values()))}
    return {"sizes": sizes}


def differing_part(names: Sequence[str], model: nn.Module) -> str | None:
    """The first adapter that the library feeds to a fusion otherwise than here, in words; None for none.

    Raises NoSuchAdapter for one that is not attached.
    """
    methods = [adapter_of(model, name)[1].method for name in names]
    for name, method in zip(names, methods, strict=True):
        plain = isinstance(method, Sequential) and not (method.gate or method.ln_after or method.residual != "h")
        if not plain or type(method) is not type(methods[0]):
            return (
                f"which differs for {name!r} ({method.name}): it leaves gate and LayerNorm out, reads one input for "
                "all, and drops what parallel adapters stand beside"
            )
    return None


def _fusion(config: Mapping[str, Any], keys: Mapping[str, Key], tensors: Mapping[str, Tensor], names: Names) -> Read:
    fields = {
        "key": True, "query": True, "value": True, "query_before_ln": False, "residual_before": False,
        "value_before_softmax": True, "temperature": False, "dropout_prob": None, "regularization": True,
        **config["config"],
    }  # fmt: skip
    for name, plain in {"query_before_ln": False, "residual_before": False, "temperature": False}.items():
        if bool(fields[name]) != plain:
            raise BadCheckpoint(f"this AdapterFusion has {name}={fields[name]}, which is not supported here")
    letters = {"query": "Q", "key": "K", "value": "V"}
    ours: dict[str, Tensor] = {}
    for key, parsed in keys.items():
        matrix, _, what = parsed.leaf.rpartition(".")
        if parsed.kind != "adapter_fusion_layer" or matrix not in letters:
            raise BadCheckpoint(f"the tensor {key!r} does not belong to an AdapterFusion of a kind that is read here")
        ours[f"{names.sublayer(parsed.path)}.{'W' if what == 'weight' else 'b'}_{letters[matrix]}"] = tensors[key]
    method = Fusion(
        of=tuple(config["adapter_names"]), query=fields["query"], key=fields["key"], value=fields["value"],
        dropout=float(fields["dropout_prob"] or 0.0), regularization=0.01 if fields["regularization"] else 0.0,
        trained=(),
    )  # fmt: skip
    return Read(method, ours)
