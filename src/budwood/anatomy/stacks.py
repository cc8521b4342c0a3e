"""The static part of discovery: which modules are blocks, and what their linears and parameters are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from budwood.anatomy.names import MLP, Leaf, attention_of, block_roles, longest_match

OURS = "deltas"
"""Name of the child that holds adapters: no part of the model."""


@dataclass(frozen=True, slots=True)
class Block:
    """One layer of one stack."""

    path: str
    stack: str
    layer: int
    module: nn.Module
    hidden: int


@dataclass(frozen=True, slots=True)
class Weights:
    """A bare parameter with a role: experts, or a router that is no linear."""

    path: str
    role: str
    in_features: int
    out_features: int


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its first path, in the model's order; without anything of ours."""
    seen: set[nn.Module] = set()

    def visit(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        yield path, module
        for name, child in module.named_children():
            if name != OURS:
                yield from visit(f"{path}.{name}" if path else name, child)

    yield from visit(path, module)


def sizes(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a linear, None for anything else."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation: a leaf that calls itself one."""
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())


def _linears(module: nn.Module) -> set[nn.Module]:
    return {m for _, m in walk(module) if sizes(m) is not None}


def _items(stack: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a stack; of ALBERT's groups, the blocks inside them."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, item in stack.named_children():
        inner = [
            (f"{name}.{path}", m)
            for path, m in item.named_children()
            if isinstance(m, nn.ModuleList) and len({type(block) for block in m}) == 1
        ]
        if len(inner) == 1 and _linears(inner[0][1]) == _linears(item):
            blocks += [(f"{inner[0][0]}.{path}", block) for path, block in _items(inner[0][1])]
        else:
            blocks.append((name, item))
    return blocks


def _is_stack(module: nn.Module) -> bool:
    """A list whose every item holds at least two linears; a Sequential only if its items are of one class."""
    items = list(module.children())
    if not items or not isinstance(module, (nn.ModuleList, nn.Sequential)):
        return False
    if isinstance(module, nn.Sequential) and (len(items) < 2 or len({type(item) for item in items}) > 1):
        return False
    return all(len(_linears(item)) >= 2 for item in items)


def find_blocks(model: nn.Module) -> list[Block]:
    """All blocks of all stacks. Stacks inside blocks (lists of experts) do not count."""
    found: list[Block] = []
    taken: set[str] = set()
    inside: list[str] = []
    for path, module in walk(model):
        if any(path.startswith(f"{outer}.") for outer in inside) or not _is_stack(module):
            continue
        inside.append(path)
        stack = stack_name(model, path)
        stack = path if stack in taken else stack
        taken.add(stack)
        for layer, (name, block) in enumerate(_items(module)):
            found.append(Block(f"{path}.{name}", stack, layer, block, _hidden(model, block)))
    return found


def stack_name(model: nn.Module, path: str) -> str:
    """`encoder` or `decoder`: what the path says last, else what the model's kind is."""
    said = [part for part in ("encoder", "decoder") if part in path.lower()]
    if said:
        return max(said, key=path.lower().rfind)
    masked = isinstance(model, PreTrainedModel) and model.config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return "encoder" if masked else "decoder"


def _hidden(model: nn.Module, block: nn.Module) -> int:
    """Width of a block: what the configuration says if any linear reads it, else what most linears share."""
    pairs = [pair for _, m in walk(block) if (pair := sizes(m)) is not None]
    if isinstance(model, PreTrainedModel):
        width = model.config.get_text_config().hidden_size
        if any(width in pair for pair in pairs):
            return int(width)
    return Counter(n for pair in pairs for n in dict.fromkeys(pair)).most_common(1)[0][0]


def roles_in(block: Block) -> tuple[dict[str, str], list[Weights]]:
    """Roles by full path for the linears of a block, and its parameters that have roles of their own."""
    inside = dict(walk(block.module))
    leaves = [Leaf(name, *pair) for name, m in inside.items() if (pair := sizes(m)) is not None]
    experts = {name.rpartition(".")[0] for name in inside if "experts" in name.rpartition(".")[2]}
    roles = block_roles(
        leaves,
        block.hidden,
        state_space={n for n, m in inside.items() if "A_log" in m._parameters},
        rwkv={n for n, m in inside.items() if "receptance" in m._modules},
        experts=experts,
        attentions={n for n, m in inside.items() if n and "attention" in type(m).__name__.lower()},
    )
    weights = [w for name, m in inside.items() if sizes(m) is None for w in _weights(block, name, m, experts)]
    return {f"{block.path}.{name}": role for name, role in roles.items()}, weights


def _weights(block: Block, name: str, module: nn.Module, experts: set[str]) -> list[Weights]:
    """Experts' 3-D parameters [experts, a, b], and the 2-D weight [experts, hidden] of a router."""
    parent, _, last = name.rpartition(".")
    weight = module._parameters.get("weight")
    if parent in experts and last in MLP["router"] and weight is not None and weight.dim() == 2:
        return [Weights(f"{block.path}.{name}.weight", "mlp.router", weight.shape[1], weight.shape[0])]
    if attention_of(f"{name}.weight") is not None:
        return []
    named = {key: p.shape[1:] for key, p in module._parameters.items() if p is not None and p.dim() == 3}
    other = {key: max(shape, key=lambda n: n != block.hidden) for key, shape in named.items() if block.hidden in shape}
    down = next((key for key in other if longest_match(key, MLP["down"])), None)
    if down is None:
        return []
    found = [Weights(f"{block.path}.{name}.{down}", "experts.down", other.pop(down), block.hidden)]
    inner = found[0].in_features
    for key, width in other.items():
        role = "gate_up" if width == 2 * inner else "gate" if longest_match(key, MLP["gate"]) else "up"
        if width in (inner, 2 * inner) and longest_match(key, MLP[role]):
            found.append(Weights(f"{block.path}.{name}.{key}", f"experts.{role}", block.hidden, width))
    return found
