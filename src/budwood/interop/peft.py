"""Hugging Face PEFT's adapter folders: the only file that knows PEFT's names of fields and tensors.

LoRA (with rsLoRA, DoRA, bias of B, embeddings, PiSSA) and (IA)^3 are written so that `peft.PeftModel.from_pretrained`
gives the same logits, and read the same way. A pair for each part of a fused projection becomes one pair of the summed
rank; PiSSA's starting product becomes `rank` more dimensions (as PEFT's own conversion does).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core import Adapter, Method, delta_at
from budwood.core.trained import Trained
from budwood.core.weights import rows_of
from budwood.errors import BadCheckpoint, NoSuchSite
from budwood.interop.reading import Read, compress, last_names
from budwood.methods.ia3 import IA3, IA3Input, IA3Output
from budwood.methods.lora import LoRA, LoRADelta, LoRAEmbedding, LoRAParts

_PREFIX = "base_model.model."
_TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
TASK_OF = {"TOKEN_CLS": "token-classification", "QUESTION_ANS": "question-answering"}
"""Our name for what an adapter is used for, where PEFT's says more than that it has classes."""
_HEAD_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_CHANGES_FORWARD = (
    "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens", "use_qalora",
    "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_LORA_KEYS = {
    "lora_A.weight": "A", "lora_B.weight": "B", "lora_B.bias": "b", "lora_embedding_A": "A", "lora_embedding_B": "B",
    "lora_magnitude_vector": "m", "lora_magnitude_vector.weight": "m",
}  # fmt: skip
_LORA_KEY = re.compile(
    r"(.+)\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))(?:\.default)?((?:\.weight|\.bias)?)"
)
_IA3_KEY = re.compile(r"(.+)\.ia3_l(?:\.default)?")


def knows(config: Mapping[str, Any]) -> bool:
    """True for a configuration that this file can read."""
    return config.get("peft_type") in ("LORA", "IA3")


# ---------------------------------------------------------------------------------------------------------- reading
def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], anatomy: Anatomy) -> Read:
    """A PEFT configuration and its tensors as ours.

    Raises BadCheckpoint for a variant that changes the forward pass or the base in a way not supported here, for
    ranks that do not fit the tensors, and for tensors of unknown names.
    """
    _refuse(config)
    parse = _LORA_KEY if config["peft_type"] == "LORA" else _IA3_KEY
    by_path: dict[str, dict[str, Tensor]] = {}
    trained: dict[str, Tensor] = {}
    repeated: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        plain = key.removeprefix(_PREFIX)
        if match := parse.fullmatch(plain):
            letter = _LORA_KEYS[match[2] + match[3]] if parse is _LORA_KEY else "l"
            by_path.setdefault(match[1], {})[letter] = tensor
        elif plain.endswith(".base_layer.weight"):
            repeated[plain.replace(".base_layer.", ".")] = tensor
        else:
            trained[re.sub(r"\.modules_to_save(\.default)?\.", ".", plain)] = tensor
    ours = {f"{path}.{letter}": t for path, letters in by_path.items() for letter, t in letters.items()}
    for key in (*by_path, *(name.rpartition(".")[0] for name in trained)):
        require_site(key, anatomy)
    make = _lora if config["peft_type"] == "LORA" else _ia3
    method = make(config, by_path, tuple(_summary(config.get("target_modules"), by_path, anatomy)))
    heads = tuple(dict.fromkeys(name.rpartition(".")[0] for name in trained))
    return Read(replace(method, trained=heads), {**_flat(ours), **trained}, repeated)


def _refuse(config: Mapping[str, Any]) -> None:
    for field in _CHANGES_FORWARD:
        if config.get(field):
            raise BadCheckpoint(
                f"this PEFT adapter uses {field}, which changes the forward pass and is not supported here"
            )
    if config.get("bias", "none") != "none":
        raise BadCheckpoint(
            f"this PEFT adapter trained biases of the base (bias={config['bias']!r}); train it with bias='none'"
        )
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(_CHANGES_BASE):
        raise BadCheckpoint(
            f"this PEFT adapter was saved with init_lora_weights={init!r}, which also changes the base; save it again "
            "in PEFT with path_initial_model_for_weight_conversion"
        )


def require_site(path: str, anatomy: Anatomy) -> None:
    """Raise BadCheckpoint where this model has no such module."""
    if not any(site.path == path for site in anatomy.sites):
        raise BadCheckpoint(
            f"wrong base: the adapter has tensors for {path!r}, which is no adaptable module of this model"
        )


