"""What the hooks of this package share: how they read a call, and how they are taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn


def named(arguments: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a forward that takes `arguments`, in order, was called with, by name."""
    return dict(zip(arguments, args, strict=False)) | dict(kwargs)


def remove(module: nn.Module, *hooks: Callable[..., Any]) -> None:
    """Take these functions off the module, leaving other people's hooks as they are."""
    before = (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,))
    after = (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called))
    for table, flags in (before, after):
        for key in [key for key, hook in table.items() if hook in hooks]:
            for entries in (table, *flags):
                entries.pop(key, None)
