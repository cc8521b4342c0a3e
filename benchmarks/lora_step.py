"""One LoRA training step, Budwood against Hugging Face PEFT: the same model, rows, rank and targets.

Both sides run in this process, interleaved, and their gradients are compared in the same run; the figure is a ratio of
medians. Needs the demo model (`budwood assets get demo-lm`) and PEFT. Speed is that of the plain
path: what is measured is the cost of hooks against wrapper modules, in float32 and with the adapter idle or in use.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import AutoModelForCausalLM

import budwood as bw
from budwood.assets import get, resolve_data
from budwood.data import collate, encode, read
from budwood.records import machine

RANK, ALPHA = 8, 16
PEFT_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="demo-chat", help="rows to train on")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, batch, tokens = get("demo-lm"), *rows(arguments.data)

    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bw.attach(ours, bw.LoRA(rank=RANK, alpha=ALPHA, targets=("all",)), name="a")
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=PEFT_TARGETS)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config)
    error = same_gradients(ours, theirs, batch)

    sides: dict[str, Callable[[], Any]] = {
        "peft": lambda: step(theirs, batch),
        "budwood": lambda: step(ours, batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(arguments.rounds + 1):
        for name, run in sides.items():
            start = time.process_time()
            run()
            if round_number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    report(seconds, tokens, error, arguments.threads)


def rows(data: str) -> tuple[dict[str, torch.Tensor], int]:
    """Eight rows as one padded batch, and how many tokens they hold without padding."""
    from budwood.assets import load_tokenizer, resolve_model

    tokenizer = load_tokenizer(resolve_model("demo-lm"))
    encoded = encode(read(resolve_data(data)), "train", tokenizer)
    batch = collate(encoded.examples[:8], tokenizer.pad_token_id)
    return {**batch.inputs(), "labels": batch.labels}, sum(batch.lengths)


def step(model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Forward and backward."""
    model.zero_grad(set_to_none=True)
    model(**batch).loss.backward()


def same_gradients(ours: Any, theirs: Any, batch: dict[str, torch.Tensor]) -> float:
    """Give PEFT our weights (B away from zero) and return the largest relative error over all gradients."""
    parameters = {n: p for n, p in theirs.named_parameters() if "lora_" in n}
    own = {}
    for site in bw.adapters(ours)["a"].sites:
        delta = ours.get_submodule(site.path).deltas["a"]
        torch.nn.init.normal_(delta.B, std=0.01)
        for letter, parameter in (("A", delta.A), ("B", delta.B)):
            name = f"base_model.model.{site.path}.lora_{letter}.default.weight"
            own[name] = parameter
            parameters[name].data.copy_(parameter.data)
    assert own.keys() == parameters.keys()
    step(ours, batch)
    step(theirs, batch)
    errors = [(own[n].grad - p.grad).norm() / p.grad.norm() for n, p in parameters.items()]
    return max(float(e) for e in errors)


def report(seconds: dict[str, list[float]], tokens: int, error: float, threads: int) -> None:
    """The table, with the machine in it."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    here = machine().processor.model
    print(f"\nMachine: {here}, {threads} thread(s); demo-lm, float32, LoRA rank {RANK} on every linear, 8 rows.\n")
    print("| side | real tokens per CPU-second | ratio to PEFT |")
    print("|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {tokens / median:.0f} | {medians['peft'] / median:.2f} |")
    print(f"\nLargest relative error of a gradient between the two: {error:.1e} (checked in this run).")
    if error > 1e-4:
        raise SystemExit("the gradients differ: the ratio above means nothing")


if __name__ == "__main__":
    assert Path(peft.__file__).exists()
    main()
