"""A cached teacher against the teacher itself: how far gradients are apart, what a step costs, what lies on disk.

One batch of the demo data, the demo model as the teacher, and two students of the same weights: one with every second
layer, untrained after the cut, and one with 2 % noise on its weights, which is nearly as good as the teacher. Needs
the demo model (`budwood assets get demo-lm`). Gradients are those of forward KL at temperature 1 to all weights.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from budwood.assets import get, load_tokenizer, resolve_data, resolve_model
from budwood.data import Batch, Example, collate, encode, read
from budwood.distill.cache import cache_teacher, cost
from budwood.distill.cached import CachedTeacher
from budwood.distill.config import Distillation
from budwood.distill.content import Origin
from budwood.distill.objective import Distill
from budwood.distill.supervised import Reader
from budwood.distill.teacher import LiveTeacher, Teacher
from budwood.records import machine

SIZES = (32, 64, 256)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    examples = rows(arguments.rows)
    batch = collate(examples, 0)
    live = LiveTeacher(load(), "causal-lm")
    here = machine().processor.model
    print(f"{here}, {arguments.threads} thread(s); {len(batch)} rows, {batch.num_targets} learned tokens\n")
    precision(live, batch)
    with tempfile.TemporaryDirectory() as folder:
        cached = {k: caught(live, examples, Path(folder) / str(k), k) for k in SIZES}
        students = {"every second layer": halved(load()), "2 % noise": noisy(load())}
        print("| k | bytes per token | " + " | ".join(f"gradient error, {name}" for name in students) + " |")
        print("|---|---|" + "---|" * len(students))
        exact = {name: gradient(student, live, batch) for name, student in students.items()}
        for k, teacher in cached.items():
            errors = [
                float((gradient(student, teacher, batch) - exact[name]).norm() / exact[name].norm())
                for name, student in students.items()
            ]
            print(f"| {k} | {cost(k, 1).bytes_per_token} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
        speed(students["every second layer"], {"live": live, "cached": cached[64]}, batch, arguments.rounds)


def rows(count: int) -> list[Example]:
    """Encoded rows of the demo data."""
    tokenizer = load_tokenizer(resolve_model("demo-lm"))
    return encode(read(resolve_data("demo-chat")), "train", tokenizer).examples[:count]


def load() -> Any:
    """The demo model, in float32."""
    return AutoModelForCausalLM.from_pretrained(get("demo-lm"), dtype=torch.float32).eval()


def halved(model: Any) -> Any:
    """The model with every second layer."""
    model.model.layers = model.model.layers[::2]
    return model


def noisy(model: Any) -> Any:
    """The model with noise of 2 % of each matrix' spread."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    return model


def caught(live: LiveTeacher, examples: list[Example], folder: Path, k: int) -> CachedTeacher:
    """The teacher's k likeliest choices."""
    cache_teacher(live, examples, folder, origin=Origin(tokenizer="", template=""), pad_id=0, k=k)
    return CachedTeacher(folder)


def loss_of(student: Any, teacher: Teacher, batch: Batch) -> Tensor:
    """Forward KL over the batch, summed."""
    config = Distillation(loss="forward-kl", kd_weight=1.0, ce_weight=0.0)
    objective = Distill(task="causal-lm", config=config, teacher=teacher, reader=Reader("causal-lm"))
    return objective(student, batch).total


def gradient(student: Any, teacher: Teacher, batch: Batch) -> Tensor:
    """Of all weights, flat."""
    student.zero_grad()
    loss_of(student, teacher, batch).backward()
    return torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None])


def precision(live: LiveTeacher, batch: Batch) -> None:
    """What 16 bits do to the 64 largest log-probabilities."""
    log_probs = live.say(batch).at(slice(None)).log_softmax(dim=-1).topk(64, dim=-1).values
    for dtype in (torch.float16, torch.bfloat16):
        error = log_probs.to(dtype).float() - log_probs
        shift = log_probs.to(dtype).float().exp() - log_probs.exp()
        print(f"{dtype}: log p off by at most {error.abs().max():.1e}, p by at most {shift.abs().max():.1e}")
    print()


def speed(student: Any, teachers: dict[str, Teacher], batch: Batch, rounds: int) -> None:
    """Forward and backward of a step, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in teachers}
    for number in range(rounds + 1):
        for name, teacher in teachers.items():
            start = time.process_time()
            gradient(student, teacher, batch)
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start)
    live, cached = (statistics.median(seconds[name]) for name in ("live", "cached"))
    print(f"\nA step with the cached teacher (k 64) takes {cached / live:.2f} of one with the live teacher "
          f"(median of {rounds}; student: every second layer)")  # fmt: skip


if __name__ == "__main__":
    main()
