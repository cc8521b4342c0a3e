"""A distillation loss of states, with all logits at once against in slices: peak memory and time, forward and backward.

Both sides are compared in the same run: their values, and their gradients to states and to the head's weight. Peaks are
high-water marks of resident memory of a process for each side, above what it held with states, weights and the
teacher's states in place. Sizes are those of SmolLM2-135M unless given; numbers are random.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from budwood.distill.chunks import chunked, positions_within
from budwood.distill.losses import LOSSES
from budwood.records import machine
from budwood.records.meter import MemoryMeter

SIDES = ("plain", "sliced")


class Given:
    """States of a student and a teacher, and their heads."""

    def __init__(self, positions: int, width: int, vocabulary: int, loss: str, size: int) -> None:
        dice = torch.Generator().manual_seed(0)
        self.loss, self.size = LOSSES[loss], size
        self.states = torch.randn(positions, width, generator=dice).requires_grad_()
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.teacher_states = torch.randn(positions, width, generator=dice)
        self.teacher_head = nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
        self.mask = torch.ones(positions, dtype=torch.bool)
        for parameter in (*self.head.parameters(), *self.teacher_head.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=dice) * width**-0.5

    def plain(self) -> Tensor:
        """All logits of both."""
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher_states)
        return self.loss(self.head(self.states), teacher, self.mask)

    def sliced(self) -> Tensor:
        """Those of some positions at a time."""
        teacher = self.teacher_states
        return chunked(
            self.loss, self.states, self.head, lambda r: self.teacher_head(teacher[r]), self.mask, size=self.size
        )

    def step(self, side: str) -> tuple[Tensor, ...]:
        """Value, gradient to the states, gradient to the head."""
        compute: Callable[[], Tensor] = self.plain if side == "plain" else self.sliced
        value = compute()
        return value.detach(), *torch.autograd.grad(value, [self.states, self.head.weight])


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--loss", choices=sorted(set(LOSSES) - {"squared-error"}), default="forward-kl")
    parser.add_argument("--slice", type=int, default=0, help="positions of a slice; 0 is what the default budget gives")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.slice or positions_within(arguments.vocabulary)
    given = Given(arguments.positions, arguments.width, arguments.vocabulary, arguments.loss, size)
    if arguments.peak_of:
        meter = MemoryMeter()
        given.step(arguments.peak_of)
        print(meter.read().peak_bytes)
        return
    peaks = {side: peak_of(side) for side in SIDES}
    error = difference(given)
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            start = time.process_time()
            given.step(side)
            seconds[side].append(time.process_time() - start)
    report(arguments, size, peaks, {side: statistics.median(values) for side, values in seconds.items()}, error)


def peak_of(side: str) -> int:
    """Bytes, of a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def difference(given: Given) -> float:
    """The largest relative difference between the two, over the value and both gradients."""
    pairs = zip(given.step("plain"), given.step("sliced"), strict=True)
    return max(float((a - b).norm() / a.norm()) for a, b in pairs)


def report(
    arguments: argparse.Namespace, size: int, peaks: dict[str, int], seconds: dict[str, float], error: float
) -> None:
    """The table, with the machine in it."""
    n, vocabulary = arguments.positions, arguments.vocabulary
    print(
        f"\nMachine: {machine().processor.model}, {arguments.threads} thread(s); {arguments.loss}, float32, {n} "
        f"positions, width {arguments.width}, vocabulary {vocabulary}, slices of {size}.\n"
    )
    print("| side | peak MiB | ratio | CPU-seconds | ratio |")
    print("|---|---|---|---|---|")
    for side in SIDES:
        print(
            f"| {side} | {peaks[side] / 2**20:.0f} | {peaks[side] / peaks['plain']:.2f} | {seconds[side]:.2f} | "
            f"{seconds[side] / seconds['plain']:.2f} |"
        )
    fixed = (
        4 * arguments.width * (2 * vocabulary + n)
    )  # gradients of the head, one slice's and their sum, and of states
    print(f"\nOf the peaks {fixed / 2**20:.0f} MiB are gradients of head and states, at most.")
    for side, count in (("plain", n), ("sliced", size)):
        live = (peaks[side] - fixed) / (4 * count * vocabulary)
        print(f"{side}: {live:.1f} float32 numbers for each of {count} positions and each token.")
    print(f"Largest relative difference of value and gradients: {error:.1e} (checked in this run).")
    if error > 1e-4:
        raise SystemExit("the two differ: the ratios above mean nothing")


if __name__ == "__main__":
    main()