def _lora(config: Mapping[str, Any], by_path: Mapping[str, Mapping[str, Tensor]], targets: tuple[str, ...]) -> LoRA:
    rank, alpha = int(config.get("r", 8)), float(config.get("lora_alpha", 8))
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, letters in by_path.items():
        if not {"A", "B"} <= letters.keys():
            raise BadCheckpoint(f"{path} has {sorted(letters)} where A and B are expected; the file is incomplete")
        stated = int(_pattern(config.get("rank_pattern"), path, rank))
        if letters["A"].shape[0] != stated:
            raise BadCheckpoint(
                f"{path}: A has rank {letters['A'].shape[0]}, the configuration says {stated}; one is wrong"
            )
        if stated != rank:
            ranks[path] = stated
        if (own := float(_pattern(config.get("alpha_pattern"), path, alpha))) != alpha:
            alphas[path] = own
    return LoRA(
        targets=targets, rank=rank, alpha=alpha, ranks=ranks, alphas=alphas,
        dropout=float(config.get("lora_dropout", 0.0)), rslora=bool(config.get("use_rslora", False)),
        dora=bool(config.get("use_dora", False)), bias=bool(config.get("lora_bias", False)),
    )  # fmt: skip


def _ia3(config: Mapping[str, Any], by_path: Mapping[str, Mapping[str, Tensor]], targets: tuple[str, ...]) -> IA3:
    inputs = [path for path, letters in by_path.items() if letters["l"].shape[0] == 1]
    feedforward = compress(inputs, last_names(inputs), by_path)
    return IA3(targets=targets, feedforward=tuple(feedforward))


