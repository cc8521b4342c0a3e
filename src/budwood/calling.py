"""Packages that are called by their own name: `budwood.train` is a package and, called, its main verb."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """The module of a package whose `VERB` says what a call of it means: "run.train" inside of it."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """What that function does; nothing heavy is imported before."""
        place, _, name = str(self.VERB).rpartition(".")
        verb: Callable[..., Any] = getattr(import_module(f"{self.__name__}.{place}"), name)
        return verb(*args, **settings)


def make_callable(package: str) -> None:
    """Let calls of a package go to its `VERB`."""
    sys.modules[package].__class__ = _Verb
