"""Everything about a model that needs no forward: its modules, blocks, and the roles of its linears and embeddings."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.resources import files
from itertools import takewhile

from torch import nn
from transformers import PreTrainedModel

from budwood.anatomy.names import EMBEDDINGS, role_by_name
from budwood.anatomy.stacks import Block, Weights, find_blocks, roles_in, sizes, walk
from budwood.anatomy.sublayers import End


@dataclass
class Skeleton:
    """The static reading of one model."""

    model: nn.Module
    modules: dict[str, nn.Module]
    blocks: list[Block]
    owner: dict[str, Block] = field(default_factory=dict)
    """The block that a module inside a block, or the block itself, belongs to."""
    roles: dict[str, str] = field(default_factory=dict)
    """Roles of linears, embeddings, attentions, MLPs, mixers, blocks, and of what `overrides.toml` lists."""
    weights: dict[str, list[Weights]] = field(default_factory=dict)
    """Bare parameters with roles, by the path of the module that holds them."""
    ends: list[End] = field(default_factory=list)

    @property
    def linears(self) -> Iterator[str]:
        """Paths of all linears."""
        return (path for path, module in self.modules.items() if sizes(module) is not None)

    def stack_of(self, path: str) -> str:
        """The stack of the block a path is in; outside of blocks, of the stack that shares most of the path."""
        if path in self.owner:
            return self.owner[path].stack

        def shared(block: Block) -> int:
            pairs = zip(path.split("."), block.path.split("."), strict=False)
            return next((i for i, (a, b) in enumerate(pairs) if a != b), 99)

        return max(reversed(self.blocks), key=shared).stack


def read(model: nn.Module) -> Skeleton:
    """The skeleton of a model. Without blocks, nothing but modules is filled in."""
    skeleton = Skeleton(model, dict(walk(model)), find_blocks(model))
    for block in skeleton.blocks:
        for name, _ in walk(block.module):
            skeleton.owner[f"{block.path}.{name}" if name else block.path] = block
        named, weights = roles_in(block)
        skeleton.roles |= named
        for weight in weights:
            skeleton.weights.setdefault(weight.path.rpartition(".")[0], []).append(weight)
        _modules_of(skeleton, block, named, [w.path for w in weights])
    for path in skeleton.modules:
        role = _outside(skeleton, path) if path not in skeleton.owner else None
        role = role or _embedding(skeleton, path)
        if role is not None and path not in skeleton.roles:
            skeleton.roles[path] = role
    skeleton.roles |= _overridden(skeleton)
    return skeleton


def _modules_of(skeleton: Skeleton, block: Block, named: dict[str, str], weights: list[str]) -> None:
    """The attentions, MLP, mixer and block as sites, and where their sub-layers end."""
    skeleton.roles[block.path] = "block"
    for path, role in named.items():
        whole = {"attn.q": "attn", "attn.qkv": "attn", "attn.q_a": "attn", "cross.q": "cross", "mixer.out": "mixer"}
        if role in whole:
            skeleton.roles[path.rpartition(".")[0]] = whole[role]
        if role == "attn.o":
            skeleton.ends.append(End("attn", block.path, block.stack, block.layer, path))
        elif role == "cross.o":
            skeleton.ends.append(End("cross", block.path, block.stack, block.layer, path))
    linears = [path for path, role in named.items() if role.startswith("mlp.")]
    downs = [path for path in linears if named[path] == "mlp.down"]
    mlp = _common_parent([*linears, *weights])
    if "experts" in mlp.rpartition(".")[2]:
        mlp = mlp.rpartition(".")[0]
    if mlp.startswith(f"{block.path}."):
        skeleton.roles[mlp] = "mlp"
    last = downs[0] if len(downs) == 1 and not weights else mlp
    if last.startswith(f"{block.path}."):
        skeleton.ends.append(End("mlp", block.path, block.stack, block.layer, last))


def _common_parent(paths: list[str]) -> str:
    """The longest path that all of these lie below; empty for none."""
    levels = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    return ".".join(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))


def _embedding(skeleton: Skeleton, path: str) -> str | None:
    model, module = skeleton.model, skeleton.modules[path]
    if not isinstance(module, nn.Embedding):
        return None
    if isinstance(model, PreTrainedModel) and module is model.get_input_embeddings():
        return "embed"
    return role_by_name(path, EMBEDDINGS)


def _outside(skeleton: Skeleton, path: str) -> str | None:
    """Roles of linears outside the blocks, as far as names, shapes and the place in a transformers model tell."""
    model, pair = skeleton.model, sizes(skeleton.modules[path])
    if pair is None:
        return None
    if "pooler" in path.split("."):
        return "pooler"
    if not isinstance(model, PreTrainedModel):
        words = {m.num_embeddings for m in skeleton.modules.values() if isinstance(m, nn.Embedding)}
        return "head.lm" if pair[1] in words else None
    output = model.get_output_embeddings()
    if skeleton.modules[path] is output:
        return "head.lm"
    inside = model.base_model is model or skeleton.modules[path] in set(model.base_model.modules())
    if inside:
        return role_by_name(path, {"embed.project": EMBEDDINGS["embed.project"]})
    return "head.transform" if output is not None and pair[1] == output.weight.shape[-1] else "head"


def _overridden(skeleton: Skeleton) -> dict[str, str]:
    """What `overrides.toml` says about models of this type."""
    if not isinstance(skeleton.model, PreTrainedModel):
        return {}
    table = tomllib.loads(files("budwood.anatomy").joinpath("overrides.toml").read_text())
    patterns = table.get(skeleton.model.config.model_type, {})
    return {path: role for path in skeleton.modules for pattern, role in patterns.items() if fnmatchcase(path, pattern)}
