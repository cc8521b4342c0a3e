"""Metrics of classes and of losses: pure functions with intervals."""

from __future__ import annotations

import numpy as np

from budwood.records import Score


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> Score:
    """Share of rows whose class is right, with Wilson's interval.  predictions, labels: [rows] int."""
    raise NotImplementedError


def macro_f1(predictions: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Score:
    """F1 of each class that occurs in labels or predictions, averaged; bootstrap over rows."""
    raise NotImplementedError


def mcc(predictions: np.ndarray, labels: np.ndarray, *, seed: int = 0) -> Score:
    """Matthews correlation for any number of classes (Gorodkin 2004), in [-1, 1]; bootstrap over rows."""
    raise NotImplementedError


def mean_loss(losses: np.ndarray, tokens: np.ndarray, *, seed: int = 0) -> Score:
    """Summed losses over summed tokens, in nats per token; bootstrap over rows.  losses, tokens: [rows]."""
    raise NotImplementedError


def perplexity(losses: np.ndarray, tokens: np.ndarray, *, seed: int = 0) -> Score:
    """exp(`mean_loss`)."""
    raise NotImplementedError
