"""`budwood doctor`: what this machine has, as one would paste it into a report."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from budwood.cli.options import Talk
from budwood.cli.output import Sink, Table, size

EXTRAS = {
    "demo": "gguf",
    "hub": "datasets",
    "metrics": "sacrebleu",
    "quant": "bitsandbytes",
}
"""Optional parts of Budwood, by the package that each needs."""
HUB_S = 2.0
"""Seconds the hub has to answer."""


def doctor(*, offline: bool = False, talk: Talk | None = None) -> int:
    """Check this machine: versions, cores, memory, arithmetic, disk, network.

    Parameters
    ----------
    offline: bool
        Leave the network alone.
    """
    sink = (talk or Talk()).sink()
    facts = gather(offline=offline or os.environ.get("HF_HUB_OFFLINE") == "1")
    sink.show(Table(("", ""), _rows(facts)))
    _advise(facts, sink)
    sink.result(facts)
    return 0


def gather(*, offline: bool) -> dict[str, Any]:
    """Everything found, as plain data."""
    from budwood.assets.store import cache_root
    from budwood.records import machine

    cache = cache_root()
    return {
        "machine": machine().to_dict(),
        "torch": _torch(),
        "cache": {"path": str(cache), "free_bytes": shutil.disk_usage(_existing(cache)).free},
        "here": {"path": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free,
                 "writable": os.access(Path.cwd(), os.W_OK)},
        "hub": None if offline else _hub(),
        "extras": {name: find_spec(package) is not None for name, package in EXTRAS.items()},
    }  # fmt: skip


def _torch() -> dict[str, Any]:
    """What torch was built with, and how fast matrix products are in each arithmetic."""
    import torch

    from budwood.fast.gemm import route

    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "cuda": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "mps": torch.backends.mps.is_available(),
        "float32_gflops": _speed(torch.float32),
        "bfloat16_gflops": _speed(torch.bfloat16),
        "gemm": asdict(route()),
    }


def _speed(dtype: Any, rows: int = 256, width: int = 768, limit_s: float = 0.3) -> float:
    """Billions of operations a second in [rows, width] x [width, width] products on the CPU, the best of a few."""
    import torch

    from budwood.fast.gemm import routed

    x, w = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    torch.mm(x, w)
    best, started = float("inf"), time.perf_counter()
    with routed(x.device):
        while time.perf_counter() - started < limit_s:
            before = time.perf_counter()
            torch.mm(x, w)
            best = min(best, time.perf_counter() - before)
    return round(2e-9 * rows * width * width / best, 1)


def _hub() -> dict[str, Any]:
    """Whether the model hub answers, asked beside us: looking up a name can outlast any time-out."""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = address.hostname or "huggingface.co", address.port or (80 if address.scheme == "http" else 443)
    outcome: list[str] = []

    def ask() -> None:
        try:
            socket.create_connection((host, port), timeout=HUB_S).close()
            outcome.append("")
        except OSError as error:
            outcome.append(error.strerror or str(error))

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_S)
    reason = outcome[0] if outcome else f"no answer in {HUB_S:.0f} s"
    return {"host": host, "reachable": bool(outcome) and not reason, "reason": reason}


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    machine, torch, hub, here = facts["machine"], facts["torch"], facts["hub"], facts["here"]
    processor = machine["processor"]
    limit = machine["memory_limit_bytes"]
    versions = [f"{name} {version or 'missing'}" for name, version in machine["versions"].items()]
    float32, bfloat16 = torch["float32_gflops"], torch["bfloat16_gflops"]
    reach = "not asked (offline)" if hub is None else "answers" if hub["reachable"] else f"no: {hub['reason']}"
    return [
        ("system", f"{machine['os']}, {machine['architecture']}, Python {machine['python']}"),
        ("versions", ", ".join(versions)),
        ("processor", f"{processor['model']}, {processor['usable_cores']:g} of {processor['logical_cores']} cores"),
        ("instructions", " ".join(processor["flags"]) or "not known"),
        ("memory", size(machine["memory_bytes"]) + (f", limited to {size(limit)}" if limit else "")),
        ("accelerators", ", ".join(torch["cuda"]) or ("mps" if torch["mps"] else "none")),
        ("torch", f"{torch['version']}, {torch['threads']} threads, oneDNN {'on' if torch['mkldnn'] else 'off'}"),
        ("CPU speed", f"float32 {float32:g}, bfloat16 {bfloat16:g} Gflop/s ({bfloat16 / float32:.2g} times)"),
        ("float32 kernel", f"{torch['gemm']['name']} ({torch['gemm']['why']})"),
        ("cache", f"{facts['cache']['path']}, {size(facts['cache']['free_bytes'])} free"),
        ("this folder", f"{size(here['free_bytes'])} free{'' if here['writable'] else ', NOT writable'}"),
        ("model hub", reach),
        ("extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in facts["extras"].items())),
    ]  # fmt: skip


def _advise(facts: dict[str, Any], sink: Sink) -> None:
    """What one could do about what is missing."""
    sink.say()
    absent = [name for name, there in facts["extras"].items() if not there]
    if absent:
        sink.say(f"to add what is missing: pip install 'budwood[{','.join(absent)}]'")
    if facts["hub"] is not None and not facts["hub"]["reachable"]:
        sink.say("without the hub: local folders, .gguf files and the demo assets work; use --offline")
    if facts["torch"]["bfloat16_gflops"] < facts["torch"]["float32_gflops"]:
        sink.say("bfloat16 is slower than float32 on this CPU: leave --precision at auto or exact")
    if facts["cache"]["free_bytes"] < 2**30:
        sink.say("less than 1 GiB free for the cache; BUDWOOD_CACHE=FOLDER moves it to another disk")


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(place for place in (path, *path.parents) if place.is_dir())