def _flat(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(IA)^3 vectors and DoRA magnitudes as [n]: PEFT stores some as columns or rows."""
    return {k: t.reshape(-1) if k.endswith((".l", ".m", ".b")) else t for k, t in tensors.items()}


def _pattern(patterns: Mapping[str, Any] | None, path: str, default: float) -> float:
    """PEFT's rule: the first key that is, as a regular expression, the whole path or the end of it after a dot."""
    return next((v for k, v in (patterns or {}).items() if re.match(rf"(.*\.)?({k})$", path)), default)


def _summary(stated: Any, paths: Iterable[str], anatomy: Anatomy) -> list[str]:
    """The names the configuration gives, where they select exactly the modules that have tensors; else the modules."""
    paths = list(paths)
    names = stated if isinstance(stated, list) else []
    return compress(paths, sorted(names), (site.path for site in anatomy.sites))


# ---------------------------------------------------------------------------------------------------------- writing
def can_write(adapter: Adapter) -> bool:
    """True where PEFT has the type."""
    method = adapter.method
    return isinstance(method, IA3) or (isinstance(method, LoRA) and not method.gate)  # it has no gates


def write(model: nn.Module, adapter: Adapter) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The adapter as PEFT's configuration and tensors."""
    acting: list[tuple[Site, nn.Module]] = []
    trained: list[tuple[Site, nn.Module]] = []
    for site in adapter.sites:
        delta = delta_at(model, site, adapter.name)
        (trained if isinstance(delta, Trained) else acting).append((site, delta))
    tensors = {f"{_PREFIX}{site.path}.{key}": t for site, delta in trained for key, t in delta.named_parameters()}
    heads = containers(model, [site.path for site, _ in trained])
    task = task_of(model)
    config: dict[str, Any] = {
        "task_type": task if heads or task not in _HEAD_TASKS else None,
        "base_model_name_or_path": base_name(model),
        "revision": None,
        "inference_mode": True,
        "modules_to_save": heads or None,
        "fan_in_fan_out": any(site.kind == "conv1d" for site, _ in acting),
    }
    fields, more = (
        _write_lora(model, adapter.method, acting) if isinstance(adapter.method, LoRA) else _write_ia3(model, acting)
    )
    return {**config, **fields}, {**tensors, **more}


def task_of(model: nn.Module) -> str | None:
    """PEFT's word for what a model is for; None where it has none, as for masked language models."""
    return next((task for ending, task in _TASKS.items() if type(model).__name__.endswith(ending)), None)


def base_name(model: nn.Module) -> str:
    """Where the base came from, as transformers noted it; empty for a model that it did not load."""
    config = vars(model).get("config")
    return str(config.name_or_path) if config is not None else ""


def _write_lora(
    model: nn.Module, method: LoRA, acting: list[tuple[Site, nn.Module]]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for site, delta in acting:
        pair, scale = _pair(delta)
        infix = "embedding_" if isinstance(delta, LoRAEmbedding) else ""
        for letter, tensor in pair.items():
            name = {"m": "lora_magnitude_vector", "b": "lora_B.bias"}.get(letter, f"lora_{infix}{letter}")
            weight = ".weight" if letter in "AB" and not infix else ""
            tensors[f"{_PREFIX}{site.path}.{name}{weight}"] = tensor
        ranks[site.path] = pair["A"].shape[0]
        alphas[site.path] = scale * (math.sqrt(ranks[site.path]) if method.rslora else ranks[site.path])
    rank, rank_pattern = _common(ranks)
    alpha, alpha_pattern = _common({path: _tidy(value) for path, value in alphas.items()})
    fields = {
        "peft_type": "LORA", "target_modules": _module_names(model, list(ranks)),
        "r": rank, "lora_alpha": alpha, "rank_pattern": rank_pattern, "alpha_pattern": alpha_pattern,
        "lora_dropout": method.dropout, "bias": "none", "use_rslora": method.rslora, "use_dora": method.dora,
        "lora_bias": method.bias, "init_lora_weights": True,
    }  # fmt: skip
    return fields, tensors


def _pair(delta: nn.Module) -> tuple[dict[str, Tensor], float]:
    """A delta as one pair A: [rank, in], B: [out, rank] with its extras, and its scale."""
    match delta:
        case LoRAParts():
            A, B = delta.whole()
            return {"A": A, "B": B}, delta.scale
        case LoRADelta():
            extras = {"m": delta.m, "b": delta.b}
            A, B = delta.pair()
            return {"A": A, "B": B, **{k: t for k, t in extras.items() if t is not None}}, delta.scale
        case LoRAEmbedding():
            return {"A": delta.A, "B": delta.B}, delta.scale
    raise AssertionError(type(delta))


def _write_ia3(model: nn.Module, acting: list[tuple[Site, nn.Module]]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    tensors, inputs = {}, []
    for site, delta in acting:
        if isinstance(delta, IA3Output):
            tensors[f"{_PREFIX}{site.path}.ia3_l"] = delta.whole().unsqueeze(1)  # [out, 1]
        elif isinstance(delta, IA3Input):
            tensors[f"{_PREFIX}{site.path}.ia3_l"] = delta.l.unsqueeze(0)  # [1, in]
            inputs.append(site.path)
    paths = [site.path for site, _ in acting]
    targets, feedforward = _module_names(model, paths), _module_names(model, inputs)
    if not set(feedforward) <= set(targets):  # PEFT compares the two lists as written
        targets, feedforward = paths, inputs
    fields = {"peft_type": "IA3", "init_ia3_weights": True}
    return {**fields, "target_modules": targets, "feedforward_modules": feedforward}, tensors


def _common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The most frequent value, and the others by path as PEFT's regular expressions."""
    if not values:
        raise NoSuchSite("the adapter has no LoRA site, so there is nothing to write in PEFT's format")
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {re.escape(path): v for path, v in values.items() if v != common}


def _tidy(value: float) -> float | int:
    return round(value) if math.isclose(value, round(value), rel_tol=1e-12) else value


def _module_names(model: nn.Module, paths: list[str]) -> list[str]:
    """Last names of the modules where these select exactly `paths` among all modules; else the whole paths."""
    return compress(paths, last_names(paths), (name for name, _ in model.named_modules()))


def containers(model: nn.Module, paths: list[str]) -> list[str]:
    """The outermost modules whose every parameter is trained: `classifier` for `classifier.dense` and `.out_proj`."""
    found: list[str] = []
    for path in paths:
        steps = path.split(".")
        ancestors = (".".join(steps[: n + 1]) for n in range(len(steps)))
        whole = (
            name
            for name in ancestors
            if all(
                f"{name}.{child}".rstrip(".") in paths
                for child, module in model.get_submodule(name).named_modules()
                if any(True for _ in module.parameters(recurse=False)) and "deltas" not in child.split(".")
            )
        )
        found.append(next(whole, path))
    return list(dict.fromkeys(found))


def split(method: Method, tensors: Mapping[str, Tensor], anatomy: Anatomy) -> dict[str, Tensor]:
    """The inverse of `write` for an adapter of ours: pairs for parts and PiSSA's starting product taken apart again."""
    if not isinstance(method, LoRA | IA3):
        return dict(tensors)
    parts = {site.path: site for site in anatomy.select(*method.targets, layers=method.layers) if site.chosen}
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        path, _, letter = key.rpartition(".")
        pissa = isinstance(method, LoRA) and method.init == "pissa"
        if isinstance(method, LoRA) and letter in ("A", "B"):
            pieces = tensor.chunk(2, dim=0 if letter == "A" else 1) if pissa else (tensor,)
            for suffix, piece in zip(("", "0"), pieces, strict=False):
                signed = -piece if suffix and letter == "B" else piece
                out[f"{path}.{letter}{suffix}"] = (
                    _unstack(signed, parts[path], method) if path in parts and letter == "B" else signed
                )
        elif isinstance(method, IA3) and path in parts:
            out[key] = tensor[_rows(parts[path])]
        else:
            out[key] = tensor
    return out


def _rows(site: Site) -> Tensor:
    return torch.cat([rows_of(part) for part in site.parts if part.role in site.chosen])


def _unstack(B: Tensor, site: Site, method: LoRA) -> Tensor:
    """B of a fused output [out, parts * rank], block by block: [sum of the parts' outputs, rank]."""
    rank, chosen = method.rank_at(site), [part for part in site.parts if part.role in site.chosen]
    return torch.cat([B[rows_of(part), j * rank : (j + 1) * rank] for j, part in enumerate(chosen)])
