"""Metrics of classes and of losses: pure functions with 95 % intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from budwood.errors import BadData
from budwood.intervals import Floats, Integers, bootstrap, bootstrap_table, wilson
from budwood.records import Score

Array = NDArray[Any]


def accuracy(predictions: Array, labels: Array) -> Score:
    """Share of rows whose class is right, with Wilson's interval.  predictions, labels: [rows] int.

    Raises BadData, as everything here does, if there are no rows.
    """
    predictions, labels = _paired(predictions, labels)
    return share("accuracy", int((predictions == labels).sum()), len(labels))


def macro_f1(predictions: Array, labels: Array, *, seed: int = 0) -> Score:
    """F1 of each class that occurs in labels or predictions, averaged; bootstrap over rows."""
    return _of_table("macro_f1", _table(predictions, labels), seed)


def mcc(predictions: Array, labels: Array, *, seed: int = 0) -> Score:
    """Matthews correlation for any number of classes (Gorodkin 2004), in [-1, 1]; bootstrap over rows."""
    return _of_table("mcc", _table(predictions, labels), seed)


def mean_loss(losses: Array, tokens: Array, *, seed: int = 0) -> Score:
    """Summed losses over summed tokens, in nats per token; bootstrap over rows.  losses, tokens: [rows]."""
    value, low, high, n = _ratio(losses, tokens, seed)
    return Score(name="loss", value=value, low=low, high=high, n=n, unit="nats per token")


def perplexity(losses: Array, tokens: Array, *, seed: int = 0) -> Score:
    """exp(mean loss), at least 1; the interval is that of the loss, through exp.  losses, tokens: [rows]."""
    value, low, high, n = _ratio(losses, tokens, seed)
    with np.errstate(over="ignore"):  # exp(710) and above is infinity, and that is what it is
        value, low, high = (float(np.exp(number)) for number in (value, low, high))
    return Score(name="perplexity", value=value, low=low, high=high, n=n, unit="perplexity")


def token_accuracy(correct: Array, tokens: Array, *, seed: int = 0) -> Score:
    """Share of tokens predicted right; bootstrap over rows, since the tokens of a row hang together."""
    value, low, high, n = _ratio(correct, tokens, seed)
    return Score(name="token_accuracy", value=value, low=low, high=high, n=n, unit="share of tokens")


def of_sums(name: str, parts: Array, wholes: Array, *, unit: str, seed: int = 0) -> Score:
    """Sum of parts over sum of wholes, bootstrap over rows; 0 in [0, 1] where no row holds anything.  [rows] each."""
    if not np.any(np.asarray(wholes) > 0):
        return Score(name=name, value=0.0, low=0.0, high=1.0, n=len(wholes), unit=unit)
    value, low, high, n = _ratio(parts, wholes, seed)
    return Score(name=name, value=value, low=low, high=high, n=n, unit=unit)


def mean(name: str, values: Array, *, unit: str, seed: int = 0) -> Score:
    """Mean of one value per row; bootstrap over rows."""
    value, low, high, n = _ratio(values, np.ones(len(values)), seed)
    return Score(name=name, value=value, low=low, high=high, n=n, unit=unit)


def share(name: str, right: int, n: int) -> Score:
    """right of n rows, with Wilson's interval."""
    if n == 0:
        raise BadData(f"there are no rows to compute {name} of; give at least one")
    low, high = wilson(right, n)
    return Score(name=name, value=right / n, low=low, high=high, n=n, unit="share of rows")


def f1_of(table: Floats) -> Floats:
    """Macro F1 of tables of counts [..., label, prediction]; classes that a table does not hold are left out."""
    hits = np.diagonal(table, axis1=-2, axis2=-1)  # [..., classes]
    held = table.sum(axis=-1) + table.sum(axis=-2)  # 2 tp + fn + fp
    f1: Floats = np.divide(2 * hits, held, out=np.zeros_like(held), where=held > 0)
    average: Floats = f1.sum(axis=-1) / (held > 0).sum(axis=-1)
    return average


def mcc_of(table: Floats) -> Floats:
    """Matthews correlation of tables of counts [..., label, prediction]; 0 where it is not defined."""
    labels, predictions = table.sum(axis=-1), table.sum(axis=-2)  # [..., classes]
    n = table.sum(axis=(-2, -1))
    right = np.trace(table, axis1=-2, axis2=-1)
    covariance = right * n - (labels * predictions).sum(axis=-1)
    spread = (n * n - (predictions**2).sum(axis=-1)) * (n * n - (labels**2).sum(axis=-1))
    correlation: Floats = np.divide(covariance, np.sqrt(spread), out=np.zeros_like(covariance), where=spread > 0)
    return correlation


TABLES = {"macro_f1": (f1_of, "0 to 1"), "mcc": (mcc_of, "-1 to 1")}


def _of_table(name: str, table: Integers, seed: int) -> Score:
    statistic, unit = TABLES[name]
    value = float(statistic(table.astype(np.float64)))
    low, high = bootstrap_table(statistic, table, seed=seed)
    return Score(name=name, value=value, low=low, high=high, n=int(table.sum()), unit=unit)


def _table(predictions: Array, labels: Array) -> Integers:
    """Counts [label, prediction] over the classes that occur."""
    predictions, labels = _paired(predictions, labels)
    classes, places = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    rows, columns = places[: len(labels)], places[len(labels) :]
    counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
    table: Integers = counts.reshape(len(classes), len(classes))
    return table


def _paired(predictions: Array, labels: Array) -> tuple[Array, Array]:
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1:
        raise BadData(f"predictions {predictions.shape} for labels {labels.shape}; give one class for each row")
    if not len(labels):
        raise BadData("there are no rows to score; give at least one")
    return predictions, labels


def _ratio(parts: Array, wholes: Array, seed: int) -> tuple[float, float, float, int]:
    """(sum of parts / sum of wholes, its interval, rows); rows that hold nothing are left out."""
    columns = np.stack([np.asarray(parts, np.float64), np.asarray(wholes, np.float64)], axis=1)  # [rows, 2]
    columns = columns[columns[:, 1] > 0]
    if not len(columns):
        raise BadData("no row holds anything to score; give rows with labels")
    low, high = bootstrap(lambda sums: sums[:, 0] / sums[:, 1], columns, seed=seed)
    total = columns.sum(axis=0)
    return float(total[0] / total[1]), low, high, len(columns)
