"""The one table of names, and how names, ancestors and shapes decide the roles of one block's linears.

Names only propose. A role is given when the shapes of the whole group (an attention, an MLP) agree;
a group that does not fit is left without roles and reported.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

ATTENTION: dict[str, tuple[str, ...]] = {
    "q": ("q_proj", "query", "q", "q_lin", "query_proj", "wq", "Wq", "to_q", "q_attn", "linear_q"),
    "k": ("k_proj", "key", "k", "k_lin", "key_proj", "wk", "Wk", "to_k", "linear_k"),
    "v": ("v_proj", "value", "v", "v_lin", "value_proj", "wv", "Wv", "to_v", "linear_v"),
    "qkv": ("c_attn", "qkv_proj", "query_key_value", "Wqkv", "wqkv", "qkv", "W_pack", "in_proj"),
    "kv": ("c_attn", "kv_proj", "key_value", "Wkv", "kv"),
    "o": (
        "o_proj", "out_proj", "o", "out_lin", "c_proj", "dense", "Wo", "wo", "to_out", "linear_out", "proj", "output",
        "output.dense",
    ),
    "q_a": ("q_a_proj",),
    "q_b": ("q_b_proj",),
    "kv_a": ("kv_a_proj_with_mqa", "kv_a_proj"),
    "kv_b": ("kv_b_proj",),
    "gate": ("gate_proj", "g_proj", "output_gate"),
}  # fmt: skip
ATTENTION_SHAPES: tuple[frozenset[str], ...] = tuple(
    frozenset(names.split()) for names in ("q k v o", "qkv o", "q kv o", "q kv_a kv_b o", "q_a q_b kv_a kv_b o")
)
"""The sets of projections that make up an attention; any of them may have a gate as well."""

MLP: dict[str, tuple[str, ...]] = {
    "gate": ("gate_proj", "wi_0", "w1", "gate", "linear_gate", "gate_linear"),
    "up": (
        "up_proj", "wi_1", "w3", "w1", "v1", "wi", "Wi", "fc1", "fc_in", "c_fc", "dense_h_to_4h", "lin1", "linear1",
        "linear_up", "up", "ffn", "intermediate.dense", "intermediate", "layer_1", "mlp.0", "ffn.0",
    ),
    "gate_up": ("gate_up_proj", "Wi", "input_linear", "w13", "gate_up", "fc1", "up_proj"),
    "down": (
        "down_proj", "wo", "w2", "Wo", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "lin2", "linear2", "linear_down",
        "down", "ffn_output", "output_linear", "output.dense", "output", "layer_2", "mlp.2", "ffn.2",
    ),
    "router": ("gate", "router", "shared_expert_gate", "router.gate", "router.layer", "router.classifier"),
}  # fmt: skip

STATE_SPACE = {"in_proj": "mixer.in", "x_proj": "mixer.x", "dt_proj": "mixer.dt", "out_proj": "mixer.out"}
TIME_MIX = {
    "key": "mixer.k", "value": "mixer.v", "receptance": "mixer.r", "gate": "mixer.g", "output": "mixer.out",
}  # fmt: skip
CHANNEL_MIX = {"key": "mlp.up", "value": "mlp.down", "receptance": "mixer.r"}

EMBEDDINGS = {
    "embed.position": (
        "wpe", "position_embeddings", "embed_positions", "relative_attention_bias", "rel_embeddings", "pos_emb",
    ),
    "embed.type": ("token_type_embeddings",),
    "embed.project": ("embeddings_project", "embedding_hidden_mapping_in", "project_in", "project_out"),
    "embed": ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "tok_emb", "token_embedding"),
}  # fmt: skip
INNER_NORMS = {
    "norm.q": ("q_norm", "q_layernorm", "q_a_layernorm", "query_norm", "query_layernorm", "q_ln"),
    "norm.k": ("k_norm", "k_layernorm", "key_norm", "key_layernorm", "k_ln"),
    "norm.v": ("v_norm", "v_layernorm"),
    "norm.kv": ("kv_a_layernorm",),
}
BLOCK_NORMS = {
    "norm.attn": (
        "input_layernorm", "ln_1", "self_attn_layer_norm", "attn_norm", "sa_layer_norm", "norm_1", "ln_attn", "norm1",
        "attention.output.LayerNorm", "attention.LayerNorm",
    ),
    "norm.cross": ("encoder_attn_layer_norm", "ln_cross_attn"),
    "norm.mlp": (
        "ln_2", "final_layer_norm", "mlp_norm", "output_layer_norm", "norm_2", "ln_mlp", "norm2", "output.LayerNorm",
        "pre_feedforward_layernorm", "post_feedforward_layernorm", "pre_ff_layernorm", "full_layer_layer_norm",
    ),
}  # fmt: skip
"""Norms of a block whose name alone says where they stand: used only for those that no traced forward ran."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One linear: its path below its block, and its sizes."""

    name: str
    in_features: int
    out_features: int


def longest_match(name: str, suffixes: Iterable[str]) -> str | None:
    """The longest of `suffixes` that is the whole end of the dotted `name`, or None."""
    found = [s for s in suffixes if name == s or name.endswith(f".{s}")]
    return max(found, key=len, default=None)


