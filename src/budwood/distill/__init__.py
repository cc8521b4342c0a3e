"""Distillation: a student learns what a teacher says. `budwood.distill` is this package and, called, its one verb."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """The package's module, which can be called."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """`budwood.distill.run.distill`, which see."""
        return import_module("budwood.distill.run").distill(*args, **settings)


sys.modules[__name__].__class__ = _Verb
