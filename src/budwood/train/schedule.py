"""The learning rate over a run: a pure function of how far it is, so there is nothing to save or to restore."""

from __future__ import annotations

import math

from budwood.train.config import Budget, TrainConfig


def progress(budget: Budget, total_steps: int | None, step: int, seconds: float) -> float:
    """The share of the run that is behind, in [0, 1]: steps where they are counted, seconds where time is."""
    done = seconds / budget.amount if total_steps is None else step / total_steps
    return min(1.0, done)


def rate_factor(config: TrainConfig, share: float, step: int, total_steps: int | None) -> float:
    """What the peak learning rate is multiplied by at `step` (counted from 0), in (0, 1].

    share  the run's progress before this step

    Warm-up rises in equal parts and reaches 1 at its last step; a step never runs at a rate of zero.
    """
    if config.warmup >= 1 or total_steps is not None:
        warm_steps = config.warmup if config.warmup >= 1 else config.warmup * (total_steps or 0)
        warmed = (step + 1) / (math.ceil(warm_steps) + 1) if step < warm_steps else 1.0
        warm_share = warm_steps / total_steps if total_steps else 0.0
    else:
        warmed = min(1.0, share / config.warmup + 0.05) if config.warmup else 1.0
        warm_share = config.warmup
    if warmed < 1.0:
        return warmed
    return _decayed(config.schedule, (share - warm_share) / max(1e-9, 1.0 - warm_share))


def _decayed(schedule: str, share: float) -> float:
    """The factor after warm-up, `share` in [0, 1] of the way to the end."""
    share = min(1.0, max(0.0, share))
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return max(1e-3, 0.5 * (1.0 + math.cos(math.pi * share)))
    return max(1e-3, 1.0 - share)
