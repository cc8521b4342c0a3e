"""Where a stack of blocks is given its text: the module that takes token ids, its embedding, and its positions."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from threading import local

from torch import Tensor, nn
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy, Site
from budwood.errors import NoSuchSite


@dataclass
class Entrance:
    """What the hooks of one stack need to know: a plain object on the stack's module, copied and pickled with it."""

    stack: str
    embedding: nn.Module
    arguments: tuple[str, ...]
    limit: int | None
    """Positions there are, where they are a table."""
    padding: int | None
    """The id that has no position, where positions are counted on ids (RoBERTa)."""
    has_positions: bool
    """Whether the text's positions mean anything that could be shifted."""
    table: nn.Module | None = None
    """The table of positions of a stack that is not told them (BART)."""
    embeddings: nn.Module | None = None
    """What adds positions and norms to words, where rows are put behind it."""
    counts_mask: bool = False
    """Whether positions are counted on the attention mask (OPT)."""
    pools_first: bool = False
    """Whether a head behind the stack reads the first state as that of the text."""
    encoder: Entrance | None = None
    """For a decoder: the entrance of the encoder that it reads."""
    feeds_decoder: bool = False

    def __post_init__(self) -> None:
        self.inserted = Inserted()


class Inserted(local):
    """What this thread's forward has put in: how many, and where the text's tokens are now ([B, S] or None: behind).

    shift: how much later its positions start, for a table of positions;  outer: of forwards around this one
    """

    count = 0
    text: Tensor | None = None
    shift = 0
    outer: tuple[tuple[int, Tensor | None, int], ...] = ()

    def begin(self) -> None:
        """Nothing is put in yet."""
        self.outer = (*self.outer, (self.count, self.text, self.shift))
        self.count, self.text, self.shift = 0, None, 0

    def end(self) -> tuple[int, Tensor | None]:
        """What was put in; the forward around this one goes on."""
        ended = self.count, self.text
        self.count, self.text, self.shift = self.outer[-1] if self.outer else (0, None, 0)
        self.outer = self.outer[:-1]
        return ended

    def __reduce__(self) -> tuple[type[Inserted], tuple[()]]:
        return Inserted, ()


def input_site(model: nn.Module, anatomy: Anatomy, stack: str | None = None) -> Site:
    """The input embedding of a stack: the encoder's by default, or that of the only one.

    Raises NoSuchSite where there is no embedding of token ids.
    """
    found = {site.stack: site for site in anatomy.sites if site.layer is not None}
    stack = stack or ("encoder" if "encoder" in found else next(iter(found)))
    owner = owner_of(model, anatomy, stack)
    embedding = owner.get_input_embeddings()
    paths = {module: path for path, module in model.named_modules()}
    if not isinstance(embedding, nn.Module) or embedding not in paths:
        raise NoSuchSite(
            f"{type(owner).__name__} has no embedding of token ids, so no prompt can be put into its text; "
            "use prefix-tuning, an adapter, or lora"
        )
    known = [s for s in anatomy.sites if s.kind == "embedding" and model.get_submodule(s.path) is embedding]
    weight = embedding.get_parameter("weight")
    site = (
        known[0]
        if known
        else Site(paths[embedding], "embed", stack, None, weight.shape[0], weight.shape[1], "embedding")
    )
    return replace(site, stack=stack)


def embeddings_site(model: nn.Module, anatomy: Anatomy) -> Site:
    """The module that adds positions and norms to an encoder's words.

    Raises NoSuchSite where there is none, where it masks what it returns, or where a decoder reads the encoder.
    """
    site = input_site(model, anatomy)
    path = site.path.rpartition(".")[0]
    module, stacks = model.get_submodule(path), {s.stack for s in anatomy.sites}
    masks = "mask" in inspect.signature(module.forward).parameters  # DeBERTa
    if isinstance(module, PreTrainedModel) or "decoder" in stacks or masks:
        raise NoSuchSite(
            f"{type(model).__name__} has no embeddings that a prompt could be put behind, as BERT's; use level=words"
        )
    return replace(site, path=path, kind="module")


def owner_of(model: nn.Module, anatomy: Anatomy, stack: str) -> PreTrainedModel:
    """The innermost model that holds the stack's blocks and takes token ids."""
    paths = [site.path for site in anatomy.sites if site.stack == stack and site.layer is not None]
    inside = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and all(p.startswith(f"{path}." if path else "") for p in paths)
    ]
    takers = [m for _, m in inside if "input_ids" in inspect.signature(m.forward).parameters]
    if not takers or not paths:
        raise NoSuchSite(
            f"no module of {type(model).__name__} takes token ids for its {stack}, so nothing can be put into its text"
        )
    return takers[-1]


def table_of(model: nn.Module, anatomy: Anatomy, stack: str) -> nn.Embedding | None:
    """The embedding of a stack's positions, None where they are none."""
    for site in anatomy.sites:
        if site.role == "embed.position" and site.layer is None and site.stack in (stack, ""):
            module = model.get_submodule(site.path)
            assert isinstance(module, nn.Embedding)
            return module
    return None


def positions_of(table: nn.Embedding | None) -> tuple[int | None, int | None]:
    """(positions in the table, the id without one)."""
    if table is None:
        return None, None
    reserved = 0 if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - reserved - int(vars(table).get("offset", 0)), table.padding_idx
