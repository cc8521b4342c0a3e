"""What a stack of blocks is given: trained embeddings put into the text, and positions that start later.

Shapes: B batch, S text length, T embeddings put in (the longest of the batch), d hidden size.

Two hooks stand on the module that takes token ids and holds the blocks (LlamaModel, BertModel, T5's encoder), so that
everything around it (heads, labels, generation, losses) sees a text of S tokens. The first puts negative ids into the
text and extends masks and positions; at the input embedding a `PromptDelta` fills their rows in; the second takes the
T positions out of what the stack returns, except where a decoder reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from budwood.anatomy import Anatomy, Site
from budwood.core.delta import Delta, Source, acting_at, deltas_of
from budwood.core.entrance import Entrance, input_site, owner_of, positions_of, table_of
from budwood.core.hooks import named, remove
from budwood.core.insertion import SPAN, Block, Inset, arranged, block_of, mask_for, mask_of, without_block
from budwood.core.plan import Part, Route, names
from budwood.core.positions import (
    can_listen,
    check_continued,
    check_room,
    counts_columns,
    counts_of,
    listen_at,
    order_in,
    positions_with,
    shift_by,
    stop_listening,
)
from budwood.core.registry import registry_of, root_of
from budwood.errors import BadConfig, NoSuchSite

_SLOT = "budwood_entrance"
_POOLING = ("ForSequenceClassification", "ForMultipleChoice")
"""Ends of the names of models whose heads read one state of an encoder: its first."""
Place = Literal["front", "after-first", "inside"]


class InputDelta(Delta):
    """A delta at the input embedding of a stack that changes what the stack is given; the embedding itself stays.

    length: T;  shift: how much later positions start
    """

    length = 0
    shift = 0
    place: Place = "front"
    slot = 0

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.stack = site.stack

    def settle(self, model: nn.Module, name: str) -> None:
        """Put the hooks on the stack. Raises BadConfig where what it adds does not fit its positions."""
        open_entrances(model, self)

    def unsettle(self, model: nn.Module) -> None:
        """Take the hooks off, once nothing else needs them."""
        close_entrances(model)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y as it is."""
        return y


class ShiftDelta(InputDelta):
    """The text starts at position `shift` (prefixes of PEFT, THUDM and XiangLi's GPT-2)."""

    def __init__(self, site: Site, shift: int) -> None:
        super().__init__(site)
        self.shift = shift


