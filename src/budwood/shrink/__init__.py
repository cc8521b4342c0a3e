"""Progressive shrinking: cut a little, refit, recover, look, go on. `budwood.shrink` is this package and, called, its one verb."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """The package's module, which can be called."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """`budwood.shrink.run.shrink`, which see."""
        return import_module("budwood.shrink.run").shrink(*args, **settings)


sys.modules[__name__].__class__ = _Verb
