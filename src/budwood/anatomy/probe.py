"""One traced forward: which modules ran, on which values, and which sums they went into.

A *value* is a number that stands for the contents of a tensor: views of the same elements in the same shape
share it, an in-place operation makes a new one. Nothing of the model is changed: parameters and buffers that
a forward writes to are put back, as are training flags, other attributes of modules, hooks and the RNG.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

LENGTH = 4
"""Tokens of the synthetic batch."""
MAPPED = ("aten.view.default", "aten._unsafe_view.default", "aten.unsqueeze.default", "aten.squeeze.dim")
"""Operations whose result holds the same elements in another shape."""


@dataclass(frozen=True, slots=True)
class Op:
    """One tensor operation that read a known value."""

    name: str
    inputs: tuple[int, ...]
    output: int | None
    module: str
    """Path of the innermost module that was running."""
    factor: float | None = None
    """For a product with a constant, or the `alpha` of a sum: that constant."""


@dataclass(slots=True)
class Call:
    """One call of one module: what its first argument and first result were, and when (ticks of the trace)."""

    path: str
    start: int
    input: int | None
    output: int | None = None
    stop: int = 0
    width: int = 0
    """Last dimension of the result."""


@dataclass
class Trace:
    """What happened in the forward."""

    calls: list[Call] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    arguments: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    """Arguments of the first call of the modules that were asked for."""

    def index(self) -> None:
        """Build the look-up tables; called once the forward is over."""
        self.by_path: dict[str, list[Call]] = defaultdict(list)
        self.readers: dict[int, list[Call]] = defaultdict(list)
        self.consumers: dict[int, list[Op]] = defaultdict(list)
        self.producer: dict[int, Op] = {}
        for call in self.calls:
            self.by_path[call.path].append(call)
            if call.input is not None:
                self.readers[call.input].append(call)
        for op in self.ops:
            for value in dict.fromkeys(op.inputs):
                self.consumers[value].append(op)
            if op.output is not None:
                self.producer[op.output] = op


class Recorder(TorchDispatchMode):
    """Gives values to tensors, and writes down operations and module calls."""

    def __init__(self, model: nn.Module, wanted: Iterable[str]) -> None:
        super().__init__()
        self.trace, self.wanted = Trace(), frozenset(wanted)
        self.stack: list[Call] = []
        self.tick = 0
        self._values: dict[tuple[Any, ...], int] = {}
        self._alive: list[Tensor] = []
        owned = [*model.parameters(), *model.buffers()]
        self._owned = {t.untyped_storage()._cdata: t for t in owned}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [t for a in (*args, *kwargs.values()) for t in _tensors(a)]
        known = tuple(v for t in tensors if (v := self._values.get(_key(t))) is not None)
        if func._schema.is_mutable:
            self._remember(func, args)
        result = _on_meta(func, tensors) if tensors and tensors[0].is_meta else None
        result = func(*args, **kwargs) if result is None else result
        if known:
            self._write(func, known, args, kwargs, result)
        return result

    def _write(self, func: Any, known: tuple[int, ...], args: Any, kwargs: Any, result: Any) -> None:
        name, factor = str(func), kwargs.get("alpha")
        if name.startswith("aten.mul") and len(args) == 2 and len(known) == 1:
            factor = _constant(args[1])
        tracked = factor is not None or name.startswith("aten.add") or name in MAPPED
        writes = int(func._schema.is_mutable)
        output = self.value(result, writes) if tracked and isinstance(result, Tensor) else None
        if output not in known:
            path = self.stack[-1].path if self.stack else ""
            self.tick += 1
            self.trace.ops.append(Op(name, known, output, path, factor))

    def _remember(self, func: Any, args: tuple[Any, ...]) -> None:
        """Keep a copy of a parameter or buffer that is about to be written to."""
        for given, declared in zip(args, func._schema.arguments, strict=False):
            if isinstance(given, Tensor) and declared.alias_info is not None and declared.alias_info.is_write:
                storage = given.untyped_storage()._cdata
                if storage in self._owned and storage not in self.before:
                    owned = self._owned[storage]
                    self.before[storage] = (owned, owned.detach().clone())

    def value(self, tensor: Tensor, writes: int = 0) -> int:
        """The number for the contents of this tensor, new if need be. The tensor is kept, so no address recurs.

        An in-place operation's result is asked for before torch counts the write: `writes` is 1 there.
        """
        key = _key(tensor, writes)
        if key not in self._values:
            self._values[key] = len(self._values)
            self._alive.append(tensor)
        return self._values[key]

    def enter(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A module begins."""
        x = args[0] if args else kwargs.get("hidden_states")
        self.tick += 1
        self.stack.append(Call(path, self.tick, self.value(x) if isinstance(x, Tensor) else None))
        self.trace.calls.append(self.stack[-1])
        if path in self.wanted and path not in self.trace.arguments:
            self.trace.arguments[path] = (args, kwargs)

    def leave(self, output: Any) -> None:
        """A module ends."""
        self.tick += 1
        call = self.stack.pop()
        call.stop = self.tick
        y = first_tensor(output)
        if y is not None:
            call.output, call.width = self.value(y), y.shape[-1] if y.dim() else 0


