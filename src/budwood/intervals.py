"""How sure a number is: 95 % intervals, by formula where there is one and by bootstrap over rows elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

Z = 1.959963984540054
"""The normal quantile of 97.5 %: every interval here holds 95 %."""

RESAMPLES = 1000
"""How often rows are drawn anew."""

CELLS = 2_000_000
"""Row numbers drawn at a time, which bounds the memory."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a share of n rows (Wilson 1927): [low, high] within [0, 1]."""
    share = successes / n
    centre = share + Z * Z / (2 * n)
    spread = Z * sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def bootstrap(
    statistic: Callable[[Floats], Floats], columns: Floats, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of a statistic of column sums, rows drawn with replacement (Efron 1979).

    columns:   [rows, k] what each row adds to each of k sums
    statistic: sums [draws, k] -> [draws]
    """
    rows, k = columns.shape
    dice = np.random.default_rng(seed)
    values = []
    size = max(1, CELLS // (rows * k))
    for start in range(0, resamples, size):
        chosen = dice.integers(0, rows, size=(min(size, resamples - start), rows))  # [draws, rows]
        values.append(statistic(columns[chosen].sum(axis=1)))  # [draws, rows, k] -> [draws, k] -> [draws]
    return quantiles(np.concatenate(values))


def bootstrap_table(
    statistic: Callable[[Floats], Floats], table: Integers, *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The same for rows that were counted into a table: drawing rows anew is a multinomial draw of its cells.

    table:     counts of any shape
    statistic: tables [draws, *shape] -> [draws]
    """
    n = int(table.sum())
    draws = np.random.default_rng(seed).multinomial(n, table.ravel() / n, size=resamples)
    return quantiles(statistic(draws.reshape(resamples, *table.shape).astype(np.float64)))


def quantiles(values: Floats) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
