"""Budwood adapts pre-trained language models on the hardware people actually have.

The names are loaded when they are first used, so that `import budwood` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from budwood.anatomy import discover as discover
    from budwood.combine.adapters import combine as combine
    from budwood.compare.run import compare as compare
    from budwood.compare.search import search as search
    from budwood.core import Adapter as Adapter
    from budwood.core import Fuse as Fuse
    from budwood.core import Method as Method
    from budwood.core import Plan as Plan
    from budwood.core import Route as Route
    from budwood.core import Skip as Skip
    from budwood.core import Stack as Stack
    from budwood.core import Sum as Sum
    from budwood.core import Tasks as Tasks
    from budwood.core import activate as activate
    from budwood.core import adapters as adapters
    from budwood.core import attach as attach
    from budwood.core import base_state_dict as base_state_dict
    from budwood.core import detach as detach
    from budwood.core import merge as merge
    from budwood.core import parameters as parameters
    from budwood.core import unfired as unfired
    from budwood.core import using as using
    from budwood.distill.run import distill as distill
    from budwood.errors import BadCheckpoint as BadCheckpoint
    from budwood.errors import BadConfig as BadConfig
    from budwood.errors import BadData as BadData
    from budwood.errors import BudwoodError as BudwoodError
    from budwood.errors import CannotFold as CannotFold
    from budwood.errors import Diverged as Diverged
    from budwood.errors import NoSuchAdapter as NoSuchAdapter
    from budwood.errors import NoSuchSite as NoSuchSite
    from budwood.errors import NotAvailable as NotAvailable
    from budwood.errors import OutOfMemory as OutOfMemory
    from budwood.errors import VerificationFailed as VerificationFailed
    from budwood.errors import WrongOrder as WrongOrder
    from budwood.interop import load as load
    from budwood.interop import save as save
    from budwood.methods import IA3 as IA3
    from budwood.methods import MAM as MAM
    from budwood.methods import METHODS as METHODS
    from budwood.methods import AdapterH as AdapterH
    from budwood.methods import AdapterP as AdapterP
    from budwood.methods import Compacter as Compacter
    from budwood.methods import Full as Full
    from budwood.methods import Fusion as Fusion
    from budwood.methods import LinearAdapter as LinearAdapter
    from budwood.methods import LoRA as LoRA
    from budwood.methods import MultitaskPrompt as MultitaskPrompt
    from budwood.methods import Parallel as Parallel
    from budwood.methods import PrefixTuning as PrefixTuning
    from budwood.methods import PromptTuning as PromptTuning
    from budwood.methods import PTuning as PTuning
    from budwood.methods import PTuningV2 as PTuningV2
    from budwood.methods import Selective as Selective
    from budwood.methods import UniPELT as UniPELT
    from budwood.methods import parse_method as parse_method
    from budwood.shrink.run import shrink as shrink
    from budwood.train.run import train as train

    __version__: str

_PLACES: dict[str, str] = {
    **dict.fromkeys(("discover",), "anatomy"),
    **dict.fromkeys(("Adapter", "Method", "activate", "adapters", "attach"), "core"),
    **dict.fromkeys(("Fuse", "Plan", "Route", "Skip", "Stack", "Sum", "Tasks"), "core"),
    **dict.fromkeys(("base_state_dict", "detach", "merge", "parameters", "unfired", "using"), "core"),
    **dict.fromkeys(("BadCheckpoint", "BadConfig", "BadData", "BudwoodError", "CannotFold", "Diverged"), "errors"),
    **dict.fromkeys(("NoSuchAdapter", "NoSuchSite", "NotAvailable", "OutOfMemory"), "errors"),
    **dict.fromkeys(("VerificationFailed", "WrongOrder"), "errors"),
    **dict.fromkeys(("load", "save"), "interop"),
    **dict.fromkeys(("search",), "compare.search"),
    **dict.fromkeys(("METHODS", "parse_method", "Full", "IA3", "LoRA", "Selective"), "methods"),
    **dict.fromkeys(("AdapterH", "AdapterP", "Compacter", "Fusion", "LinearAdapter", "Parallel"), "methods"),
    **dict.fromkeys(("MAM", "UniPELT"), "methods"),
    **dict.fromkeys(("MultitaskPrompt", "PTuning", "PTuningV2", "PrefixTuning", "PromptTuning"), "methods"),
}
"""Public name to the part of Budwood that has it."""
_CALLED = ("combine", "compare", "distill", "shrink", "train")
"""Parts of Budwood that are called by their own name, too."""

__all__ = sorted([*_PLACES, *_CALLED, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("budwood")
    if name in _CALLED:
        return import_module(f"budwood.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'budwood' has no attribute {name!r}")
    value = getattr(import_module(f"budwood.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
