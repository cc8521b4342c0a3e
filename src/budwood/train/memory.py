"""How much memory there is, and how to tell that it ran out."""

from __future__ import annotations

import psutil
import torch

from budwood.records.machine import memory_limit


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def available_bytes(device: torch.device) -> int:
    """Bytes that this process may still take on the device; unified memory (mps) counts as the machine's."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    limit = memory_limit()
    return free if limit is None else min(free, limit - psutil.Process().memory_info().rss)


def human_bytes(count: float) -> str:
    """`count` as people read it: 812 MiB, 1.4 GiB."""
    mib = count / 2**20
    return f"{mib:.0f} MiB" if mib < 1000 else f"{mib / 1024:.1f} GiB"
