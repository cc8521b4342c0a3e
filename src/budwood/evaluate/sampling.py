"""Random answers that hang on nothing but the seed and the number of the prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor

from budwood.errors import BadConfig


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to draw; each row has a random stream of its own, so that its answer does not hang on the batch."""

    temperature: float = 1.0
    """Logits are divided by it; above 0."""
    top_p: float = 1.0
    """Only the smallest set of tokens that holds this probability stays, in (0, 1]."""
    top_k: int = 0
    """Only this many of the most likely tokens stay; 0 keeps all."""
    seed: int = 0
    """Of the random streams."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BadConfig(f"temperature is {self.temperature}; it must be above 0 (leave sampling out for greedy)")
        if not 0 < self.top_p <= 1:
            raise BadConfig(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if self.top_k < 0:
            raise BadConfig(f"top_k is {self.top_k}; it must be at least 1, or 0 to keep every token")

    def stream(self, prompt: int) -> torch.Generator:
        """The random stream of one prompt, by its number."""
        seed = random.Random(f"budwood sample {self.seed} {prompt}").getrandbits(63)
        return torch.Generator().manual_seed(seed)


class Draw(LogitsProcessor):
    """Turns greedy choice into a draw: the largest of logit + Gumbel noise is a sample of the softmax.

    Each row's noise comes from its own stream, and the global random state is left alone.
    """

    def __init__(self, sampling: Sampling, prompts: Sequence[int]) -> None:
        self.sampling = sampling
        self.streams = [sampling.stream(prompt) for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """scores: [rows, vocab] logits -> [rows, vocab] float32, of which the largest is the drawn token."""
        scores = keep(scores.float() / self.sampling.temperature, self.sampling)
        noise = torch.stack([self._gumbel(stream, scores.shape[1]) for stream in self.streams])  # [rows, vocab]
        return scores + noise.to(scores.device)

    def _gumbel(self, stream: torch.Generator, size: int) -> Tensor:
        """[size] float32: -log of an exponential variable."""
        wait = torch.empty(size, dtype=torch.float64).exponential_(generator=stream)
        return -wait.clamp_min(1e-300).log().float()


def keep(scores: Tensor, sampling: Sampling) -> Tensor:
    """scores: [rows, vocab] -> the same with -inf for the tokens that top_k and then top_p leave out."""
    if 0 < sampling.top_k < scores.shape[1]:
        floor = scores.topk(sampling.top_k, dim=1).values[:, -1:]  # [rows, 1]
        scores = scores.masked_fill(scores < floor, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(dim=1, descending=True)
        probabilities = ordered.softmax(dim=1)
        before = probabilities.cumsum(dim=1) - probabilities  # what the likelier tokens hold together
        out = (before >= sampling.top_p).scatter(1, order, before >= sampling.top_p)
        scores = scores.masked_fill(out, -torch.inf)
    return scores
