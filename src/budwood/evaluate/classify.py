"""Classification: predictions from logits, and their scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from budwood.data import Batch
from budwood.errors import BadConfig, BadData
from budwood.evaluate import metrics
from budwood.evaluate.ensemble import Ensemble, combined
from budwood.evaluate.inputs import class_logits
from budwood.evaluate.loss import single_rows
from budwood.evaluate.mode import evaluating
from budwood.intervals import Floats, Integers
from budwood.records import Score


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Predicted classes of rows, in the order the rows came."""

    rows: Integers
    """[rows] the row numbers of the data."""
    labels: Integers
    """[rows] the right classes."""
    predictions: Integers
    """[rows] the classes with the largest logit."""
    logits: np.ndarray
    """[rows, classes] float32."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """accuracy, macro_f1, mcc and loss (cross-entropy in nats per row); each with an interval."""
        return (
            metrics.accuracy(self.predictions, self.labels),
            metrics.macro_f1(self.predictions, self.labels),
            metrics.mcc(self.predictions, self.labels),
            metrics.mean("loss", self.losses, unit="nats per row"),
        )

    @property
    def losses(self) -> Floats:
        """[rows] cross-entropy of each row, in nats."""
        logits = self.logits.astype(np.float64)
        shifted = logits - logits.max(axis=1, keepdims=True)
        chosen = shifted[np.arange(len(self.labels)), self.labels]
        losses: Floats = np.log(np.exp(shifted).sum(axis=1)) - chosen
        return losses

    @property
    def confidences(self) -> Floats:
        """[rows] probability of the predicted class."""
        logits = self.logits.astype(np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        confidences: Floats = weights.max(axis=1) / weights.sum(axis=1)
        return confidences


def classify(model: Any, batches: Iterable[Batch], *, ensemble: Ensemble | None = None) -> Classification:
    """Run a sequence classifier of transformers, or a language model asked by a cloze, over batches of labels [rows].

    ensemble: the adapters whose probabilities are averaged; without it, the model as it is
    Raises BadData if there is no row or a row has no class; BadConfig if the padding of the batches is not what a
    decoder looks for to find a row's last token.
    """
    rows: list[int] = []
    labels: list[Tensor] = []
    found: list[Tensor] = []
    with evaluating(model):
        for batch in batches:
            if batch.labels is None or batch.labels.ndim != 1:
                raise BadData("a batch has no class for each row; encode a corpus of text and label")
            labels.append(batch.labels)
            batch = batch.to(model.device)
            logits = _logits(model, batch, ensemble)  # [rows, classes]
            _check_padding(model, batch, logits, ensemble, is_first=not found)
            rows += batch.rows
            found.append(logits)
    if not rows:
        raise BadData("there are no rows to classify; give at least one")
    logits = torch.cat(found)
    return Classification(
        rows=np.array(rows, np.int64),
        labels=torch.cat(labels).numpy(),
        predictions=logits.argmax(dim=1).cpu().numpy(),
        logits=logits.cpu().numpy(),
    )


def _logits(model: Any, batch: Batch, ensemble: Ensemble | None) -> Tensor:
    """[rows, classes] float32."""
    try:
        logits = combined(class_logits, model, batch, ensemble).float()
    except ValueError as error:
        if model.config.get_text_config().pad_token_id is None:
            raise _no_padding(model, "no pad_token_id") from error
        raise
    if logits.ndim != 2:
        raise BadConfig(
            f"{type(model).__name__} gives logits {tuple(logits.shape)}, not one row of classes for each text; "
            "load the model for classification"
        )
    return logits


def _check_padding(model: Any, batch: Batch, logits: Tensor, ensemble: Ensemble | None, *, is_first: bool) -> None:
    """Decoders take the last token that is not the padding token they know; the batch must pad with that one."""
    known = model.config.get_text_config().pad_token_id
    padding = batch.input_ids[batch.attention_mask == 0]
    if not is_first or batch.places is not None or not len(padding) or bool((padding == known).all()):
        return
    shortest = min(range(len(batch)), key=lambda row: batch.lengths[row])
    alone = _logits(model, list(single_rows(batch))[shortest], ensemble)[0]
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.1
    if not torch.allclose(alone, logits[shortest], rtol=tolerance, atol=tolerance):
        raise _no_padding(model, f"pad_token_id {known} and the batch is padded with {int(padding[0])}")


def _no_padding(model: Any, what: str) -> BadConfig:
    return BadConfig(
        f"{type(model).__name__} has {what}, so it reads padding as text; "
        "set model.config.pad_token_id = tokenizer.pad_token_id"
    )
