from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from budwood.data import IGNORE, collate
from budwood.errors import BadData
from budwood.fast import loss as fast_loss
from budwood.train.objective import CausalLM, Classify
from families import FAMILIES
from training import PAD, labelled, rows, tiny

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder" and "classify" not in name]


@pytest.mark.parametrize("family", DECODERS)
def test_loss_is_the_sum_over_learned_tokens_of_full_logits(family: str) -> None:
    model = tiny(family)
    batch = collate(rows(4), PAD)
    with torch.no_grad():
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = CausalLM()(model, batch)
    labels = batch.labels
    assert labels is not None
    plain = F.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORE, reduction="sum"
    )
    assert loss.tokens == batch.num_targets == int((labels[:, 1:] != IGNORE).sum())
    torch.testing.assert_close(loss.total, plain, rtol=1e-6, atol=1e-6)


def test_logits_are_asked_for_at_learned_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    batch = collate(rows(3), PAD)
    shapes = []
    handle = model.lm_head.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    CausalLM()(model, batch)
    handle.remove()
    vocabulary = model.config.vocab_size
    first_of_each_row = [(3, 1, vocabulary)] * 2  # shows that the head by itself is all that the model does
    assert [tuple(shape) for shape in shapes] == [*first_of_each_row, (1, vocabulary), (batch.num_targets, vocabulary)]
    assert batch.num_targets < batch.input_ids.numel()


@pytest.mark.parametrize("family", DECODERS)
def test_gradients_of_slices_are_those_of_full_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_loss, "SLICE_BYTES", 4 * 96 * 3)  # three positions a slice
    model, batch = tiny(family).train(), collate(rows(4), PAD)
    torch.manual_seed(0)
    CausalLM()(model, batch).total.backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert batch.labels is not None
    torch.manual_seed(0)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum").backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            torch.testing.assert_close(own[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_classifier_sums_over_rows() -> None:
    model = tiny("bert-classify")
    batch = collate(labelled(5), PAD)
    loss = Classify()(model, batch)
    logits = model(**batch.inputs()).logits
    assert loss.tokens == 5
    torch.testing.assert_close(loss.total, F.cross_entropy(logits, batch.labels, reduction="sum"))


def test_wrong_kind_of_labels_is_refused() -> None:
    with pytest.raises(BadData, match="task causal-lm"):
        CausalLM()(tiny(), collate(labelled(2), PAD))
    with pytest.raises(BadData, match="task classification"):
        Classify()(tiny("bert-classify"), collate(rows(2), PAD))
    with pytest.raises(BadData, match="label 4 .*only 3 classes"):
        Classify()(tiny("bert-classify"), collate(labelled(20, classes=5), PAD))
