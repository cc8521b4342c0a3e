"""Training steps of Budwood and of Hugging Face PEFT side by side: the same model, method, rows and arithmetic.

    python benchmarks/training.py [MODEL] [DATA] [--layers 24-29] [--threads 1] [--rounds 6] [--bf16] [--shuffled]

Every side does whole optimizer steps in this process, one after the other on the same rows; figures are medians of
CPU time over steps, and ratios of these. Gradients of the first step are compared in the same run. PEFT is used as
transformers' Trainer uses it: padded rows, the model's own loss, AdamW. Beside that stands what this machine's own
matrix products would need for the same step if nothing else took time, forward and backward to the inputs, at
supervised positions only in the head.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

import budwood as bw
from budwood.assets import get
from budwood.core import delta_at
from budwood.data import Batch
from budwood.fast.engine import PLAIN
from budwood.records import machine
from budwood.train.checkpoint import Standing
from budwood.train.config import TrainConfig
from budwood.train.job import Job
from budwood.train.observer import Silent
from budwood.train.start import Started, start
from budwood.train.step import gradients, update

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 8, 16


@dataclass
class Peer:
    """PEFT's LoRA with the same weights, trained as Trainer would."""

    model: Any
    optimizer: torch.optim.Optimizer
    autocast: bool

    def step(self, batch: Batch) -> None:
        """One optimizer step on padded rows."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(**batch.inputs(), labels=batch.labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()


def main() -> None:
    """Measure and print a Markdown table."""
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    layers = (
        tuple(range(*(int(x) + n for n, x in enumerate(arguments.layers.split("-"))))) if arguments.layers else None
    )
    started = begun(arguments, layers)
    steps = [rows for _, rows in islice(started.feed.steps(Standing().position), arguments.rounds + 1)]
    names = ["peft, float32", *(["peft, bfloat16 autocast"] if arguments.bf16 else [])]
    peers = {name: peer_of(started, arguments, layers, autocast="bfloat16" in name) for name in names}
    error = gradient_error(started, peers[names[0]], steps[0])
    sides: dict[str, Callable[[list[int]], None]] = {
        **{name: lambda rows, peer=peer: peer.step(started.feed.batch(rows)) for name, peer in peers.items()},
        "budwood --no-pack": lambda rows: own_step(started, rows, packed=False),
        "budwood": lambda rows: own_step(started, rows, packed=True),
    }
    if started.prepared.fast.lower is not None:
        sides["budwood, first epoch"] = lambda rows: own_step(started, rows, packed=True, forget=True)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, rows in enumerate(steps):
        tokens = sum(len(started.feed.examples[row].ids) for row in rows)
        for name, side in sides.items():
            if name == "budwood" and len(sides) > 3 and started.prepared.fast.lower is not None:
                side(rows)  # what frozen blocks make of these rows is known from the epoch before
            began = time.process_time()
            side(rows)
            if number:  # the first step warms up
                seconds[name].append((time.process_time() - began) / tokens)
    report(started, arguments, seconds, steps, error, layers)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo-lm")
    parser.add_argument("data", nargs="?", default="demo-chat")
    parser.add_argument("--layers", help="FIRST-LAST that are adapted; all unless said")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="also PEFT under bfloat16 autocast")
    parser.add_argument("--shuffled", action="store_true", help="rows in plain random order, not grouped by length")
    return parser.parse_args()


def begun(arguments: argparse.Namespace, layers: tuple[int, ...] | None) -> Started:
    """As `budwood train` does everything before the first step."""
    config = TrainConfig(
        budget="1epochs", batch=arguments.batch, precision="exact", device="cpu", eval_every=0,
        group_by_length=not arguments.shuffled, learning_rate=1e-4,
    )  # fmt: skip
    method = bw.LoRA(rank=RANK, alpha=ALPHA, targets=("all",), layers=layers)
    job = Job(model=arguments.model, data=arguments.data, method=method, config=config, out=Path("unused"))
    started = start(job)
    for site in started.prepared.adapter.sites:
        nn.init.normal_(delta_at(started.prepared.model, site, started.prepared.adapter.name).B, std=0.01)
    return started


def peer_of(started: Started, arguments: argparse.Namespace, layers: tuple[int, ...] | None, *, autocast: bool) -> Peer:
    """PEFT on a base of its own, with our weights."""
    base = AutoModelForCausalLM.from_pretrained(get(arguments.model), dtype=torch.float32)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, layers_to_transform=None if layers is None else list(layers)
    )
    model = peft.get_peft_model(base, config).train()
    theirs = dict(model.named_parameters())
    for name, parameter in named(started).items():
        theirs[name].data.copy_(parameter.data)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Peer(model, torch.optim.AdamW(trained, lr=1e-4), autocast)


def named(started: Started) -> dict[str, nn.Parameter]:
    """Our parameters by PEFT's names."""
    found = {}
    for site in started.prepared.adapter.sites:
        delta: Any = delta_at(started.prepared.model, site, started.prepared.adapter.name)
        for letter in "AB":
            found[f"base_model.model.{site.path}.lora_{letter}.default.weight"] = vars(delta)["_parameters"][letter]
    return found


