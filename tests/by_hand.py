"""Adapters worked out by hand: hooks on a plain transformers model, at places written down here module by module.

Nothing of Budwood is used: neither what it finds out about a model nor how it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Read = tuple[str, str]


@dataclass(frozen=True)
class Spot:
    """One sub-layer: `h` leaves the module `h` (its output), `r` is read at `r`, y = norm(r + scale h)."""

    role: str
    h: str
    r: Read
    norm: str | None = None
    scale: float = 1.0
    query: str = ""
    """The projection that makes the queries of an attention."""
    o: str = ""
    """Its output projection."""


def _bert(body: str) -> list[Spot]:
    spots = []
    for layer in (f"{body}.encoder.layer.{i}" for i in range(2)):
        inside = f"{layer}.attention"
        spots += [
            Spot("attn", f"{inside}.output.dropout", (layer, "input"), f"{inside}.output.LayerNorm",
                 query=f"{inside}.self.query", o=f"{inside}.output.dense"),
            Spot("mlp", f"{layer}.output.dropout", (inside, "output"), f"{layer}.output.LayerNorm"),
        ]  # fmt: skip
    return spots


def _llama(norm: str = "post_attention_layernorm", scale: float = 1.0) -> list[Spot]:
    spots = []
    for layer in (f"model.layers.{i}" for i in range(2)):
        inside = f"{layer}.self_attn"
        spots += [
            Spot("attn", f"{inside}.o_proj", (layer, "input"), None, scale, f"{inside}.q_proj", f"{inside}.o_proj"),
            Spot("mlp", f"{layer}.mlp.down_proj", (f"{layer}.{norm}", "input"), None, scale),
        ]
    return spots


def _gemma2() -> list[Spot]:
    spots = []
    for layer in (f"model.layers.{i}" for i in range(2)):
        spots += [
            Spot("attn", f"{layer}.post_attention_layernorm", (layer, "input")),
            Spot("mlp", f"{layer}.post_feedforward_layernorm", (f"{layer}.pre_feedforward_layernorm", "input")),
        ]
    return spots


def _gpt2() -> list[Spot]:
    spots = []
    for layer in (f"transformer.h.{i}" for i in range(2)):
        inside = f"{layer}.attn"
        spots += [
            Spot("attn", f"{inside}.resid_dropout", (layer, "input"), query=f"{inside}.c_attn", o=f"{inside}.c_proj"),
            Spot("mlp", f"{layer}.mlp.dropout", (f"{layer}.ln_2", "input")),
        ]
    return spots


def _side_by_side(layer: str, attn: str, mlp: str, query: str = "", o: str = "") -> list[Spot]:
    spots = []
    for block in (f"{layer}.{i}" for i in range(2)):
        spots += [
            Spot("attn", f"{block}.{attn}", (block, "input"), query=f"{block}.{query}", o=f"{block}.{o}"),
            Spot("mlp", f"{block}.{mlp}", (block, "input")),
        ]
    return spots


def _bart(*, normed_after: bool) -> list[Spot]:
    spots = []
    for layer in (f"model.{stack}.layers.{i}" for stack in ("encoder", "decoder") for i in range(2)):
        steps = [("attn", "self_attn.out_proj", "self_attn_layer_norm", "self_attn")]
        if "decoder" in layer:
            steps.append(("cross", "encoder_attn.out_proj", "encoder_attn_layer_norm", "encoder_attn"))
        steps.append(("mlp", "fc2", "final_layer_norm", ""))
        before = (layer, "input")
        for role, h, norm, inside in steps:
            r = before if normed_after else (f"{layer}.{norm}", "input")
            own = f"{layer}.{inside}"
            spots.append(
                Spot(role, f"{layer}.{h}", r, f"{layer}.{norm}" if normed_after else None,
                     query=f"{own}.q_proj", o=f"{own}.out_proj")
            )  # fmt: skip
            before = (f"{layer}.{norm}", "output")
    return spots


def _t5() -> list[Spot]:
    return [
        Spot(role, f"{stack}.block.{i}.layer.{n}.dropout", (f"{stack}.block.{i}.layer.{n}", "input"))
        for stack, roles in (("encoder", ("attn", "mlp")), ("decoder", ("attn", "cross", "mlp")))
        for i in range(2)
        for n, role in enumerate(roles)
    ]


SPOTS: dict[str, list[Spot]] = {
    "bert": _bert("bert"),
    "roberta": _bert("roberta"),
    "bert-classify": _bert("bert"),
    "llama": _llama(),
    "granite": _llama(scale=0.5),
    "gemma2": _gemma2(),
    "gpt2": _gpt2(),
    "gpt_neox": _side_by_side(
        "gpt_neox.layers", "post_attention_dropout", "post_mlp_dropout", "attention.query_key_value", "attention.dense"
    ),
    "phi": _side_by_side("model.layers", "self_attn.dense", "mlp.fc2"),
    "falcon": _side_by_side("transformer.h", "self_attention.dense", "mlp.dense_4h_to_h"),
    "bart": _bart(normed_after=True),
    "mbart": _bart(normed_after=False),
    "t5": _t5(),
}
"""Every sub-layer of a tiny model, by family."""

Weights = dict[str, Tensor]
"""One adapter's tensors at one spot, by letter."""


