from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from budwood.core import attach, using
from budwood.data import IGNORE, Batch, Example, collate
from budwood.errors import BadConfig, BadData, Diverged
from budwood.evaluate import LossReport, evaluate_loss
from budwood.evaluate.head import head_of
from budwood.methods import LoRA
from families import FAMILIES, PAD, VOCABULARY

DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder" and "classify" not in name]
ENCODERS = [name for name, family in FAMILIES.items() if family.kind == "encoder" and "classify" not in name]


def batches(
    *, seed: int = 0, rows: int = 5, size: int = 2, same_length: bool = False, side: Any = "right"
) -> list[Batch]:
    dice = torch.Generator().manual_seed(seed)
    examples = []
    for row in range(rows):
        length = 9 if same_length else 4 + 2 * row
        ids = torch.randint(4, VOCABULARY, (length,), generator=dice).tolist()
        learned = [0, 0, *[1] * (length - 3 - row % 2), *[0] * (1 + row % 2)]
        labels = [token if keep else IGNORE for token, keep in zip(ids, learned, strict=True)]
        examples.append(Example(ids=ids, labels=labels, row=10 + row))
    groups = [examples[start : start + size] for start in range(0, rows, size)]
    return [collate(group, PAD, side) for group in groups]


def expected(model: Any, given: list[Batch], *, shift: bool = True) -> tuple[list[float], list[int], list[int]]:
    """Of each row: loss, tokens, right ones, from all logits of the row, one position after the other."""
    losses, tokens, correct = [], [], []
    for batch in given:
        for row, length in enumerate(batch.lengths):
            assert batch.labels is not None
            inputs = {"input_ids": batch.input_ids[row : row + 1, :length]}
            with torch.no_grad():
                logits = model(**inputs, attention_mask=torch.ones(1, length, dtype=torch.int64)).logits[0].float()
            labels = batch.labels[row, :length].tolist()
            places = [t for t in range(int(shift), length) if labels[t] != IGNORE]
            log = logits.log_softmax(-1)
            losses.append(-sum(float(log[t - shift, labels[t]]) for t in places))
            tokens.append(len(places))
            correct.append(sum(int(logits[t - shift].argmax()) == labels[t] for t in places))
    return losses, tokens, correct


def assert_right(report: LossReport, model: Any, given: list[Batch], *, shift: bool = True) -> None:
    losses, tokens, correct = expected(model, given, shift=shift)
    np.testing.assert_allclose(report.losses, losses, rtol=2e-5)
    assert report.tokens.tolist() == tokens and report.correct.tolist() == correct
    assert report.rows.tolist() == [row for batch in given for row in batch.rows]


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_by_the_chunked_head(name: str) -> None:
    model = FAMILIES[name].build()
    given = batches(same_length=FAMILIES[name].is_stateful)
    report = evaluate_loss(model, given, chunk_tokens=3)
    assert report.route == "chunked head"
    assert_right(report, model, given)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_masked_encoder_by_the_chunked_head(name: str) -> None:
    model = FAMILIES[name].build()
    given = batches()
    report = evaluate_loss(model, [replace(batch, shift=False) for batch in given])
    assert report.route == "chunked head"
    assert_right(report, model, given, shift=False)


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
def test_the_mean_is_the_models_own_loss(name: str) -> None:
    model = FAMILIES[name].build()
    (batch,) = batches(rows=3, size=3)
    with torch.no_grad():
        own = model(**batch.inputs(), labels=batch.labels).loss
    assert evaluate_loss(model, [batch]).loss.value == pytest.approx(float(own), rel=1e-5)


def test_soft_caps_and_scales_matter_here() -> None:
    """The families that cap and scale do so enough for a head that forgot it to be caught."""
    for name in ("gemma2", "granite", "cohere"):
        model = FAMILIES[name].build()
        head = head_of(model)
        assert head is not None
        with torch.no_grad():
            captured = head.capture(batches()[0].inputs())
            assert captured is not None
            hidden = captured.hidden * 40  # where a cap of 30 bends
            assert not torch.allclose(head.module(hidden), head.tail(head.module(hidden)), rtol=1e-3)


