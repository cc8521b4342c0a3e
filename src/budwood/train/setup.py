"""`prepare`: the one order of operations between a loaded model and the first step.

load -> quantise -> attach -> freeze -> checkpoint -> compile -> shard -> optimizer. Loading and quantising are done
before (assets); attaching freezes; nothing compiles here yet; sharding is Accelerate's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from budwood.anatomy import Anatomy
from budwood.core import Adapter, Method, adapters, attach, named_parameters, unfired
from budwood.data import Batch
from budwood.errors import BadConfig, WrongOrder
from budwood.evaluate.inputs import fitted
from budwood.fast.engine import PLAIN, Fast
from budwood.records import count
from budwood.train.config import TrainConfig
from budwood.train.precision import arithmetic, master, products, resolve_device, resolve_precision
from budwood.train.randomness import seed_everything
from budwood.train.stacking import lay, stand


@dataclass(frozen=True)
class Prepared:
    """A model ready to be trained."""

    model: PreTrainedModel
    """The user's own model, with the adapter attached."""
    trained: nn.Module
    """What a step calls: `model`, or Accelerate's wrapper around it."""
    adapter: Adapter
    parameters: dict[str, nn.Parameter]
    """The trained parameters by the names they are saved under, float32 (float64 on a float64 base)."""
    optimizer: torch.optim.Optimizer
    learning_rate: float
    """The peak rate: the config's, or else the method's."""
    device: torch.device
    compute: torch.dtype
    """torch.bfloat16: products run in bfloat16 (autocast); torch.float32: nothing is touched."""
    accelerator: Accelerator
    below: tuple[str, ...] = ()
    """Names of the frozen adapters that it stands on, the lowest first."""
    fast: Fast = PLAIN
    """How its steps are computed."""
    beside: dict[str, nn.Parameter] = field(default_factory=dict)
    """What the loss trains for itself (a distillation's projections): no part of the model, saved with the state."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every adapter on the model, the lowest first."""
        return (*self.below, self.adapter.name)

    @property
    def is_in_place(self) -> bool:
        """Whether parameters of the base itself are trained."""
        return bool(self.adapter.unfrozen)

    @property
    def optimized(self) -> dict[str, nn.Parameter]:
        """Everything that the optimizer changes."""
        return {**self.parameters, **self.beside}

    def with_beside(self, beside: dict[str, nn.Parameter]) -> Prepared:
        """The same, training these as well, at the same rate."""
        if not beside:
            return self
        decay = max(float(group["weight_decay"]) for group in self.optimizer.param_groups)
        optimizer = build_optimizer({**self.parameters, **beside}, self.learning_rate, decay)
        return replace(self, beside=beside, optimizer=optimizer)

    @property
    def base_count(self) -> int:
        """Parameters of the base, without any adapter's."""
        attached = [a.name for a in adapters(self.model).values() if not a.unfrozen]
        added = {id(p) for name in attached for p in named_parameters(self.model, name).values()}
        return count(p for p in self.model.parameters() if id(p) not in added)[0]

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Forwards inside use the run's precision; training, validation and answers alike."""
        with arithmetic(self.device, self.compute):
            yield

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Forwards and backwards of steps inside take the fast way, where that is the same."""
        with products(self.device, self.compute), self.fast.running():
            yield


@dataclass(frozen=True, kw_only=True)
class Bare:
    """A model with nothing attached, ready to be judged."""

    model: PreTrainedModel
    device: torch.device
    compute: torch.dtype
    names: tuple[str, ...] = ()
    is_in_place: bool = True
    """The model is the base as it is; there is nothing to leave out."""

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Forwards inside use the run's precision."""
        with arithmetic(self.device, self.compute):
            yield


def prepare(
    model: PreTrainedModel,
    method: Method,
    config: TrainConfig,
    *,
    name: str = "default",
    on: Sequence[str] = (),
    allow_pickle: bool = False,
    sample: Batch | None = None,
    anatomy: Anatomy | None = None,
    tokenizer: Any = None,
    labels: Sequence[str] = (),
) -> Prepared:
    """Attach `method` to a loaded model and make everything ready for the first step.

    on       adapter folders that it is trained on top of, frozen, the lowest first
    allow_pickle  read those from pickle files, too
    sample   a batch that one forward is tried on: every adapted module has to run
    anatomy  what `discover(model)` returned, if that is known
    tokenizer, labels  for a method that starts from words, or from the names of classes
    Raises   WrongOrder naming the modules that did not, BadConfig for a device, precision or setting that the
             machine or the model does not have, and what `budwood.attach` raises
    """
    device = resolve_device(config.device)
    compute = resolve_precision(config.precision, device)
    _check_weights(model, config, compute)
    seed_everything(config.seed)
    model.to(device)
    below = lay(model, on, top=name, anatomy=anatomy, allow_pickle=allow_pickle)
    adapter = attach(model, method, name=name, anatomy=anatomy, tokenizer=tokenizer, labels=labels)
    stand(model, below, name)
    parameters = named_parameters(model, name)
    for parameter in parameters.values():
        parameter.data = master(parameter.data)
    if config.gradient_checkpointing:
        _checkpoint_gradients(model)
    accelerator = Accelerator(device_placement=False, mixed_precision="no")
    if sample is not None:
        with arithmetic(device, compute):
            _refuse_unfired(model, sample)
    trained = accelerator.prepare_model(model, device_placement=False)
    rate = method.rate if config.learning_rate is None else config.learning_rate
    optimizer = build_optimizer(parameters, rate, decay_of(method, config))
    return Prepared(model, trained, adapter, parameters, optimizer, rate, device, compute, accelerator, below)


def decay_of(method: Method, config: TrainConfig) -> float:
    """AdamW's decay: the config's, or else the method's."""
    return method.weight_decay if config.weight_decay is None else config.weight_decay


def build_optimizer(
    parameters: dict[str, nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW at one learning rate; tensors of two or more dimensions decay, vectors and scalars do not."""
    matrices = [p for p in parameters.values() if p.ndim >= 2]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    fused = next(iter(parameters.values())).device.type in ("cpu", "cuda")
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=learning_rate, fused=fused)


def _check_weights(model: PreTrainedModel, config: TrainConfig, compute: torch.dtype) -> None:
    """Exact arithmetic on 16-bit weights would be neither; float16 weights overflow without loss scaling."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if torch.float16 in kinds:
        raise BadConfig(
            "the model's weights are float16, which overflows in training; load it with dtype=torch.float32"
        )
    if torch.bfloat16 in kinds and compute == torch.float32:
        raise BadConfig(
            f"precision is {config.precision} (float32) but the model's weights are bfloat16; "
            "load it with dtype=torch.float32, or train with precision bf16"
        )


def _checkpoint_gradients(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise BadConfig(
            f"{type(model).__name__} cannot recompute its activations; leave gradient_checkpointing out "
            "and use more accumulation instead (accumulate: 2)"
        )
    with warnings.catch_warnings():  # renamed in transformers 5.23; the old name serves 5.17 as well
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _refuse_unfired(model: PreTrainedModel, sample: Batch) -> None:
    silent = unfired(model, fitted(model, sample.to(model.device)).inputs())
    if silent:
        shown = ", ".join(silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
        raise WrongOrder(
            f"{len(silent)} adapted modules did not run in a forward: {shown}. Their adapter would never learn; "
            "leave these targets out, or, if a tool replaced modules after attaching, attach afterwards"
        )