@dataclass
class Hand:
    """A plain model with hooks. `values`: what was read in this forward."""

    model: nn.Module
    values: dict[Read, Tensor] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    def read(self, place: Read) -> None:
        """Keep what a module reads or returns."""
        module, (path, end) = self.model.get_submodule(place[0]), place

        def before(_: nn.Module, args: Any, kwargs: Any) -> None:
            self.values[path, end] = args[0] if args else kwargs["hidden_states"]

        def after(_: nn.Module, args: Any, output: Any) -> None:
            self.values[path, end] = output if isinstance(output, Tensor) else output[0]

        if end == "input":
            self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        else:
            self.handles.append(module.register_forward_hook(after))

    def replace(self, path: str, change: Callable[[Tensor], Tensor]) -> None:
        """Let a module return `change(output)`."""

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return change(output) if isinstance(output, Tensor) else (change(output[0]), *output[1:])

        self.handles.append(self.model.get_submodule(path).register_forward_hook(after))

    def feed(self, path: str, change: Callable[[Tensor], Tensor]) -> None:
        """Let a module read `change(input)`."""

        def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        self.handles.append(self.model.get_submodule(path).register_forward_pre_hook(before, with_kwargs=True))

    def at(self, spot: Spot, change: Callable[[Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        """h' = change(h, r, total -> what the model makes of r + scale h)."""
        self.read(spot.r)
        norm = None if spot.norm is None else self.model.get_submodule(spot.norm)

        def normed(total: Tensor) -> Tensor:
            if norm is None:
                return total
            return F.layer_norm(total, total.shape[-1:], norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]

        self.replace(
            spot.h, lambda h: change(h, self.values[spot.r], lambda h: normed(self.values[spot.r] + spot.scale * h))
        )


@contextmanager
def by_hand(model: nn.Module) -> Iterator[Hand]:
    """Hooks that are gone afterwards."""
    hand = Hand(model)
    try:
        yield hand
    finally:
        for handle in hand.handles:
            handle.remove()


def bottleneck(w: Weights, z: Tensor, act: Callable[[Tensor], Tensor] = torch.relu) -> Tensor:
    """W_u act(W_d z + b_d) + b_u."""
    u = z @ w["A.W_d"].T + w.get("A.b_d", 0)
    return act(u) @ w["A.W_u"].T + w.get("A.b_u", 0)


def layer_norm(w: Weights, name: str, z: Tensor) -> Tensor:
    """A LayerNorm of the adapter's own."""
    return F.layer_norm(z, z.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def at_site(weights: dict[str, Tensor], path: str) -> Weights:
    """Those of the tensors that stand at one path, by letter."""
    return {name.removeprefix(f"{path}."): t for name, t in weights.items() if name.startswith(f"{path}.")}
