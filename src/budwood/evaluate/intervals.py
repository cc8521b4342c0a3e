"""How sure a number is: 95 % intervals, by formula where there is one and by bootstrap over rows elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL = 0.95
RESAMPLES = 1000


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927), in [0, 1]."""
    raise NotImplementedError


def bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    columns: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Percentile interval of a statistic of column sums, rows drawn with replacement (Efron 1979).

    columns:   [rows, k] what each row adds to each of k sums
    statistic: sums [resamples, k] -> [resamples]
    """
    raise NotImplementedError
