"""On what a run ran: hardware, system, versions, and the state of the user's own repository."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """One GPU or the like, as the caller's framework describes it."""

    name: str
    memory_bytes: int | None = None
    capability: str | None = None
    driver: str | None = None


@dataclass(frozen=True, kw_only=True)
class Processor:
    """The CPU."""

    model: str
    flags: tuple[str, ...]
    """The instruction sets that matter for matrix products, of those this CPU has."""
    physical_cores: int | None
    logical_cores: int | None
    usable_cores: int
    """Cores this process may run on (affinity and container limits)."""


@dataclass(frozen=True, kw_only=True)
class GitState:
    """The repository around the working directory."""

    commit: str | None
    branch: str | None
    dirty: bool | None
    """Whether tracked files differ from the commit; null where git did not answer in time."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The content of `environment.json`."""

    os: str
    architecture: str
    python: str
    processor: Processor
    memory_bytes: int
    memory_limit_bytes: int | None
    """Limit of the container; null without one."""
    versions: dict[str, str | None]
    """Installed version by package, null where a package is absent."""
    git: GitState | None
    device: str
    threads: int | None
    accelerators: tuple[Accelerator, ...] = ()


def machine(
    *, device: str = "cpu", threads: int | None = None, accelerators: tuple[Accelerator, ...] = ()
) -> Machine:
    """The facts of this machine, without importing torch; what only torch knows is passed in."""
    raise NotImplementedError
