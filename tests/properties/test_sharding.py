"""FSDP2 on two CPU ranks: gradients equal one process's; attaching to a sharded model is refused."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import budwood.core as core
from adapted import VARIANTS, adapted, anatomy_of, logits, perturb, weighted
from budwood.errors import WrongOrder
from families import FAMILIES

ACROSS = ("language", "compacter", "prefix-tuning")
"""Variants of which one site reads the weights of another."""


def shard(rank: int, port: int, variant: str, folder: str) -> None:
    """One rank: attach, shard every block and the model, backward on this rank's row, gather the gradients."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, batch = adapted("llama", variant, perturbed=True)
    mesh = init_device_mesh("cpu", (2,))
    row = {key: value[rank : rank + 1] for key, value in batch.items()}
    if variant in ACROSS:
        other, _ = adapted("llama", variant, perturbed=True)
        shard_blocks(other, mesh)
        fully_shard(other, mesh=mesh)
        with pytest.raises(WrongOrder, match="shard the model as a whole"):
            logits(other, row)
    else:
        shard_blocks(model, mesh)
    fully_shard(model, mesh=mesh)
    weighted(logits(model, row)).backward()
    gathered = {}
    for name, parameter in core.named_parameters(model, "faq").items():
        assert isinstance(parameter, DTensor)
        assert parameter.grad is not None
        gathered[name] = parameter.grad.full_tensor()  # type: ignore[attr-defined]
    refused = False
    try:
        core.attach(model, VARIANTS["lora"], name="late", anatomy=anatomy_of("llama"))
    except WrongOrder:
        refused = True
    assert refused
    if rank == 0:
        torch.save(gathered, Path(folder) / "gradients.pt")
    dist.barrier()
    dist.destroy_process_group()


def shard_blocks(model: nn.Module, mesh: DeviceMesh) -> None:
    for block in model.model.layers:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        "lora-all",
        "ia3",
        "lora-dora",
        "adapter-h",
        "adapter-p-all",
        "parallel-heads",
        "prefix-rows",
        "prompt-tuning",
        *ACROSS,
    ],
)
def test_gradients_equal_one_process(variant: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(shard, args=(port, variant, str(tmp_path)), nprocs=2)
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)

    torch.manual_seed(0)
    model, batch = adapted("llama", variant, perturbed=True)
    total = torch.zeros(())
    for rank in range(2):
        total = total + weighted(logits(model, {k: v[rank : rank + 1] for k, v in batch.items()})) / 2
    total.backward()
    own = core.named_parameters(model, "faq")
    assert found.keys() == own.keys()
    for name, parameter in own.items():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_helpers_are_deterministic() -> None:
    torch.manual_seed(0)
    first, _ = adapted("llama", "lora")
    torch.manual_seed(0)
    second = FAMILIES["llama"].build()
    core.attach(second, VARIANTS["lora"], name="faq", anatomy=anatomy_of("llama"))
    perturb(first, "faq")
    perturb(second, "faq")
    pairs = zip(core.parameters(first, "faq"), core.parameters(second, "faq"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
