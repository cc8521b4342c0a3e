"""What a shrinking keeps on disk: every accepted stage as a model folder, and the stage that is being made.

RUN/stages.jsonl                   one line a stage, those that were undone among them
RUN/stages/02-cut/                 model folders, as any tool reads them
RUN/work/02/cut/ cut.json state/   the stage that is being recovered, to go on with after a stop
RUN/model/                         the last stage that was accepted
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel

from budwood.assets import load_model, load_tokenizer, resolve_model
from budwood.assets.quiet import quiet
from budwood.data import Batch, Task
from budwood.errors import VerificationFailed
from budwood.records import RunFolder
from budwood.records.files import append_line, not_writable, read_lines
from budwood.shrink.stage import Stage
from budwood.train.verify import sample_logits

SAME = 1e-5
"""Largest difference between a model and its folder read again, relative to the largest logit."""


@dataclass(frozen=True)
class Shelf:
    """The stages of one run on disk."""

    run: RunFolder
    task: Task
    labels: tuple[str, ...] | None

    @property
    def root(self) -> Path:
        """The run folder, wherever one is."""
        return self.run.path.absolute()

    @property
    def work(self) -> str:
        """Where the stage that is being made stands, in the run folder."""
        return f"work/{len(self.stages):02d}"

    @property
    def stages(self) -> list[Stage]:
        """Every stage so far, the last one last."""
        return stages_of(self.run)

    def add(self, stage: Stage) -> None:
        """Write a stage down, and clear the place where it was made."""
        append_line(self.root / "stages.jsonl", stage.to_dict())
        shutil.rmtree(self.root / "work", ignore_errors=True)

    def save(self, model: PreTrainedModel, tokenizer: Any, name: str, batches: list[Batch]) -> str:
        """A model folder in the run, whole or not there, read again and compared; its place in the run folder.

        Raises BadConfig where it cannot be written (a full disk), VerificationFailed where it is not what was saved.
        """
        place = self.root / name
        draft = place.with_name(f".{place.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        try:
            with quiet():
                model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            expected = sample_logits(model, batches, torch.float32)
            found = sample_logits(self.load(draft).to(model.device), batches, torch.float32)
            _check_same(found, expected, place)
            shutil.rmtree(place, ignore_errors=True)
            draft.replace(place)
        except (OSError, SafetensorError) as error:
            raise not_writable(place, error if isinstance(error, OSError) else OSError(str(error))) from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return name

    def load(self, place: str | Path) -> PreTrainedModel:
        """The model of a folder, in float32, as stock transformers reads it."""
        return load_model(resolve_model(self.root / place), task=self.task, labels=self.labels, dtype=torch.float32)

    def tokenizer(self, place: str | Path) -> Any:
        """The tokenizer of a folder."""
        return load_tokenizer(resolve_model(self.root / place))

    def deliver(self, place: str) -> Path:
        """RUN/model, with the files of a stage: linked where the disk can, else copied."""
        target = self.root / "model"
        shutil.rmtree(target, ignore_errors=True)
        try:
            shutil.copytree(self.root / place, target, copy_function=_linked)
        except (OSError, shutil.Error) as error:
            raise not_writable(target, error if isinstance(error, OSError) else OSError(str(error))) from error
        return target


def stages_of(run: RunFolder) -> list[Stage]:
    """Every stage of a run so far. Raises BadCheckpoint for lines that cannot be read."""
    path = run.path / "stages.jsonl"
    return [Stage.from_dict(line, where=str(path)) for line in read_lines(path)]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
    return target


def _check_same(found: list[Tensor], expected: list[Tensor], place: Path) -> None:
    largest = max((float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)), default=0.0)
    limit = SAME * max([1.0, *(float(b.abs().max()) for b in expected)])
    if not largest <= limit:
        raise VerificationFailed(
            f"the model written to {place} and read again gives logits that differ by {largest:.3g}; nothing was kept, "
            "please report this"
        )
