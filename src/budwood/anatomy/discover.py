"""Model -> Anatomy: names propose, shapes decide, one traced forward confirms. Nothing is guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from budwood.anatomy import probe
from budwood.anatomy.fused import find_parts
from budwood.anatomy.names import BLOCK_NORMS, INNER_NORMS, attention_of, role_by_name
from budwood.anatomy.probe import Trace
from budwood.anatomy.site import Anatomy, Kind, Part, Site, SubLayer
from budwood.anatomy.skeleton import Skeleton, read
from budwood.anatomy.stacks import is_norm, sizes
from budwood.anatomy.sublayers import Finder
from budwood.errors import BadConfig

FEEDS = (("attn", "norm.attn"), ("cross", "norm.cross"), ("mixer", "norm.mixer"), ("mlp", "norm.mlp"))
"""What a norm inside a block is called after: the first of these that reads its result."""


def discover(model: nn.Module, *, batch: Mapping[str, Any] | None = None) -> Anatomy:
    """What `model` is made of: its sites with their roles, and its sub-layers.

    Runs one forward, in eval mode and without gradients, on `batch` (keyword arguments of `forward`) or, for a
    transformers model, on four made-up tokens; then each fused attention twice. The model is left as it was.
    Without a forward (a model that is not from transformers and comes without a batch, or that cannot run on
    the meta device) the answer goes as far as names and shapes do; `Anatomy.is_probed` is then False.

    Raises BadConfig for a model without a stack of blocks, and when the forward on made-up tokens fails.
    """
    skeleton = read(model)
    if not skeleton.blocks:
        raise BadConfig(
            f"{type(model).__name__} has no stack of blocks (an nn.ModuleList whose items each hold two or more "
            "linear layers), so there is nothing to name; pass a transformer"
        )
    fused = _fused(skeleton)
    trace = _probe(skeleton, batch, fused)
    if trace is None:
        return _assemble(skeleton, None, (), (), {})
    norms = [path for path, module in skeleton.modules.items() if is_norm(module)]
    finder = Finder(trace, skeleton.modules, norms, skeleton.linears)
    sublayers, unknown = finder.find(skeleton.ends)
    return _assemble(skeleton, trace, sublayers, unknown, find_parts(model, fused, trace))


def _fused(skeleton: Skeleton) -> dict[str, tuple[str, str]]:
    """For each fused qkv projection: its attention module, and the output projection inside it (or itself)."""
    found: dict[str, tuple[str, str]] = {}
    outs = [path for path, role in skeleton.roles.items() if role == "attn.o"]
    for path, role in skeleton.roles.items():
        attention = path.rpartition(".")[0]
        inside = [out for out in outs if out.startswith(f"{attention}.")]
        if role == "attn.qkv":
            found[path] = (attention, inside[0] if inside else attention)
    return found


def _probe(skeleton: Skeleton, batch: Mapping[str, Any] | None, fused: Mapping[str, tuple[str, str]]) -> Trace | None:
    """The trace of a forward, or None where none can be had."""
    model = skeleton.model
    if batch is None and not isinstance(model, PreTrainedModel):
        return None
    paths = {module: path for path, module in skeleton.modules.items()}
    wanted = {attention for attention, _ in fused.values()}
    try:
        given = batch if batch is not None else probe.synthetic_batch(model)
        return probe.run(model, paths, probe.without_cache(model, given), wanted)
    except Exception as error:
        if any(p.is_meta for p in model.parameters()):
            return None
        if batch is not None:
            raise
        raise BadConfig(
            f"{type(model).__name__} did not run on made-up token ids ({type(error).__name__}: {error}); "
            "pass discover(model, batch=...) with the keyword arguments its forward needs"
        ) from error


def _assemble(
    skeleton: Skeleton,
    trace: Trace | None,
    sublayers: tuple[SubLayer, ...],
    unknown: tuple[str, ...],
    parts: Mapping[str, tuple[Part, ...]],
) -> Anatomy:
    roles = skeleton.roles | _remaining_linears(skeleton, trace)
    roles |= _norms(skeleton, trace, sublayers, roles)
    sites: list[Site] = []
    for path, module in skeleton.modules.items():
        if path in roles and not _is_idle_embedding(module, path, trace):
            sites.append(_site(skeleton, path, module, roles[path], parts.get(path, ())))
        for w in skeleton.weights.get(path, ()):
            block = skeleton.owner[path]
            sites.append(Site(w.path, w.role, block.stack, block.layer, w.in_features, w.out_features, "parameter"))
    linears = list(skeleton.linears)
    called = set(linears) if trace is None else {path for path, calls in trace.by_path.items() if calls}
    return Anatomy(
        sites=tuple(sites),
        hidden_size=skeleton.blocks[-1].hidden,
        sublayers=sublayers,
        unresolved=tuple(path for path, m in skeleton.modules.items() if _needs_role(m) and path not in roles),
        uncalled=tuple(path for path in linears if path not in called and ".experts." not in path),
        unknown_sublayers=unknown,
        is_probed=trace is not None,
        repeated=() if trace is None else tuple(b.path for b in skeleton.blocks if len(trace.by_path[b.path]) > 1),
    )


def _site(skeleton: Skeleton, path: str, module: nn.Module, role: str, parts: tuple[Part, ...]) -> Site:
    block = skeleton.owner.get(path)
    width = block.hidden if block is not None else skeleton.blocks[-1].hidden
    kind: Kind = "module"
    into, out = sizes(module) or (width, width)
    if isinstance(module, nn.Embedding):
        kind, into, out = "embedding", module.num_embeddings, module.embedding_dim
    elif isinstance(module, Conv1D):
        kind = "conv1d"
    elif sizes(module) is not None:
        kind = "linear"
    elif is_norm(module):
        kind = "norm"
        weight = module._parameters.get("weight")
        into = out = weight.shape[-1] if weight is not None else width
    return Site(path, role, skeleton.stack_of(path), block.layer if block else None, into, out, kind, parts)


def _needs_role(module: nn.Module) -> bool:
    return sizes(module) is not None or is_norm(module)


def _is_idle_embedding(module: nn.Module, path: str, trace: Trace | None) -> bool:
    """Whether the forward passes an embedding by, as it does the table that T5's and BART's stacks share."""
    return isinstance(module, nn.Embedding) and trace is not None and path not in trace.by_path


def _start(skeleton: Skeleton, trace: Trace) -> int:
    """When the first block began."""
    return min((call.start for b in skeleton.blocks for call in trace.by_path[b.path]), default=0)


def _remaining_linears(skeleton: Skeleton, trace: Trace | None) -> dict[str, str]:
    """Linears outside the blocks whose names say nothing: by whether they ran before or after the blocks."""
    if trace is None:
        return {}
    start, found = _start(skeleton, trace), dict[str, str]()
    stop = max((call.stop for b in skeleton.blocks for call in trace.by_path[b.path]), default=0)
    for path in skeleton.linears:
        if path in skeleton.owner or path in skeleton.roles or path not in trace.by_path:
            continue
        call = trace.by_path[path][0]
        if call.stop < start:
            found[path] = "embed.project"
        elif call.start > stop and not isinstance(skeleton.model, PreTrainedModel):
            found[path] = "head"
    return found


def _norms(
    skeleton: Skeleton, trace: Trace | None, sublayers: tuple[SubLayer, ...], roles: Mapping[str, str]
) -> dict[str, str]:
    """Roles of the norms that `roles` does not have yet."""
    after = {path: f"norm.{s.role}" for s in sublayers for path in (s.norm, s.output_norm) if path is not None}
    found: dict[str, str] = {}
    for path, module in skeleton.modules.items():
        if not is_norm(module) or path in roles:
            continue
        inside = path in skeleton.owner
        role = after.get(path) or (_block_norm if inside else _outer_norm)(skeleton, trace, roles, path)
        if role is not None:
            found[path] = role
    return found


def _block_norm(skeleton: Skeleton, trace: Trace | None, roles: Mapping[str, str], path: str) -> str | None:
    name = path.removeprefix(f"{skeleton.owner[path].path}.")
    inner = role_by_name(name, INNER_NORMS) if attention_of(name) is not None else None
    if inner is not None:
        return inner
    if any(roles.get(path[:i]) == "mixer" for i, letter in enumerate(path) if letter == "."):
        return "norm.mixer"
    if trace is None or not trace.by_path[path]:
        return role_by_name(name, BLOCK_NORMS)
    readers = {
        roles.get(reader.path, "").partition(".")[0]
        for call in trace.by_path[path]
        for reader in trace.readers[call.output if call.output is not None else -1]
    }
    return next((role for reader, role in FEEDS if reader in readers), None)


def _outer_norm(skeleton: Skeleton, trace: Trace | None, roles: Mapping[str, str], path: str) -> str | None:
    lists = {block.path.rpartition(".")[0].rpartition(".")[0] for block in skeleton.blocks}
    if trace is None or not trace.by_path[path]:
        beside = path.rpartition(".")[0] in lists
        return "norm.embed" if "emb" in path.lower() else "norm.final" if beside else "norm.head"
    call = trace.by_path[path][0]
    last = {b.stack: b.path for b in skeleton.blocks}
    ends = {done.output for p in last.values() for done in trace.by_path[p][-1:]}
    if call.input in ends:
        return "norm.final"
    starts = [c.start for b in skeleton.blocks if b.stack == skeleton.stack_of(path) for c in trace.by_path[b.path]]
    return "norm.embed" if call.stop < min(starts, default=0) else "norm.head"
