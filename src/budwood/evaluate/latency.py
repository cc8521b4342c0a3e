"""How long a model takes to read a prompt and to write a token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from budwood.errors import BadConfig
from budwood.evaluate.generate import context_of
from budwood.evaluate.mode import evaluating
from budwood.records import Timing


def latency(
    model: Any,
    *,
    batch: int = 1,
    prompt_tokens: int = 64,
    new_tokens: int = 16,
    repeats: int = 5,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Median times on made-up tokens, with the adapters as they are now.

    A token's time is what `new_tokens` more tokens take, divided by their number.  A model that does not generate
    gets a prefill time, of one forward, only.
    Raises BadConfig for a count below 1, or prompts that do not fit the model's context.
    """
    _check(model, batch=batch, prompt_tokens=prompt_tokens, new_tokens=new_tokens, repeats=repeats)
    is_generator = model.can_generate()
    ids = _made_up(model, batch, prompt_tokens)

    def timed(tokens: int) -> float:
        begun = clock()
        if is_generator:
            _write(model, ids, tokens)
        else:
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
        _wait(ids.device)
        return clock() - begun

    lengths = (1, 1 + new_tokens) if is_generator else (1,)
    with evaluating(model):
        for _ in range(warmup):
            for length in lengths:
                timed(length)
        rounds = [[timed(length) for length in lengths] for _ in range(repeats)]
    prefill = median(times[0] for times in rounds)
    per_token = median((times[1] - times[0]) / new_tokens for times in rounds) if is_generator else None
    written = f", {new_tokens} new tokens" if is_generator else ""
    return Timing(
        batch=batch,
        prompt_tokens=prompt_tokens,
        prefill_s=prefill,
        per_token_s=None if per_token is None else max(0.0, per_token),
        how=f"median of {repeats} repeats after {warmup} warm-up{written}, {torch.get_num_threads()} threads",
    )


def cache_bytes(model: Any, prompt_tokens: int = 4) -> int:
    """Keys, values and states that a model holds after reading one made-up prompt; 0 for one that keeps none."""
    if not model.can_generate():
        return 0
    settings = GenerationConfig(max_new_tokens=2, min_new_tokens=2, do_sample=False, num_beams=1, pad_token_id=0)
    ids = _made_up(model, 1, prompt_tokens)
    with evaluating(model):
        found = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            return_dict_in_generate=True,
        )
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(found.get("past_key_values"), set()))


def _tensors(part: Any, seen: set[int]) -> Iterator[Tensor]:
    """Every tensor that a cache holds, once, however it is made."""
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _tensors(inner, seen)
    elif isinstance(part, dict):
        yield from _tensors(list(part.values()), seen)
    elif type(part).__module__.startswith("transformers."):
        yield from _tensors(vars(part), seen)


def _check(model: Any, *, batch: int, prompt_tokens: int, new_tokens: int, repeats: int) -> None:
    counts = {"batch": batch, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeats": repeats}
    for name, value in counts.items():
        if value < 1:
            raise BadConfig(f"{name} is {value}; it must be at least 1")
    context = context_of(model)
    if context is not None and prompt_tokens + new_tokens + 1 > context:
        raise BadConfig(
            f"prompt_tokens {prompt_tokens} and new_tokens {new_tokens} do not fit the model's {context}; lower one"
        )


def _made_up(model: Any, batch: int, length: int) -> Tensor:
    """[batch, length] int64 token ids, the same each time, none of them special by the configuration."""
    config = model.config.get_text_config()
    dice = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (batch, length), generator=dice)
    ids[ids == (-1 if config.pad_token_id is None else config.pad_token_id)] = config.vocab_size // 2
    return ids.to(model.device)


def _write(model: Any, ids: Tensor, tokens: int) -> None:
    settings = GenerationConfig(
        max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, num_beams=1, pad_token_id=0
    )
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)


def _wait(device: torch.device) -> None:
    """Work on a device runs behind the program; a clock may be read when it is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