class Odd(nn.Module):
    """A head that looks at all positions: no one may call it with some of them."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self.weight = inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + torch.linspace(0, 1, x.shape[1])[None, :, None] * torch.arange(VOCABULARY)


def test_a_head_that_is_not_position_wise_goes_the_plain_way() -> None:
    model = FAMILIES["llama"].build()
    model.set_output_embeddings(Odd(model.get_output_embeddings()))
    given = batches()
    report = evaluate_loss(model, given)
    assert report.route == "plain forward"
    assert_right(report, model, given)


def test_a_model_that_does_more_to_its_logits_goes_the_plain_way() -> None:
    model = FAMILIES["llama"].build()

    def bend(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = output.logits**3
        return output

    model.register_forward_hook(bend)
    given = batches()
    report = evaluate_loss(model, given)
    assert report.route == "plain forward"
    assert_right(report, model, given)


def test_what_changes_after_the_first_batch_is_noticed() -> None:
    model = FAMILIES["llama"].build()
    calls = []

    def bend(module: nn.Module, args: Any, output: Any) -> Any:
        calls.append(1)
        if len(calls) > 4:  # the first row both ways, the first batch, and one more
            output.logits = output.logits * 2
        return output

    handle = model.register_forward_hook(bend)
    report = evaluate_loss(model, batches())
    handle.remove()
    assert report.route == "plain forward" and len(calls) > 4


def test_adapters_stay_in_force_wherever_they_are() -> None:
    model = FAMILIES["llama"].build()
    given = batches()
    base = evaluate_loss(model, given)
    attach(model, LoRA(targets=("attn.q", "mlp.down", "head.lm"), rank=2), name="a")
    for name, parameter in model.named_parameters():
        if ".deltas." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted = evaluate_loss(model, given)
    assert adapted.route == "chunked head"
    assert_right(adapted, model, given)
    assert not np.allclose(adapted.losses, base.losses, rtol=1e-3)
    with using(model, None):
        np.testing.assert_allclose(evaluate_loss(model, given).losses, base.losses, rtol=1e-7)


def test_a_soft_prompt_in_front_is_not_labelled() -> None:
    """A hook on the model's inputs puts three embeddings in front, as prompt tuning does."""
    model = FAMILIES["llama"].build()
    prompt = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1)) * 0.5

    def lengthen(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        ids, mask = kwargs.pop("input_ids"), kwargs.pop("attention_mask")
        embedded = model.get_input_embeddings()(ids)
        kwargs["inputs_embeds"] = torch.cat([prompt.expand(len(ids), -1, -1), embedded], dim=1)
        kwargs["attention_mask"] = torch.cat([mask.new_ones(len(ids), 3), mask], dim=1)
        return args, kwargs

    given = batches()
    plain = evaluate_loss(model, given)
    model.register_forward_pre_hook(lengthen, with_kwargs=True)
    report = evaluate_loss(model, given)
    assert report.route == "chunked head" and report.tokens.tolist() == plain.tokens.tolist()
    assert not np.allclose(report.losses, plain.losses, rtol=1e-3)
    batch = given[0]
    assert batch.labels is not None
    with torch.no_grad():
        logits = model(**batch.inputs()).logits[:, 3:]
    own = nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2), batch.labels[:, 1:], reduction="none", ignore_index=IGNORE
    ).sum(1)
    np.testing.assert_allclose(report.losses[:2], own.numpy(), rtol=1e-5)


def test_bfloat16_and_autocast() -> None:
    model = FAMILIES["llama"].build()
    given = batches()
    exact = evaluate_loss(model, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = evaluate_loss(model, given)
    half = evaluate_loss(model.to(torch.bfloat16), given)
    for report in (cast, half):
        assert report.route == "chunked head"
        np.testing.assert_allclose(report.losses, exact.losses, rtol=2e-2)
        assert not np.array_equal(report.losses, exact.losses)


def test_autocast_inside_the_models_forward() -> None:
    """As accelerate does it: forward enters autocast by itself and widens what comes out."""
    model = FAMILIES["llama"].build()
    inner = model.model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = inner(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.float()
        return output

    exact = evaluate_loss(model, batches())
    model.model.forward = forward
    report = evaluate_loss(model, batches())
    assert report.route == "chunked head"
    np.testing.assert_allclose(report.losses, exact.losses, rtol=2e-2)


@pytest.mark.parametrize("name", ["bert-classify", "llama-classify", "gpt2-classify"])
def test_classifiers(name: str) -> None:
    model = FAMILIES[name].build()
    rows = [Example(ids=[5, 6, 7, 8][: 2 + row], label=row, row=row) for row in range(3)]
    report = evaluate_loss(model, [collate(rows, PAD)])
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row.ids])).logits for row in rows])
    own = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]), reduction="none")
    np.testing.assert_allclose(report.losses, own.numpy(), rtol=1e-4)
    assert report.route == "class logits" and report.tokens.tolist() == [1, 1, 1]


