"""The public names of `budwood`: a list that grows only on purpose."""

from __future__ import annotations

import subprocess
import sys

import budwood

PUBLIC = {
    # how something is attached
    *("attach", "detach", "activate", "using", "parameters", "merge", "unfired", "adapters", "base_state_dict"),
    *("Adapter", "Method", "discover"),
    # which adapters act
    *("Plan", "Fuse", "Route", "Skip", "Stack", "Sum"),
    # methods
    *("METHODS", "Full", "IA3", "LoRA", "Selective", "parse_method"),
    *("AdapterH", "AdapterP", "Compacter", "Fusion", "LinearAdapter", "Parallel"),
    *("MAM", "MultitaskPrompt", "PTuning", "PTuningV2", "PrefixTuning", "PromptTuning", "Tasks", "UniPELT"),
    # adapters on disk, training
    *("save", "load", "train", "distill", "shrink", "compare", "search"),
    # several LoRA adapters into one
    "combine",
    # errors
    *("BudwoodError", "BadCheckpoint", "BadConfig", "BadData", "CannotFold", "Diverged", "NoSuchAdapter"),
    *("NoSuchSite", "NotAvailable", "OutOfMemory", "VerificationFailed", "WrongOrder"),
    "__version__",
}


def test_public_names_are_the_listed_ones() -> None:
    assert set(budwood.__all__) == PUBLIC


def test_every_public_name_is_there() -> None:
    for name in budwood.__all__:
        assert getattr(budwood, name) is not None


def test_importing_budwood_imports_nothing_heavy() -> None:
    program = "import sys, budwood; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