def own_step(started: Started, rows: list[int], *, packed: bool, forget: bool = False) -> None:
    """One of ours."""
    prepared = started.prepared if packed else replace(started.prepared, fast=PLAIN)
    if forget and prepared.fast.lower is not None:
        prepared.fast.lower.forget()
    prepared.trained.train()
    gradients(prepared, started.objective, started.feed, rows, Standing(), Silent())
    update(prepared, started.job.config, 1.0, started.feed, rows, 1)
    prepared.optimizer.zero_grad(set_to_none=True)


def gradient_error(started: Started, peer: Peer, rows: list[int]) -> float:
    """|ours - theirs| / |theirs| over all gradients of one batch."""
    started.prepared.trained.train()
    gradients(started.prepared, started.objective, started.feed, rows, Standing(), Silent())
    batch = started.feed.batch(rows)
    peer.model(**batch.inputs(), labels=batch.labels).loss.backward()
    theirs, apart, length = dict(peer.model.named_parameters()), 0.0, 0.0
    for name, parameter in named(started).items():
        own, other = parameter.grad, theirs[name].grad
        assert own is not None
        assert other is not None
        apart, length = apart + float((own - other).square().sum()), length + float(other.square().sum())
    started.prepared.optimizer.zero_grad(set_to_none=True)
    return float((apart / length) ** 0.5)


def products_s(started: Started, rows: list[int], layers: tuple[int, ...] | None) -> float:
    """CPU seconds per token of the matrix products that a step cannot do without, each timed by itself."""
    tokens = sum(len(started.feed.examples[row].ids) for row in rows)
    learned = sum(started.feed.examples[row].num_targets for row in rows)
    model, first = started.prepared.model, min(layers or (0,))
    total, known = 0.0, {}
    with started.prepared.learning():
        for site in started.prepared.adapter.sites:
            weight = model.get_submodule(site.path).get_parameter("weight")
            key = tuple(weight.shape)
            known[key] = known.get(key) or timed(tokens, weight)
            total += sum(known[key])
        for site in (s for s in started.anatomy.sites if layers and s.is_linear and (s.layer or first) < first):
            weight = model.get_submodule(site.path).get_parameter("weight")
            key = tuple(weight.shape)
            known[key] = known.get(key) or timed(tokens, weight)
            total += known[key][0] if started.prepared.fast.lower is None else 0.0
        total += sum(timed(learned, model.get_output_embeddings().weight))
    return total / tokens


def timed(tokens: int, weight: torch.Tensor) -> tuple[float, float]:
    """The least CPU seconds of x W^T and of g W."""
    x, g = torch.randn(tokens, weight.shape[1]), torch.randn(tokens, weight.shape[0])
    best = [float("inf")] * 2
    for _ in range(3):
        for place, product in enumerate((lambda: F.linear(x, weight), lambda: g @ weight)):
            began = time.process_time()
            product()
            best[place] = min(best[place], time.process_time() - began)
    return best[0], best[1]


def report(
    started: Started, arguments: argparse.Namespace, seconds: dict[str, list[float]], steps: list[list[int]],
    error: float, layers: tuple[int, ...] | None,
) -> None:  # fmt: skip
    """The table, with the machine in it."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    needed = products_s(started, random.Random(0).choice(steps[1:]), layers)
    tokens = [sum(len(started.feed.examples[row].ids) for row in rows) for rows in steps[1:]]
    print(
        f"\nMachine: {machine().processor.model}, {arguments.threads} thread(s). {arguments.model} on "
        f"{arguments.data}, LoRA rank {RANK} on all linears{f' of layers {arguments.layers}' if layers else ''}, "
        f"{arguments.batch} rows a step{', shuffled' if arguments.shuffled else ', grouped by length'}, "
        f"{statistics.median(tokens):.0f} tokens a step, {len(steps) - 1} steps.\n"
    )
    print("| side | tokens per CPU-second | ratio to PEFT | lowest and highest | share of the products alone |")
    print("|---|---|---|---|---|")
    for name, median in medians.items():
        ratios = sorted(a / b for a, b in zip(seconds["peft, float32"], seconds[name], strict=True))
        print(
            f"| {name} | {1 / median:.0f} | {medians['peft, float32'] / median:.2f} | {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f} | {needed / median:.0%} |"
        )
    print(f"\n{started.prepared.fast}.")
    print(f"Gradients differ from PEFT's by {error:.1e} of their length (checked in this run).")
    if error > 1e-5:
        raise SystemExit("the gradients differ: the ratios above mean nothing")


if __name__ == "__main__":
    main()