def test_modes_gradients_and_hooks_are_as_before() -> None:
    model = FAMILIES["llama"].build().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    evaluate_loss(model, batches())
    assert [module.training for module in model.modules()] == before
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state) and torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_leaves_no_hook() -> None:
    model = FAMILIES["llama"].build().train()
    bad = collate([Example(ids=[VOCABULARY + 5] * 4, labels=[4] * 4, row=0)], PAD)
    with pytest.raises(IndexError):
        evaluate_loss(model, [bad])
    assert model.training and not model.get_output_embeddings()._forward_pre_hooks


def test_dropout_is_off() -> None:
    model = FAMILIES["gpt2"].build().train()
    assert np.array_equal(evaluate_loss(model, batches()).losses, evaluate_loss(model, batches()).losses)


def test_the_logits_of_a_batch_are_never_held() -> None:
    model = FAMILIES["llama"].build()
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out.shape[0] * out.shape[1]))
    (batch,) = batches(rows=6, size=6, same_length=True)
    evaluate_loss(model, [batch], chunk_tokens=4)
    whole = batch.input_ids.numel()
    # one row of the first batch goes the plain way, to be compared
    assert sorted(seen)[-1] == 9 < whole and seen.count(9) == 1 and sorted(seen)[-2] <= 6


def test_examples_of_one_row_are_added_up() -> None:
    model = FAMILIES["llama"].build()
    examples = [Example(ids=[4, 5, 6 + i], labels=[IGNORE, IGNORE, 6 + i], row=i // 2) for i in range(4)]
    report = evaluate_loss(model, [collate(examples, PAD)])
    rows, losses, tokens, _ = report.by_row()
    assert rows.tolist() == [0, 1] and tokens.tolist() == [2, 2]
    np.testing.assert_allclose(losses, report.losses.reshape(2, 2).sum(1))
    assert report.loss.n == 2
    assert report.perplexity.value == pytest.approx(np.exp(report.loss.value))
    assert report.token_accuracy.value == pytest.approx(report.correct.sum() / 4)


def test_rows_without_labels_say_nothing_and_decide_nothing() -> None:
    model = FAMILIES["llama"].build()
    model.set_output_embeddings(Odd(model.get_output_embeddings()))
    masked = collate([Example(ids=[4, 5, 6], labels=[IGNORE] * 3, row=0)], PAD)
    report = evaluate_loss(model, [masked, *batches()])
    assert report.route == "plain forward" and report.tokens[0] == 0
    assert_right(report, model, [masked, *batches()])


def test_a_generator_of_batches_is_enough() -> None:
    def once() -> Iterator[Batch]:
        yield from batches()

    assert len(evaluate_loss(FAMILIES["llama"].build(), once()).rows) == 5


def test_nothing_labelled() -> None:
    model = FAMILIES["llama"].build()
    masked = collate([Example(ids=[4, 5], labels=[IGNORE, IGNORE], row=0)], PAD)
    for given in ([], [masked]):
        with pytest.raises(BadData, match=r"nothing in these batches is labelled.*answers or labels"):
            evaluate_loss(model, given)
    with pytest.raises(BadData, match="without labels"):
        evaluate_loss(model, [collate([Example(ids=[4, 5], row=0)], PAD)])


def test_encoder_decoders_are_refused_by_name() -> None:
    with pytest.raises(BadConfig, match="T5ForConditionalGeneration is an encoder-decoder"):
        evaluate_loss(FAMILIES["t5"].build(), batches())


def test_damaged_weights_are_named() -> None:
    model = FAMILIES["llama"].build()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(Diverged, match=r"layers\.0\.mlp\.up_proj\.weight holds NaN"):
        evaluate_loss(model, batches())
