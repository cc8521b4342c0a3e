from __future__ import annotations

import numpy as np
import pytest
import torch

from budwood.data import Batch, Example, collate
from budwood.errors import BadConfig, BadData
from budwood.evaluate import Classification, classify
from families import FAMILIES, PAD

CLASSIFIERS = [name for name in FAMILIES if name.endswith("-classify")]


def examples(count: int = 7) -> list[Example]:
    dice = torch.Generator().manual_seed(2)
    return [
        Example(ids=torch.randint(4, 96, (3 + row,), generator=dice).tolist(), label=row % 3, row=20 + row)
        for row in range(count)
    ]


def batches(size: int = 3, pad: int = PAD) -> list[Batch]:
    rows = examples()
    return [collate(rows[start : start + size], pad) for start in range(0, len(rows), size)]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_batches_say_what_rows_say(name: str) -> None:
    model = FAMILIES[name].build().train()
    found = classify(model, batches())
    assert model.training
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row.ids])).logits for row in examples()]).numpy()
    np.testing.assert_allclose(found.logits, alone, rtol=1e-4, atol=1e-5)
    assert found.predictions.tolist() == alone.argmax(1).tolist()
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2, 0] and found.rows.tolist() == list(range(20, 27))


def test_scores_losses_and_confidences() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [900.0, 0.0], [0.0, 3.0]], np.float32)
    labels = np.array([0, 1, 1, 1])
    found = Classification(rows=np.arange(4), labels=labels, predictions=logits.argmax(1), logits=logits)
    named = {score.name: score for score in found.scores}
    assert named["accuracy"].value == 0.75
    assert named["macro_f1"].value == pytest.approx((2 / 3 + 4 / 5) / 2)
    # of class 1: 2 true positives, 1 true negative, no false positive, 1 false negative
    assert named["mcc"].value == pytest.approx((2 * 1 - 0 * 1) / np.sqrt((2 + 0) * (2 + 1) * (1 + 0) * (1 + 1)))
    own = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels), reduction="none")
    np.testing.assert_allclose(found.losses, own.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.confidences, torch.tensor(logits).softmax(1).max(1).values.numpy(), rtol=1e-6)


def test_padding_that_a_decoder_takes_for_text_is_refused() -> None:
    model = FAMILIES["llama-classify"].build()
    with pytest.raises(BadConfig, match=r"pad_token_id 1 and the batch is padded with 7.*tokenizer.pad_token_id"):
        classify(model, batches(pad=7))
    model.config.pad_token_id = None
    with pytest.raises(BadConfig, match="no pad_token_id.*model.config.pad_token_id = tokenizer.pad_token_id"):
        classify(model, batches())


def test_encoders_do_not_mind_the_padding_token() -> None:
    model = FAMILIES["distilbert-classify"].build()
    np.testing.assert_allclose(
        classify(model, batches(pad=7)).logits, classify(model, batches()).logits, rtol=1e-4, atol=1e-5
    )


def test_bad_input() -> None:
    model = FAMILIES["bert-classify"].build()
    with pytest.raises(BadData, match="no rows to classify"):
        classify(model, [])
    with pytest.raises(BadData, match="no class for each row"):
        classify(model, [collate([Example(ids=[4, 5], row=0)], PAD)])
    with pytest.raises(BadConfig, match=r"LlamaForCausalLM gives logits \(1, 2, 96\).*for classification"):
        classify(FAMILIES["llama"].build(), [collate([Example(ids=[4, 5], label=0, row=0)], PAD)])
