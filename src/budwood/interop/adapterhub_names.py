"""Names of AdapterHub's `adapters` library: of configurations, fields, non-linearities and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from budwood.anatomy import Anatomy, Site, SubLayer
from budwood.errors import BadCheckpoint

PRESETS: dict[str, dict[str, Any]] = {
    "seq_bn": {"mh_adapter": False, "output_adapter": True, "original_ln_before": True, "non_linearity": "relu",
               "reduction_factor": 16},
    "double_seq_bn": {"mh_adapter": True, "output_adapter": True, "non_linearity": "swish", "reduction_factor": 16},
    "par_bn": {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "reduction_factor": 2,
               "is_parallel": True, "scaling": 4.0},
}  # fmt: skip
"""What the library's names of configurations mean."""
PRESETS["scaled_par_bn"] = {**PRESETS["par_bn"], "scaling": "learned"}
PRESETS["seq_bn_inv"] = {**PRESETS["seq_bn"], "inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
PRESETS["double_seq_bn_inv"] = {**PRESETS["double_seq_bn"], "inv_adapter": "nice", "inv_adapter_reduction_factor": 2}
PRESETS["compacter"] = {**PRESETS["double_seq_bn"], "phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
PRESETS["compacter++"] = {**PRESETS["seq_bn"], "phm_layer": True, "reduction_factor": 32, "non_linearity": "gelu"}
for _old, _new in {
    "pfeiffer": "seq_bn", "houlsby": "double_seq_bn", "parallel": "par_bn", "scaled_parallel": "scaled_par_bn",
    "pfeiffer+inv": "seq_bn_inv", "houlsby+inv": "double_seq_bn_inv",
}.items():  # fmt: skip
    PRESETS[_old] = PRESETS[_new]

DEFAULTS: dict[str, Any] = {
    "original_ln_before": False, "original_ln_after": True, "residual_before_ln": True,
    "adapter_residual_before_ln": False, "ln_before": False, "ln_after": False, "is_parallel": False, "scaling": 1.0,
    "use_gating": False, "cross_adapter": False, "leave_out": [], "dropout": 0.0, "stochastic_depth": 0.0,
    "inv_adapter": None, "inv_adapter_reduction_factor": None, "init_weights": "bert", "init_weights_seed": None,
    "phm_layer": False, "phm_dim": 4, "factorized_phm_W": True, "shared_W_phm": False, "shared_phm_rule": True,
    "factorized_phm_rule": False, "phm_c_init": "normal", "phm_init_range": 0.0001, "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform", "phm_rank": 1, "phm_bias": True,
}  # fmt: skip
"""What a bottleneck configuration means where it does not say."""
LORA_FIELDS = (
    "selfattn_lora", "intermediate_lora", "output_lora", "leave_out", "r", "alpha", "dropout", "attn_matrices",
    "composition_mode", "init_weights", "init_weights_seed", "use_gating", "use_dora", "vera_d", "vera_b", "dtype",
)  # fmt: skip
"""Fields of a LoRA configuration."""
_ANYWHERE = ("architecture", "attention_type", "new_attention_norm")
"""Fields of any configuration; the last two are old, and only name what the rest says."""
REQUIRED = ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity")
ACTIVATIONS = {
    "relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "leakyrelu": "leaky_relu", "leaky_relu": "leaky_relu", "tanh": "tanh",
    "sigmoid": "sigmoid", "quick_gelu": "quick_gelu", "relu6": "relu6", "relu2": "relu2", "mish": "mish",
    "linear": "linear",
}  # fmt: skip
"""Its names of non-linearities, ours."""
_LEGACY = (
    ("attention_text_task_adapters", "adapters"), ("attention_text_lang_adapters", "adapters"),
    ("layer_text_task_adapters", "adapters"), ("layer_text_lang_adapters", "adapters"),
    ("invertible_lang_adapters", "invertible_adapters"),
)  # fmt: skip
_KEY = re.compile(
    r"(?P<path>.*?)\.?\b(?P<kind>adapters|loras|invertible_adapters|shared_parameters|adapter_fusion_layer"
    r"|prefix_tunings|prefix_gates|prompt_tunings)"
    r"\.(?P<name>[^.]+)\.(?P<leaf>.+)"
)
NARROW = {"weight": "W_{}", "bias": "b_{}", "W_left": "W_{}.L", "W_right": "W_{}.T", "W": "W_{}.M", "b": "b_{}"}
RULE = {"phm_rule": "R_{}.R", "phm_rule_left": "R_{}.left", "phm_rule_right": "R_{}.right"}


@dataclass(frozen=True)
class Key:
    """One tensor's name, taken apart."""

    path: str
    kind: str
    leaf: str
    name: str
    """The adapter's."""


class Names:
    """Where the library's names lie in a model."""

    def __init__(self, anatomy: Anatomy, prefix: str, kind: str, *, is_interface: bool = False) -> None:
        self.anatomy, self.prefix, self.kind, self.is_interface = anatomy, prefix, kind, is_interface
        self.blocks = {self.bare(site.path): site for site in anatomy.sites if site.role == "block"}
        self.linears = {self.bare(site.path): site for site in anatomy.sites if site.is_linear}
        self.sublayers: dict[tuple[str, int | None, str], SubLayer] = {
            (s.stack, s.layer, s.role): s for s in anatomy.sublayers
        }
        self.places = {s.path: s for s in anatomy.sublayers}
        self.widths = {site.path: site.out_features for site in anatomy.sites}

    def bare(self, path: str) -> str:
        """A path without the base model's own prefix: folders come with it and without."""
        return path.removeprefix(f"{self.prefix}.") if self.prefix else path

    def sublayer(self, path: str) -> str:
        """The path of our site for one of its adapter sites. Raises BadCheckpoint where this model has none."""
        bare = self.bare(path)
        block = next((b for b in sorted(self.blocks, key=len, reverse=True) if bare.startswith(f"{b}.")), None)
        if block is None:
            raise BadCheckpoint(f"wrong base: the adapter has tensors for {path}, and this model has no such block")
        site, rest = self.blocks[block], bare.removeprefix(f"{block}.")
        found = self.sublayers.get((site.stack, site.layer, _role(rest, site.stack)))
        if found is None:
            raise BadCheckpoint(
                f"wrong base: the adapter has tensors for {path}, and this model's {site.path} has no such sub-layer"
            )
        return found.path

    def linear(self, path: str) -> Site:
        """Our site of one of its adapted linears. Raises BadCheckpoint where this model has none."""
        site = self.linears.get(self.bare(path))
        if site is None:
            raise BadCheckpoint(
                f"wrong base: the adapter has tensors for {path!r}, which is no adaptable module of this model"
            )
        return site

    def role(self, path: str) -> str:
        """The role of a sub-layer."""
        return self.places[path].role

    @property
    def stacks(self) -> list[str]:
        """The stacks in model order."""
        return list(dict.fromkeys(site.stack for site in self.anatomy.sites if site.role == "block"))

    def index(self, stack: str, layer: int) -> int:
        """The number of a layer as the library counts: a decoder's go on after the encoder's."""
        before = self.stacks[: self.stacks.index(stack)]
        return layer + sum(self.anatomy.num_layers(other) for other in before)

    def width(self, path: str) -> int:
        """The width of a sub-layer."""
        return self.widths[self.places[path].linear]

    def ratio(self, reduction: Any, path: str) -> float:
        """The reduction factor of a sub-layer: one number, or one by layer."""
        index, found = self.index(self.places[path].stack, self.places[path].layer), reduction
        if isinstance(reduction, Mapping):
            found = reduction.get(str(index), reduction.get("default"))
        if found is None:
            raise BadCheckpoint(f"reduction_factor says nothing about layer {index}")
        if not float(found) > 0:
            raise BadCheckpoint(f"reduction_factor is {found} for layer {index}; it must be above 0")
        return float(found)

    @property
    def first_block(self) -> str:
        """Where an invertible adapter acts."""
        return next(site.path for site in self.anatomy.sites if site.role == "block")


def _role(rest: str, stack: str) -> str:
    """The role of a sub-layer by the end of its name inside a block."""
    parts = rest.split(".")
    if parts[-1] in ("attention_adapters", "output_adapters", "cross_attention_adapters"):
        return {"attention_adapters": "attn", "output_adapters": "mlp"}.get(parts[-1], "cross")
    if parts[0] == "layer" and len(parts) == 2:  # T5: the blocks' own lists
        return ("attn", "mlp")[int(parts[1])] if stack == "encoder" else ("attn", "cross", "mlp")[int(parts[1])]
    return {"attention": "attn", "crossattention": "cross"}.get(parts[0], "mlp")


def parse(key: str) -> Key:
    """A tensor's name taken apart, old names too. Raises BadCheckpoint for one of no known kind."""
    plain = key
    for old, new in _LEGACY:
        plain = plain.replace(f"{old}.", f"{new}.")
    found = _KEY.fullmatch(plain)
    if found is None:
        raise BadCheckpoint(f"the tensor {key!r} has a name that no AdapterHub adapter of a known type has")
    return Key(found["path"], found["kind"], found["leaf"], found["name"])


def check_one(keys: Mapping[str, Key]) -> None:
    """Raise BadCheckpoint unless a file holds one adapter: another's tensors would take the places of its own."""
    if not keys:
        raise BadCheckpoint("the file holds no tensors; it is incomplete")
    found = sorted({parsed.name for parsed in keys.values()})
    if len(found) > 1:
        raise BadCheckpoint(f"the file holds tensors of several adapters ({', '.join(found)}); save each to its own")


def check_switches(fields: Mapping[str, Any]) -> None:
    """Raise BadCheckpoint for a switch that is neither on nor off: any text would count as on, "false" too."""
    for name, plain in {**DEFAULTS, "mh_adapter": False, "output_adapter": True}.items():
        said = fields[name]
        if not isinstance(plain, bool) or said is None or said in (True, False):
            continue
        if name != "residual_before_ln" or said != "post_add":
            raise BadCheckpoint(f"{name} is {said!r} in adapter_config.json; it must be true or false")


def base_prefix(model: nn.Module) -> str:
    """What a task model calls its base model."""
    return next((str(vars(c)["base_model_prefix"]) for c in type(model).__mro__ if "base_model_prefix" in vars(c)), "")


def check_fields(fields: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises BadCheckpoint for a field that is not known: it may change what the adapter computes."""
    strange = sorted(set(fields) - set(known) - set(_ANYWHERE))
    if strange:
        raise BadCheckpoint(
            f"the configuration has {strange[0]}={fields[strange[0]]!r}, which is not known here and may change what "
            "the adapter computes; take it out if it does not"
        )
