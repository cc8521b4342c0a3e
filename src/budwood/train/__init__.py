"""Training: config, objectives, the one order of set-up, the loop, checkpoints, preflight and proof.

`budwood.train` is this package and, called, its main verb: `budwood.train("demo-lm", "faq.jsonl")` is
`budwood.train.run.train`, whatever was imported before. Importing this package imports nothing heavy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    """The package's module, which can be called."""

    def __call__(self, *args: Any, **settings: Any) -> Any:
        """`budwood.train.run.train`, which see."""
        return import_module("budwood.train.run").train(*args, **settings)


sys.modules[__name__].__class__ = _Verb
