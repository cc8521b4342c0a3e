from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from budwood.errors import BadConfig
from budwood.evaluate import latency
from families import FAMILIES


def ticks(step: float) -> Iterator[float]:
    return (step * tick for tick in count())


def test_a_decoder() -> None:
    model = FAMILIES["llama"].build().train()
    timing = latency(model, batch=2, prompt_tokens=8, new_tokens=4, repeats=3)
    assert timing.prefill_s > 0 and timing.per_token_s is not None and timing.per_token_s >= 0
    assert (timing.batch, timing.prompt_tokens) == (2, 8) and model.training
    assert timing.how.startswith("median of 3 repeats after 1 warm-up, 4 new tokens, ")


def test_it_writes_what_it_says_it_times() -> None:
    """The forwards of one repeat: 1 for the prefill, then 1 + new_tokens; the warm-up the same."""
    model = FAMILIES["llama"].build()
    lengths = []
    model.model.layers[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    latency(model, prompt_tokens=8, new_tokens=4, repeats=2, warmup=1)
    assert lengths == [8, 8, 1, 1, 1, 1] * 3


def test_medians_by_a_clock_that_tells() -> None:
    model = FAMILIES["llama"].build()
    # begin and end of: warm-up (2 runs), then prefill and whole of three repeats
    times = iter([0, 9, 0, 9, *(0, 1, 0, 5), *(0, 2, 0, 4), *(0, 3, 0, 30)])
    timing = latency(model, prompt_tokens=4, new_tokens=4, repeats=3, clock=lambda: float(next(times)))
    assert timing.prefill_s == 2.0 and timing.per_token_s == 1.0  # of 1, 0.5 and 6.75


def test_an_encoder_has_no_token_time() -> None:
    timing = latency(FAMILIES["bert-classify"].build(), prompt_tokens=8, repeats=2)
    assert timing.per_token_s is None and timing.prefill_s > 0


def test_bad_counts() -> None:
    model = FAMILIES["llama"].build()
    with pytest.raises(BadConfig, match="repeats is 0"):
        latency(model, repeats=0)
    with pytest.raises(BadConfig, match="do not fit the model's 64"):
        latency(model, prompt_tokens=60)
