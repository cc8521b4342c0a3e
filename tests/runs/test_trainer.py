"""An adapted model trains under `transformers.Trainer` and a plain PyTorch loop as an ordinary module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

import budwood.core as core
from adapted import adapted
from budwood.interop import load, save


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def rows(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    ids = batch["input_ids"]
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids] * 4


@pytest.mark.parametrize("variant", ["lora-all", "ia3"])
def test_transformers_trainer(variant: str, tmp_path: Path) -> None:
    model, batch = adapted("llama", variant)
    before = snapshot(model)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=6, per_device_train_batch_size=2, learning_rate=0.05, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=rows(batch)).train()  # type: ignore[arg-type]
    own = {id(p) for p in core.parameters(model, "faq")}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in own), name
    save(model, tmp_path / "adapter", name="faq")
    fresh, _ = adapted("llama", "lora", "unused")
    core.detach(fresh, "unused")
    load(fresh, tmp_path / "adapter", name="faq")
    assert torch.equal(model.eval()(**batch).logits, fresh.eval()(**batch).logits)


def test_plain_loop_lowers_the_loss() -> None:
    model, batch = adapted("gpt2", "lora-all")
    optimizer = torch.optim.AdamW(core.parameters(model, "faq"), lr=0.02)
    losses = []
    for _ in range(30):
        loss = model(**batch, labels=batch["input_ids"]).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
