"""What frozen blocks make of rows is computed once, and gradients are bit for bit what they were."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, perturb, weighted
from budwood.core import Method
from budwood.errors import NotAvailable
from budwood.fast.engine import Fast, engage, keep_lower
from budwood.fast.lower import Lower
from budwood.methods import IA3, LoRA, PromptTuning, Selective
from families import FAMILIES, PAD, VOCABULARY

LENGTHS = (9, 4, 6, 7)


@dataclass
class Setting:
    """A model with an adapter, and four rows."""

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    fast: Fast

    def loss(self, rows: Sequence[int]) -> Tensor:
        ids = [torch.randint(4, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in LENGTHS]
        width = max(LENGTHS[row] for row in rows)
        batch = torch.stack([nn.functional.pad(ids[row], (0, width - LENGTHS[row]), value=PAD) for row in rows])
        mask = torch.arange(width) < torch.tensor([[LENGTHS[row]] for row in rows])
        logits = self.model(input_ids=batch, attention_mask=mask.long()).logits
        if logits.ndim == 3:
            logits = logits[:, -width:][mask]
        return weighted(logits.square())

    def gradients(self, rows: Sequence[int], *, named: bool = True) -> dict[str, Tensor]:
        with self.fast.running(), self.fast.reading(rows if named else ()):
            self.loss(rows).backward()
        found = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
        for parameter in self.parameters.values():
            parameter.grad = None
        return found


def setting(
    family: str, method: Method, *, memory: int = 10**6, disk: int = 0, prepare: Callable[[nn.Module], object] = id
) -> Setting:
    model, anatomy = FAMILIES[family].build(), anatomy_of(family)
    prepare(model)
    core.attach(model, method, name="a", anatomy=anatomy)
    perturb(model, "a", 0.1)
    made = Setting(model, core.named_parameters(model, "a"), Fast())
    made.fast = engage(model, anatomy, lambda: made.loss((0, 1, 2)), made.parameters, torch.float32)
    assert made.fast.is_packed, str(made.fast)
    made.fast = keep_lower(
        made.fast, lambda: made.loss((0, 1, 2)), made.parameters, (0, 1, 2),
        lambda cut: Lower(cut, LENGTHS, memory_bytes=memory, disk_bytes=disk),
    )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("family", "method", "cut"),
    [
        ("llama", LoRA(layers=(1,), targets=("all",)), 1),
        ("bert", IA3(layers=(1,)), 1),
        ("gpt2", LoRA(layers=(1,), targets=("attn.qkv",)), 1),
        ("llama-classify", Selective(part="head"), 2),
        ("qwen3", Selective(part="last-layers", last=1), 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_frozen_blocks_run_once_and_gradients_stay_bit_for_bit(
    family: str, method: Method, cut: int, place: str
) -> None:
    memory = 10**6 if place == "memory" else 0
    made = setting(family, method, memory=memory, disk=10**6, prepare=partial(with_dropout, share=0.0))
    lower = made.fast.lower
    assert lower is not None
    assert lower.cut == cut
    assert "computed once" in str(made.fast)
    assert (lower.held_bytes > 0) == (place == "memory")
    for rows in ((3, 0), (1, 2), (2,)):
        lower.forget()  # a row that came with others is off by rounding
        plain = made.gradients(rows, named=False)
        first, second = made.gradients(rows), made.gradients(rows)
        assert lower.has(rows)
        assert plain.keys() == first.keys() == second.keys()
        for name, gradient in plain.items():
            assert torch.equal(gradient, first[name])
            assert torch.equal(gradient, second[name])
    made.gradients((3, 2))

    ran: list[int] = []
    blocks = made.fast.stacks[0].blocks
    handles = [next(b.children()).register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(blocks)]
    made.gradients((2, 3))
    for handle in handles:
        handle.remove()
    assert ran == list(range(cut, len(blocks)))
    assert not any("forward" in vars(block) for block in blocks), "nothing of it stays"


def test_what_is_trained_below_or_draws_by_chance_is_computed_each_time() -> None:
    everywhere = setting("llama", LoRA(targets=("all",)))
    assert everywhere.fast.lower is None
    prompts = setting("llama", PromptTuning(length=2))
    assert prompts.fast.lower is None or not any(prompts.fast.lower.has((row,)) for row in range(4))
    words = setting("llama", LoRA(targets=("embed",), rank=2))
    assert words.fast.is_packed
    assert words.fast.lower is None
    drops = setting("bert", LoRA(layers=(1,), targets=("all",)), prepare=with_dropout)
    assert drops.fast.is_packed
    assert drops.fast.lower is None


def with_dropout(model: nn.Module, share: float = 0.1) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def test_without_room_the_run_goes_on() -> None:
    made = setting("llama", LoRA(layers=(1,), targets=("all",)), memory=10, disk=10)
    assert made.fast.is_packed
    assert made.fast.lower is None
    assert made.gradients((0, 1))


def test_room_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="takes .* GiB for all rows, and there is room for"):
        Lower(1, (2, 3), memory_bytes=10, disk_bytes=10).put([0], torch.zeros(2, 8))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NotAvailable, match="could not be kept in .*No space left"):
        Lower(1, (2, 3), memory_bytes=10, disk_bytes=10**6).put([0], torch.zeros(2, 8))
    assert list(tmp_path.iterdir()) == []


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    lower = Lower(1, (2, 3), memory_bytes=0, disk_bytes=10**6)
    states = torch.randn(5, 4)
    lower.put([1, 0], states)
    assert torch.equal(lower.get([1, 0]), states)
    assert torch.equal(lower.get([0]), states[3:])
    assert lower.has([0, 1])
    lower.forget()
    assert not lower.has([0])
