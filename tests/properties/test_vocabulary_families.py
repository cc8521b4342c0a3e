"""A model with fewer tokens says of those that it keeps what the whole model says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from budwood.prune.vocabulary import Trimmed, trim
from families import AUTO, FAMILIES
from tiny_tokenizers import make_small

TEXTS = ["a place in the city", "What is the name ?"]


def logits(family: str, model: torch.nn.Module, ids: Tensor) -> Tensor:
    extra = {"decoder_input_ids": ids[:, :4]} if FAMILIES[family].kind == "encoder-decoder" else {}
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, **extra).logits
    return found


def assert_equal(was: Tensor, now: Tensor, cut: Trimmed) -> None:
    if was.shape != now.shape:
        was = was[..., torch.tensor(cut.kept)]
    torch.testing.assert_close(now, was, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_kept_tokens_are_the_same_before_and_after_a_reload(family: str, tmp_path: Path) -> None:
    model, tokenizer = FAMILIES[family].build(), make_small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cut = trim(model, tokenizer, TEXTS)
    assert type(cut.model) is type(model)
    assert cut.model.config.get_text_config().vocab_size == len(cut.kept) < 60
    task = next(task for task, auto in AUTO.items() if type(model) in auto._model_mapping.values())
    cut.model.save_pretrained(tmp_path)
    again = AUTO[task].from_pretrained(tmp_path)
    for text in TEXTS:
        was = logits(family, model, tokenizer(text, return_tensors="pt").input_ids)
        new = cut.tokenizer(text, return_tensors="pt").input_ids
        assert_equal(was, logits(family, cut.model, new), cut)
        assert_equal(was, logits(family, again, new), cut)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    shared = {tensor.data_ptr() for tensor in model.parameters()} & {p.data_ptr() for p in cut.model.parameters()}
    assert not shared