def _key(tensor: Tensor, writes: int = 0) -> tuple[Any, ...]:
    if tensor.layout != torch.strided:
        return (id(tensor),)
    return (
        tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype,
        tensor._version + writes,
    )  # fmt: skip


def _tensors(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, (list, tuple)):
        yield from (t for t in argument if isinstance(t, Tensor))


def first_tensor(output: Any) -> Tensor | None:
    """The first tensor of a module's result: the result itself, or the head of a tuple or model output."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        output = output[0] if output else None
    return output if isinstance(output, Tensor) else None


def _constant(factor: Any) -> float | None:
    if isinstance(factor, Tensor):
        return factor.item() if factor.dim() == 0 and not factor.is_meta else None
    return float(factor) if isinstance(factor, (int, float)) else None


def _on_meta(func: Any, tensors: list[Tensor]) -> Any:
    """Answers for two operations that have none without numbers: "is any ...?" is no, experts keep their shape."""
    if func is torch.ops.aten._local_scalar_dense.default:
        return False if tensors[0].dtype == torch.bool else 0
    if func is torch.ops.aten._grouped_mm.default:
        rows, weights = tensors[:2]
        return rows.new_empty(*rows.shape[:-1], weights.shape[-1])
    return None


def synthetic_batch(model: PreTrainedModel) -> dict[str, Any]:
    """One row of token ids [1, LENGTH] that the model's own configuration allows: no padding, no labels."""
    text = model.config.get_text_config().to_dict()
    pad, end = text.get("pad_token_id"), text.get("eos_token_id")
    words = model.get_input_embeddings()
    known = words.num_embeddings if isinstance(words, nn.Embedding) else 64
    ids = [i for i in range(min(known, 64)) if i not in (pad, end, text.get("bos_token_id"))][-LENGTH:]
    if model.config.is_encoder_decoder and isinstance(end, int):
        ids[-1] = end
    batch: dict[str, Any] = {"input_ids": torch.tensor([ids], device=model.device)}
    if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        batch["decoder_input_ids"] = batch["input_ids"]
    return batch


def without_cache(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch, asking a model that keeps keys and values not to: attentions are run again with what they got."""
    accepts = "use_cache" in inspect.signature(model.forward).parameters
    return {**batch, "use_cache": False} if accepts else dict(batch)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run the model in eval mode and put everything back: flags, attributes, buffers, the RNG of its device."""
    saved = [(m, dict(m.__dict__), dict(m._buffers)) for m in model.modules()]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.inference_mode(False):
        try:
            model.eval()
            yield
        finally:
            for module, attributes, buffers in saved:
                module.__dict__.clear()
                module.__dict__.update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)


def mixed(model: nn.Module) -> AbstractContextManager[Any]:
    """For forwards of a model whose products are kept in 16 bits and all else in 32: those need autocast."""
    own = {p.dtype: p.device.type for p in model.parameters() if p.is_floating_point()}
    short = next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in own), None)
    is_mixed = short is not None and torch.float32 in own
    return torch.autocast(own[short], short) if short is not None and is_mixed else nullcontext()


def run(model: nn.Module, paths: Mapping[nn.Module, str], batch: Mapping[str, Any], wanted: Iterable[str]) -> Trace:
    """Trace `model(**batch)`. Hooks sit on the modules of `paths`; arguments are kept for those in `wanted`."""
    recorder = Recorder(model, wanted)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.enter(paths[module], args, kwargs)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        recorder.leave(output)

    handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in paths]
    handles += [m.register_forward_hook(leave) for m in paths]
    try:
        with undisturbed(model), torch.no_grad(), recorder:
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for owned, before in recorder.before.values():
                owned.copy_(before)
    recorder.trace.index()
    return recorder.trace
