"""On what a run ran: hardware, system, versions, and the state of the user's own repository."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from budwood.records.files import Json

PACKAGES = ("budwood", "torch", "transformers", "accelerate", "safetensors", "tokenizers", "numpy")

MATRIX_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx_vnni"),
    *("avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "sme"),
)

GIT_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU or the like, as the caller's framework describes it."""

    name: str
    """"NVIDIA H200"."""
    memory_bytes: int | None = None
    """Memory of the device."""
    capability: str | None = None
    """"9.0"."""
    driver: str | None = None
    """Version of the driver or of CUDA."""


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The CPU."""

    model: str
    """As the system names it."""
    flags: tuple[str, ...]
    """The instruction sets that matter for matrix products, of those this CPU has; () where not known."""
    physical_cores: int | None
    """Cores, without hyper-threads; null where not known."""
    logical_cores: int | None
    """Cores as the system counts them."""
    usable_cores: float
    """Cores this process may keep busy: affinity and container limits."""


@dataclass(frozen=True, kw_only=True)
class GitState:
    """The repository around the working directory."""

    commit: str
    """The full hash."""
    branch: str | None
    """Null when no branch is checked out."""
    dirty: bool | None
    """Whether tracked files differ from the commit; null where git did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The content of `environment.json`."""

    os: str
    """"Linux 6.8.0-49-generic"."""
    architecture: str
    """"x86_64"."""
    python: str
    """"3.11.9 (CPython)"."""
    processor: Processor
    memory_bytes: int
    """Memory of the machine."""
    memory_limit_bytes: int | None
    """What the container may use; null without a limit."""
    versions: dict[str, str | None]
    """Installed version by package, null where a package is absent."""
    git: GitState | None
    """Null outside of a repository."""
    device: str
    """What the run uses: "cpu", "cuda:0", "mps"."""
    threads: int | None
    """CPU threads the run uses; null where the caller did not say."""
    accelerators: tuple[Accelerator, ...] = ()
    """The devices the caller found."""
    gemm: str | None = None
    """Who computes float32 products: "default" (torch's choice) or "onednn"; null off the CPU, or not said."""

    def to_dict(self) -> dict[str, Json]:
        """Plain data for JSON."""
        return asdict(self)


def machine(
    *,
    device: str = "cpu",
    threads: int | None = None,
    accelerators: tuple[Accelerator, ...] = (),
    gemm: str | None = None,
) -> Machine:
    """The facts of this machine, without importing torch; what only torch knows is passed in."""
    return Machine(
        os=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        processor=processor(),
        memory_bytes=psutil.virtual_memory().total,
        memory_limit_bytes=memory_limit(),
        versions={name: installed(name) for name in PACKAGES},
        git=git_state(Path.cwd()),
        device=device,
        threads=threads,
        accelerators=accelerators,
        gemm=gemm,
    )


def installed(package: str) -> str | None:
    """The installed version of a package, read from its metadata; None if it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> Processor:
    """The CPU as /proc/cpuinfo tells, or what `platform` knows where there is none."""
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    return Processor(
        model=facts.get("model name") or _mac_brand() or platform.processor() or platform.machine(),
        flags=tuple(flag for flag in MATRIX_FLAGS if flag in flags),
        physical_cores=psutil.cpu_count(logical=False),
        logical_cores=psutil.cpu_count(logical=True),
        usable_cores=usable_cores(),
    )


def usable_cores() -> float:
    """Cores this process may keep busy, by affinity and by the container's CPU quota (cgroup v2 or v1)."""
    allowed = float(os.cpu_count() or 1)
    if platform.system() == "Linux":
        allowed = float(len(os.sched_getaffinity(0)))
    quota = _read("/sys/fs/cgroup/cpu.max")
    if quota is not None:
        limit, _, period = quota.partition(" ")
    else:
        limit = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "max"
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or ""
    if limit.isdigit() and period.isdigit() and int(period) > 0:
        allowed = min(allowed, int(limit) / int(period))
    return allowed


def memory_limit() -> int | None:
    """Bytes the container may use (cgroup v2 or v1); None without a limit below the machine's memory."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = _read(path)
        if limit is not None and limit.isdigit() and int(limit) < psutil.virtual_memory().total:
            return int(limit)
    return None


def git_state(folder: Path) -> GitState | None:
    """Commit, branch and whether tracked files are changed; None outside of a repository or without git."""
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return GitState(
        commit=commit,
        branch=_git(folder, "symbolic-ref", "--short", "-q", "HEAD") or None,
        dirty=None if changes is None else bool(changes),
    )


def _git(folder: Path, *words: str) -> str | None:
    """What git prints; None if it is not there, refuses or takes too long."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    try:
        done = subprocess.run(
            ("git", "-C", str(folder), *words),
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo; {} where there is none."""
    facts = {}
    for line in (_read("/proc/cpuinfo") or "").split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        facts[key.strip()] = value.strip()
    return facts


def _mac_brand() -> str | None:
    if platform.system() != "Darwin":
        return None
    words = ("sysctl", "-n", "machdep.cpu.brand_string")
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=2.0, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def _read(path: str) -> str | None:
    """The text of a small system file; None where there is none or it may not be read."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