class PromptDelta(InputDelta):
    """Trained rows in the place of negative ids."""

    def __init__(self, site: Site, length: int, place: Place) -> None:
        super().__init__(site)
        self.length, self.place = length, place
        self.ids = Source(site.path, "input")
        self.sources = (self.ids,)

    def table(self) -> Tensor:
        """[rows, d]: what is filled in; row t * length + j is the j-th of task t."""
        raise NotImplementedError

    def settle(self, model: nn.Module, name: str) -> None:
        """Put the hooks on the stack, under ids of its own."""
        if self.place != "inside":
            taken = {delta.slot for _, delta in _at_inputs(model) if delta is not self}
            self.slot = next(slot for slot in range(1, len(taken) + 2) if slot not in taken)
        super().settle(model, name)

    def enter(self, x: Tensor) -> Tensor:
        """Ids that the table has: [*] int64."""
        return x.clamp(min=0)

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [*, d], with the rows of this prompt's ids filled in."""
        place = -1 - self.ids.read()  # [*]
        mine = (place >= 0) & (place // SPAN == self.slot)
        table = self.table()
        rows = F.embedding(torch.where(mine, place % SPAN, 0).clamp(max=len(table) - 1), table)
        return torch.where(mine.unsqueeze(-1), rows.to(y.dtype), y)


class StatesDelta(InputDelta):
    """Trained rows behind the embeddings: no positions, types or norms are added to them (AdapterHub)."""

    def __init__(self, site: Site, count: int, place: Place) -> None:
        super().__init__(site)
        self.path, self.count, self.place = site.path, count, place

    def rows(self) -> Tensor:
        """[P, d]."""
        raise NotImplementedError

    def forward(self, base: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """y: [B, S, d] -> [B, P + S, d]."""
        rows, first = self.rows().to(y.dtype).expand(len(y), -1, -1), int(self.place == "after-first")
        return torch.cat([y[:, :first], rows, y[:, first:]], dim=1)


def pseudo_tokens(model: nn.Module) -> int:
    """How many pseudo tokens (ids -1, -2, ...) the plan in force fills in where a text has them; 0 for none.

    Raises BadConfig for a `Route` of parts that differ in it: their texts do, too.
    """
    registry = registry_of(model)
    plan = None if registry is None else registry.switch.plan
    lengths = {name: delta.length for name, delta in _at_inputs(root_of(model)) if delta.place == "inside"}
    parts = plan.parts if isinstance(plan, Route) else (plan,)
    filled = {max((lengths.get(name, 0) for name in names(part)), default=0) for part in parts}
    if len(filled) > 1:
        raise BadConfig("a Route has parts with and without pseudo tokens, whose texts differ; ask each by itself")
    return filled.pop()


def open_entrances(model: nn.Module, delta: InputDelta) -> None:
    """Put the hooks on the delta's stack, and on the decoder that reads it."""
    registry = registry_of(model)
    assert registry is not None
    anatomy = registry.anatomy
    entrance = _open(model, anatomy, delta.stack)
    if isinstance(delta, StatesDelta):
        entrance.embeddings = model.get_submodule(delta.path)
    if entrance.limit is not None and delta.length + delta.shift >= entrance.limit:
        raise BadConfig(
            f"a prompt of {delta.length + delta.shift} leaves no room for text: the model has {entrance.limit} "
            "positions; choose a smaller length"
        )
    if delta.shift:
        listen_at(entrance)
    if delta.shift and entrance.has_positions and "position_ids" not in entrance.arguments and entrance.table is None:
        raise NoSuchSite(
            f"the {delta.stack} of {type(model).__name__} takes no position_ids, so its positions cannot be shifted; "
            "use positions=kept"
        )
    stacks = dict.fromkeys(site.stack for site in anatomy.sites if site.layer is not None)
    if delta.stack == "encoder" and "decoder" in stacks and delta.length:
        entrance.feeds_decoder = True
        _open(model, anatomy, "decoder").encoder = entrance


def close_entrances(model: nn.Module) -> None:
    """Take the hooks off every stack at which no delta needs them."""
    needed = {delta.stack for _, delta in _at_inputs(model)}
    needs_decoder = any(delta.stack == "encoder" and delta.length for _, delta in _at_inputs(model))
    for module in model.modules():
        entrance = vars(module).get(_SLOT)
        if entrance is None:
            continue
        if entrance.encoder is not None and not needs_decoder:
            entrance.encoder = None
        if entrance.stack not in needed and entrance.encoder is None:
            object.__delattr__(module, _SLOT)
            stop_listening(entrance)
            remove(module, begin_hook, end_hook)


def _open(model: nn.Module, anatomy: Anatomy, stack: str) -> Entrance:
    owner = owner_of(model, anatomy, stack)
    entrance = vars(owner).get(_SLOT)
    if entrance is None:
        site = input_site(model, anatomy, stack)
        table = table_of(model, anatomy, stack)
        limit, padding = positions_of(table)
        arguments = tuple(inspect.signature(owner.forward).parameters)
        if stack == "decoder" and "past_key_values" not in arguments:
            raise NoSuchSite(
                f"{type(owner).__name__} keeps what it has read in a state of its own, not in past_key_values, so it "
                "is not known where a text begins; use lora or an adapter"
            )
        told = "position_ids" in arguments
        entrance = Entrance(
            stack, model.get_submodule(site.path), arguments, limit, padding, told or limit is not None,
            table=table if not told and can_listen(table) else None, counts_mask=counts_of(table),
            pools_first=stack == "encoder" and type(model).__name__.endswith(_POOLING),
        )  # fmt: skip
        object.__setattr__(owner, _SLOT, entrance)
        owner.register_forward_pre_hook(begin_hook, with_kwargs=True, prepend=True)  # masks are read behind it
        owner.register_forward_hook(end_hook, always_call=True)
    return entrance


def _at_inputs(model: nn.Module) -> Iterator[tuple[str, InputDelta]]:
    """The deltas at input embeddings, with their adapters' names."""
    for module in model.modules():
        deltas = deltas_of(module)
        if deltas is not None:
            yield from ((name, delta) for name, delta in deltas.named_children() if isinstance(delta, InputDelta))


def begin_hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
    """Before a stack's forward: ids, masks and positions with what the plan puts in."""
    entrance: Entrance = vars(module)[_SLOT]
    entrance.inserted.begin()
    given = named(entrance.arguments, args, kwargs)
    text = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if text is None:
        return None
    changed = dict(given)
    if entrance.encoder is not None:
        _extend_crossing(entrance.encoder, changed)
    acting = _acting(entrance, text.shape[0])
    block = _block(entrance, acting, text)
    shift = _shift(acting, text)
    is_shifted = isinstance(shift, Tensor) or shift != 0
    added = _added(entrance, text.shape[0])
    if block is None and not added and not is_shifted:
        return ((), changed) if entrance.encoder is not None else None
    cache = given.get("past_key_values")
    seen = 0 if cache is None else int(cache.get_seq_length())
    if added:
        _add(entrance, added, block, changed, text)
    elif block is not None and seen == 0:
        _insert(entrance, block, changed, text)
    elif block is not None:
        _continue(entrance, block, changed, seen, text.shape[1])
    if entrance.has_positions and is_shifted:
        shift_by(entrance, changed, shift, seen)
    return (), changed


def end_hook(module: nn.Module, args: Any, output: Any) -> Any:
    """After a stack's forward, also one that failed: its states without what was put in."""
    entrance: Entrance = vars(module)[_SLOT]
    count, text = entrance.inserted.end()
    if output is None or not count or entrance.feeds_decoder:
        return output
    if isinstance(output, tuple):
        return (_cut(entrance, output[0], count, text), *output[1:])
    if isinstance(output, Tensor):
        return _cut(entrance, output, count, text)
    output["last_hidden_state"] = _cut(entrance, output["last_hidden_state"], count, text)
    if output.get("hidden_states") is not None:
        output["hidden_states"] = tuple(without_block(states, count, text) for states in output["hidden_states"])
    return output


def text_only(stack: nn.Module, states: Tensor) -> Tensor:
    """Within the forward of a stack, states of its blocks without what was put in: [B, T + S, d] -> [B, S, d]."""
    entrance = vars(stack).get(_SLOT)
    if entrance is None or not entrance.inserted.count:
        return states
    return without_block(states, entrance.inserted.count, entrance.inserted.text)


def _cut(entrance: Entrance, states: Tensor, count: int, text: Tensor | None) -> Tensor:
    """[B, T + S, d] -> [B, S, d]; a head that reads the first of all states still finds it there."""
    kept = without_block(states, count, text)
    return torch.cat([states[:, :1], kept[:, 1:]], dim=1) if entrance.pools_first else kept


def _acting(entrance: Entrance, batch: int) -> list[tuple[Part, InputDelta]]:
    found = acting_at(entrance.embedding, batch, InputDelta)
    return [(part, delta) for part, delta in found if delta.stack == entrance.stack]


def _added(entrance: Entrance, batch: int) -> list[tuple[Part, StatesDelta]]:
    """What the plan in force puts behind the embeddings."""
    return [] if entrance.embeddings is None else acting_at(entrance.embeddings, batch, StatesDelta)


def _add(
    entrance: Entrance, added: list[tuple[Part, StatesDelta]], block: Block | None, given: dict[str, Any], text: Tensor
) -> None:
    """Extend the mask for rows that are put behind the embeddings."""
    if block is not None or len(added) > 1 or added[0][0].rows is not None:
        raise BadConfig(
            f"{added[0][0].name!r} puts its prompt behind the embeddings of a whole batch, and this plan has another "
            "prompt, or routes rows; activate it alone, or beside adapters that are no prompts"
        )
    ((_, delta),), length = added, text.shape[1]
    first, mask = int(delta.place == "after-first"), mask_of(given.get("attention_mask"))
    if mask is not None:
        ones = mask.new_ones(len(mask), delta.count)
        given["attention_mask"] = torch.cat([mask[:, :first], ones, mask[:, first:]], dim=1)
    entrance.inserted.count = delta.count
    if first:
        place = torch.arange(length, device=text.device).expand(len(text), -1)
        entrance.inserted.text = torch.where(place < first, place, place + delta.count)


def _block(entrance: Entrance, acting: list[tuple[Part, InputDelta]], text: Tensor) -> Block | None:
    """What the plan in force puts into a batch."""
    insets = [
        Inset(part, delta.slot, delta.length, delta.place == "after-first")
        for part, delta in acting
        if delta.length and delta.place != "inside"
    ]
    return block_of(insets, text.shape[0], entrance.padding or 0, text.device)


def _shift(acting: list[tuple[Part, InputDelta]], text: Tensor) -> int | Tensor:
    """How much later positions start: one number, or [B, 1] where rows differ."""
    total: int | Tensor = 0
    for part, delta in acting:
        if delta.shift:
            rows = delta.shift if part.rows is None else part.rows.to(text.device).unsqueeze(1) * delta.shift
            total = total + rows
    return total


def _insert(entrance: Entrance, block: Block, given: dict[str, Any], text: Tensor) -> None:
    """Put the block into everything that has one entry for each token."""
    batch, length, count = text.shape[0], text.shape[1], block.ids.shape[1]
    mask = mask_of(given.get("attention_mask"))
    room = entrance.limit
    if room is not None and length + count > room:
        raise BadConfig(
            f"a prompt of {count} and a text of {length} tokens are {length + count} positions, the model has {room}; "
            f"cut the text to {room - count} tokens (max_length) or choose a shorter prompt"
        )
    check_room(given.get("past_key_values"), length + count, count)
    order, where = order_in(entrance, given, block, mask, length)
    if given.get("input_ids") is not None:
        given["input_ids"] = arranged(block.ids.to(text.dtype), text, order)
    else:
        rows = entrance.embedding(block.ids)
        whole = torch.cat([rows.to(text.dtype), text], dim=1)
        given["inputs_embeds"] = whole if order is None else whole.gather(1, order.unsqueeze(-1).expand_as(whole))
    if mask is not None or block.visible is not None:
        own = torch.ones(batch, length, dtype=torch.int64, device=text.device) if mask is None else mask
        given["attention_mask"] = arranged(mask_for(block, own), own, order)
    if given.get("token_type_ids") is not None:
        types = given["token_type_ids"]
        given["token_type_ids"] = arranged(types.new_zeros(batch, count), types, order)
    positions = given.get("position_ids")
    if positions is None and counts_columns(entrance, block):
        positions = torch.arange(length, device=text.device).unsqueeze(0)
    if positions is not None:
        given["position_ids"] = positions_with(entrance, block, positions.expand(batch, -1), order, where)
    if given.get("cache_position") is not None:
        given["cache_position"] = torch.arange(length + count, device=text.device)
    entrance.inserted.count = count
    entrance.inserted.text = where


def _continue(entrance: Entrance, block: Block, given: dict[str, Any], seen: int, length: int) -> None:
    """For `length` tokens after a text that is in the cache with its block, `seen` in all."""
    mask, positions = mask_of(given.get("attention_mask")), given.get("position_ids")
    cache, count = given["past_key_values"], block.ids.shape[1]
    whole = seen + length - count
    check_continued(mask, positions, whole, count)
    if mask is None and block.visible is not None:  # generate leaves a mask of ones out
        mask = torch.ones_like(block.visible, dtype=torch.int64)[:, :1].expand(-1, whole)
    if mask is not None:
        order, _ = order_in(entrance, given, block, mask, mask.shape[1])
        given["attention_mask"] = arranged(mask_for(block, mask), mask, order)
    check_room(cache, seen + length, count)
    if positions is None and counts_columns(entrance, block):
        positions = torch.arange(whole - length, whole, device=block.ids.device).unsqueeze(0)
    if positions is not None:
        given["position_ids"] = positions + block.counts
    if given.get("cache_position") is not None:
        given["cache_position"] = given["cache_position"] + count


def _extend_crossing(encoder: Entrance, given: dict[str, Any]) -> None:
    """A decoder's mask of the encoder's states, with the block that these have."""
    states, mask = given.get("encoder_hidden_states"), given.get("encoder_attention_mask")
    if states is None or mask is None:
        return
    block, own = _block(encoder, _acting(encoder, states.shape[0]), states), mask_of(mask)
    if block is not None and own is not None and own.shape[1] < states.shape[1]:
        order, _ = order_in(encoder, {}, block, own, own.shape[1])
        given["encoder_attention_mask"] = arranged(mask_for(block, own), own, order)
