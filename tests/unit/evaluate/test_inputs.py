"""What a model is given: decoder inputs, pseudo tokens or none, and the logits of a cloze's words."""

from __future__ import annotations

import pytest
import torch

from budwood.data import Example, collate
from budwood.data.batch import Blank
from budwood.errors import BadConfig
from budwood.evaluate import classify, evaluate_loss, inputs
from budwood.evaluate.inputs import class_logits, fitted
from budwood.evaluate.loss import single_rows
from budwood.train.objective import Classify
from families import FAMILIES, PAD

WORDS = ((0, 7), (9,))


def cloze(*rows: list[int]) -> list[Example]:
    """Rows read at their last token, whatever stands there."""
    return [
        Example(ids=ids, label=number % 2, blank=Blank(len(ids) - 1, WORDS), row=number)
        for number, ids in enumerate(rows)
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "rwkv"])
def test_a_class_is_the_mean_of_its_words_id_0_included(family: str) -> None:
    model = FAMILIES[family].build()
    rows = [[5, 6, 7, 8], [11, 12], [21, 22, 23]]
    batch = collate(cloze(*rows), PAD)
    with torch.no_grad():
        found = class_logits(model, batch)
        alone = [model(torch.tensor([ids])).logits[0, -1] for ids in rows]
    wanted = torch.stack([torch.stack([row[[0, 7]].mean(), row[9]]) for row in alone])
    assert torch.allclose(found, wanted, atol=1e-5)


def test_training_and_evaluation_read_the_same_position() -> None:
    model = FAMILIES["llama"].build()
    batch = collate(cloze([5, 6, 7, 8], [11, 12]), PAD)
    with torch.no_grad():
        trained = Classify()(model, batch).total.item()
    scored = classify(model, [batch])
    assert scored.losses.sum() == pytest.approx(trained, rel=1e-6)
    assert evaluate_loss(model, [batch]).losses.sum() == pytest.approx(trained, rel=1e-6)
    rows = [classify(model, [row]).losses.sum() for row in single_rows(batch)]
    assert sum(rows) == pytest.approx(trained, rel=1e-5)


def test_pseudo_tokens_go_where_nothing_stands_in_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"].build()
    marked = collate(cloze([-1, 5, 6, -2], [-1, 11, 12, 13, -2]), PAD)
    plain = collate(cloze([5, 6], [11, 12, 13]), PAD)
    assert torch.equal(class_logits(model, marked), class_logits(model, plain))
    monkeypatch.setattr(inputs, "pseudo_tokens", lambda model: 2)
    assert fitted(model, marked) is marked
    monkeypatch.setattr(inputs, "pseudo_tokens", lambda model: 1)
    with pytest.raises(BadConfig, match="the pattern has 2 <p> and the adapter 1 pseudo tokens; write 1 <p>"):
        fitted(model, marked)


def test_batches_of_the_other_kind_are_refused() -> None:
    pairs = collate([Example(ids=[5, 6], target=[7, 3], row=0)], PAD)
    with pytest.raises(BadConfig, match="LlamaForCausalLM is no encoder-decoder"):
        fitted(FAMILIES["llama"].build(), pairs)
    t5 = FAMILIES["t5"].build()
    with pytest.raises(BadConfig, match="T5ForConditionalGeneration is an encoder-decoder.*task seq2seq"):
        fitted(t5, collate([Example(ids=[5, 6], labels=[5, 6], row=0)], PAD))
    made = fitted(t5, pairs)
    assert made.decoder_input_ids is not None and made.decoder_input_ids.tolist() == [[0, 7]]
    assert fitted(t5, made) is made
