"""`prepare`: the one order of operations between a loaded model and the first step.

load -> quantise -> attach -> freeze -> checkpoint -> compile -> shard -> optimizer. Loading and quantising are done
before (assets); attaching freezes; nothing compiles here yet; sharding is Accelerate's.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from budwood.core import Adapter, Method, attach, named_parameters, unfired
from budwood.data import Batch
from budwood.errors import BadConfig, WrongOrder
from budwood.train.config import TrainConfig
from budwood.train.randomness import seed_everything

FAST_BF16 = 1.3
"""How many times faster than float32 a bfloat16 product has to be for precision=auto to choose it."""


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

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Forwards inside use the run's precision; training, validation and answers alike."""
        with arithmetic(self.device, self.compute):
            yield


@contextmanager
def arithmetic(device: torch.device, compute: torch.dtype) -> Iterator[None]:
    """bfloat16 products on `device` if `compute` says so, else nothing."""
    with torch.autocast(device.type, torch.bfloat16, enabled=compute == torch.bfloat16):
        yield


def prepare(
    model: PreTrainedModel, method: Method, config: TrainConfig, *, name: str = "default", sample: Batch | None = None
) -> Prepared:
    """Attach `method` to a loaded model and make everything ready for the first step.

    sample  a batch that one forward is tried on: every adapted module has to run
    Raises  WrongOrder naming the modules that did not, BadConfig for a device, precision or setting that the
            machine or the model does not have, and what `budwood.attach` raises
    """
    device = resolve_device(config.device)
    compute = resolve_precision(config.precision, device)
    _check_weights(model, config, compute)
    seed_everything(config.seed)
    model.to(device)
    adapter = attach(model, method, name=name)
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
    optimizer = build_optimizer(parameters, rate, config.weight_decay)
    return Prepared(model, trained, adapter, parameters, optimizer, rate, device, compute, accelerator)


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


def master(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the precision that updates add up in: float32, or as it is if it has more."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def resolve_device(name: str) -> torch.device:
    """The device that a name means here; auto takes CUDA, then MPS, then the CPU. Raises BadConfig if it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadConfig(f"device is {name} but torch sees {torch.cuda.device_count()} CUDA devices; use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadConfig("device is mps but torch does not see Apple's GPU here; use --device cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """float32 for exact, bfloat16 for bf16, and for auto whichever is faster here by a clear margin."""
    if name == "exact":
        return torch.float32
    if name == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and bf16_gain() >= FAST_BF16 else torch.float32


@cache
def bf16_gain() -> float:
    """How many times faster than float32 this CPU multiplies bfloat16 matrices; measured once, in some 30 ms."""

    def seconds(dtype: torch.dtype) -> float:
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(left, right)
            times.append(time.perf_counter() - began)
        return min(times)

    return seconds(torch.float32) / seconds(torch.bfloat16)


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
    silent = unfired(model, sample.to(model.device).inputs())
    if silent:
        shown = ", ".join(silent[:8]) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
        raise WrongOrder(
            f"{len(silent)} adapted modules did not run in a forward: {shown}. Their adapter would never learn; "
            "leave these targets out, or, if a tool replaced modules after attaching, attach afterwards"
        )
