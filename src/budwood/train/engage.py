"""Whether a run's steps are computed fast: tried on a few of its rows, both ways, before the first step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import torch

from budwood.core.registry import registry_of
from budwood.data import Example
from budwood.fast.engine import Fast, engage, keep_lower
from budwood.fast.lower import Lower
from budwood.train.config import TrainConfig
from budwood.train.feed import Feed
from budwood.train.memory import available_bytes
from budwood.train.objective import Objective
from budwood.train.probe import same_modes
from budwood.train.randomness import same_randomness
from budwood.train.setup import Prepared

MEMORY = 0.25
"""Share of the free memory that may keep what frozen blocks make of rows."""
DISK = 0.5
"""Share of the free disk that may, where memory does not do."""
SAMPLE = (0.0, 0.25, 0.5)
"""Which rows are tried, as shares of all, from the shortest to the longest: long ones would only take longer."""


def engaged(prepared: Prepared, objective: Objective, feed: Feed, config: TrainConfig) -> Fast:
    """The fast path, where it gives the loss and the gradients of the plain one; dropout is left out of the trial."""
    if not config.pack:
        return Fast(why="pack is false")
    if config.gradient_checkpointing:
        return Fast(why="activations are computed again in the backward (gradient_checkpointing)")
    rows = sample_of(feed.examples)
    batch = feed.batch(rows).to(prepared.device)
    registry = registry_of(prepared.model)
    assert registry is not None

    def step() -> torch.Tensor:
        with prepared.arithmetic():
            loss = objective(prepared.trained, batch)
        return loss.total / max(1, loss.tokens)

    def lower_of(cut: int) -> Lower:
        lengths = [len(example.ids) for example in feed.examples]
        memory = int(MEMORY * available_bytes(prepared.device))
        disk = int(DISK * shutil.disk_usage(tempfile.gettempdir()).free)
        return Lower(cut, lengths, memory_bytes=memory, disk_bytes=disk)

    with same_randomness(), same_modes(prepared.model):
        prepared.model.eval()
        fast = engage(prepared.model, registry.anatomy, step, prepared.optimized, prepared.compute)
        if batch.index and prepared.device.type == "cpu":
            fast = keep_lower(fast, step, prepared.optimized, rows, lower_of)
        return fast


def sample_of(examples: Sequence[Example]) -> list[int]:
    """Indices of a few examples of different lengths."""
    ordered = sorted(range(len(examples)), key=lambda index: examples[index].size)
    places = [int(share * (len(ordered) - 1)) for share in SAMPLE]
    ahead = next((index for index in ordered if examples[index].size > examples[ordered[places[-1]]].size), None)
    chosen = [ordered[place] for place in dict.fromkeys(places)]
    return chosen if len({examples[index].size for index in chosen}) > 1 or ahead is None else [*chosen, ahead]