def role_by_name(name: str, table: dict[str, tuple[str, ...]]) -> str | None:
    """The role whose longest name ends `name`, or None."""
    best = {role: match for role, names in table.items() if (match := longest_match(name, names))}
    return max(best, key=lambda role: len(best[role]), default=None)


def attention_of(name: str, attentions: Iterable[str] = ()) -> str | None:
    """The path, below the block, of the outermost ancestor that calls itself an attention.

    `attentions` are modules whose class does; they count where no path does (Nemotron-H's `mixer`).
    """
    parts = name.split(".")[:-1]
    for i, part in enumerate(parts):
        if "attn" in part.lower() or "attention" in part.lower():
            return ".".join(parts[: i + 1])
    return min((a for a in attentions if name.startswith(f"{a}.")), key=len, default=None)


def is_cross(anchor: str) -> bool:
    """Whether an attention of this path reads another stack (BERT, T5, BART and GPT-2 all say so in its name)."""
    return any(mark in anchor.lower() for mark in ("cross", "encdec", "encoder_attn", "enc_attn"))


def block_roles(
    leaves: list[Leaf],
    hidden: int,
    *,
    state_space: set[str],
    rwkv: set[str],
    experts: set[str],
    attentions: set[str],
) -> dict[str, str]:
    """Roles by leaf name for the linears of one block; what is missing from the answer has none.

    `hidden` is the block's width. `state_space` and `rwkv` are the modules (paths below the block) that hold a
    Mamba or an RWKV mixer, `experts` those that hold a mixture of experts, `attentions` those of a class that
    says it is one.
    """
    heads: dict[str, list[Leaf]] = defaultdict(list)
    mlps: dict[str, list[Leaf]] = defaultdict(list)
    roles: dict[str, str] = {}
    for leaf in leaves:
        parent, _, last = leaf.name.rpartition(".")
        if parent in state_space:
            roles |= {leaf.name: STATE_SPACE[last]} if last in STATE_SPACE else {}
        elif parent in rwkv:
            table = TIME_MIX if f"{parent}.output" in {other.name for other in leaves} else CHANNEL_MIX
            roles |= {leaf.name: table[last]} if last in table else {}
        elif (anchor := attention_of(leaf.name, attentions)) is not None:
            heads[anchor].append(leaf)
        else:
            match = longest_match(leaf.name, {n for names in MLP.values() for n in names})
            mlps[leaf.name.removesuffix(match or last).rstrip(".")].append(leaf)
    for anchor, group in heads.items():
        roles |= _attention(group, hidden, cross=is_cross(anchor))
    for anchor, group in mlps.items():
        roles |= _mlp(group, hidden, has_experts=anchor in experts)
    return roles


def _attention(group: list[Leaf], hidden: int, *, cross: bool) -> dict[str, str]:
    """q, k, v (together or apart, or as low-rank pairs) and o; nothing unless the set is whole and fits."""
    table = {role: names for role, names in ATTENTION.items() if role != ("qkv" if cross else "kv")}
    named: dict[str, Leaf] = {}
    for leaf in group:
        role = role_by_name(leaf.name, table)
        if role in named:
            return {}
        if role is not None:
            named[role] = leaf
    if named.keys() - {"gate"} not in ATTENTION_SHAPES or named["o"].out_features != hidden:
        return {}
    readers = [named[role] for role in ("q", "q_a", "qkv", "gate") if role in named]
    if any(leaf.in_features != hidden for leaf in readers):
        return {}
    if "k" in named and named["k"].in_features != named["v"].in_features:
        return {}
    if "qkv" in named and named["qkv"].out_features <= named["o"].in_features:
        return {}
    return {leaf.name: f"{'cross' if cross else 'attn'}.{role}" for role, leaf in named.items()}


def _mlp(group: list[Leaf], hidden: int, *, has_experts: bool) -> dict[str, str]:
    """up (with gate, together or apart) and down of one MLP, or the router of a mixture of experts."""

    def named(role: str) -> list[Leaf]:
        return [leaf for leaf in group if longest_match(leaf.name, MLP[role])]

    downs = [leaf for leaf in named("down") if leaf.out_features == hidden]
    if len(downs) != 1:
        routers = [leaf for leaf in named("router") if has_experts and leaf.in_features == hidden]
        return {leaf.name: "mlp.router" for leaf in routers}
    inner = downs[0].in_features
    rest = [leaf for leaf in group if leaf not in downs and leaf.in_features == hidden]
    roles = {downs[0].name: "mlp.down"}
    wide = [leaf for leaf in rest if leaf.out_features == inner]
    match wide, [leaf for leaf in rest if leaf.out_features == 2 * inner and leaf in named("gate_up")]:
        case [], [both]:
            return roles | {both.name: "mlp.gate_up"}
        case [up], [] if up in (*named("up"), *named("gate")):
            return roles | {up.name: "mlp.up"}
        case [a, b], []:
            gates = [leaf for leaf in wide if leaf in named("gate")]
            if len(gates) == 1 and (b if gates[0] is a else a) in named("up"):
                return roles | {leaf.name: "mlp.gate" if leaf in gates else "mlp.up" for leaf in wide}
    return {}
