"""Packed rows give the loss and the gradients of padded ones, for every method; families that cannot be packed say why.

`engage` compares the two; here its verdicts are frozen, so that no family or method falls back unseen, and its guards
are shown to refuse what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import budwood.core as core
from adapted import VARIANTS, anatomy_of, perturb, weighted
from budwood.core import Method
from budwood.errors import BudwoodError
from budwood.fast import engine, stacks
from budwood.fast.attention import LONGEST, attend_short
from budwood.fast.engine import Fast, engage
from budwood.fast.packing import Packing
from budwood.methods import AdapterH, LoRA
from families import FAMILIES, PAD, VOCABULARY

PADDED = {
    "gemma2": "attention implementation is eager",
    "gptj": "attention implementation is eager",
    "gpt_neo": "attention implementation is eager",
    "bloom": "attention implementation is eager",
    "mpt": "attention implementation is eager",
    "codegen": "attention implementation is eager",
    "deberta-v2": "attention implementation is eager",
    "falcon": "cannot be computed packed",
    "t5": "cannot be computed packed",
    "flan-t5": "cannot be computed packed",
    "albert": "runs several times",
    "mamba": "carry a state",
    "rwkv": "carry a state",
    "jamba": "carry a state",
}
"""Families whose rows stay padded, and why."""
BY_ROW = {
    "unipelt": "weighs what it does to a token by its whole row",
    "stochastic": "weighs what it does to a token by its whole row",
}
METHODS = ("llama", "bert", "gpt_neox", "bart", "granite")


def rows(family: str) -> dict[str, Tensor]:
    """Three rows of 9, 4 and 6 tokens."""
    dice = torch.Generator().manual_seed(3)
    ids = torch.randint(4, VOCABULARY, (3, 9), generator=dice)
    mask = torch.arange(9) < torch.tensor([[9], [4], [6]])
    batch = {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}
    if FAMILIES[family].kind == "encoder-decoder":
        batch["decoder_input_ids"] = torch.randint(4, VOCABULARY, (3, 5), generator=dice)
        batch["decoder_attention_mask"] = (torch.arange(5) < torch.tensor([[5], [5], [2]])).long()
    return batch


def step_of(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
    """A loss of every logit that is not padding's."""
    mask = batch.get("decoder_attention_mask", batch["attention_mask"]).bool()

    def step() -> Tensor:
        logits = model(**batch).logits
        if logits.ndim == 3:  # prompts stand in front
            logits = logits[:, -mask.shape[1] :][mask]
        return weighted(logits.square()).abs()

    return step


def engaged(family: str, method: Method, dtype: torch.dtype = torch.float32) -> Fast:
    model, anatomy = FAMILIES[family].build().to(dtype), anatomy_of(family)
    try:
        core.attach(model, method, name="a", anatomy=anatomy)
    except BudwoodError as refusal:
        pytest.skip(str(refusal))
    perturb(model, "a", 0.1)
    step = step_of(model, rows(family))
    return engage(model, anatomy, step, core.named_parameters(model, "a"), dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_packed_or_says_why_not(family: str) -> None:
    found = engaged(family, LoRA(targets=("all",), rank=2))
    if family in PADDED:
        assert not found.is_packed
        assert PADDED[family] in str(found)
    else:
        assert found.is_packed, str(found)
        assert "off by" in str(found)


@pytest.mark.parametrize("family", METHODS)
@pytest.mark.parametrize("variant", [*VARIANTS, "stochastic"])
def test_every_method_is_packed(family: str, variant: str) -> None:
    method = {**VARIANTS, "stochastic": AdapterH(size=4, stochastic_depth=0.1)}[variant]
    found = engaged(family, method, torch.float64)
    if found.is_packed:
        assert variant not in BY_ROW
    else:
        assert BY_ROW.get(variant, "no reason") in str(found)


def test_nothing_of_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    model, anatomy = FAMILIES["llama"].build(), anatomy_of("llama")
    before = hooks_of(model)
    found = stacks.stacks_of(model, anatomy)
    with pytest.raises(KeyError, match="within"), stacks.packing(model, found):
        assert hooks_of(model) != before
        assert model.config._attn_implementation.startswith("budwood-packed-")
        raise KeyError("within")
    assert hooks_of(model) == before
    assert model.config._attn_implementation == "sdpa"
    assert not any(stacks.SLOT in vars(module) for module in model.modules())


def hooks_of(model: nn.Module) -> list[int]:
    return [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]


def test_a_fast_path_that_is_off_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    true = Packing.pack
    monkeypatch.setattr(Packing, "pack", lambda self, x: true(self, x) * (1.001 if x.is_floating_point() else 1))
    found = engaged("llama", LoRA(rank=2))
    assert not found.is_packed
    assert "packed, on a sample the loss is off by" in str(found)
    assert "at most 0.0001 is rounding" in str(found)


def test_gradients_that_are_missing_or_no_numbers_are_infinitely_far() -> None:
    one = {"a": torch.ones(2)}
    assert engine.distance(one, {}) == float("inf")
    assert engine.distance(one, {"a": torch.full((2,), float("nan"))}) == float("inf")
    assert engine.distance(one, one) == 0.0


def test_rows_without_padding_are_left_as_they_are() -> None:
    assert Packing.of(torch.ones(2, 3, dtype=torch.long)) is None


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2)])
@pytest.mark.parametrize("masked", ["causal", "bool", "number", "none"])
def test_short_rows_attend_as_sdpa_does(heads: int, groups: int, masked: str) -> None:
    module = nn.Module()
    module.is_causal, module.num_key_value_groups = masked == "causal", heads // groups  # type: ignore[assignment]
    dice = torch.Generator().manual_seed(0)
    shapes = [(2, heads, 6, 8), (2, groups, 6, 8), (2, groups, 6, 8)]
    given = [torch.randn(shape, generator=dice, dtype=torch.float64).requires_grad_() for shape in shapes]
    mask = torch.rand(2, 1, 6, 6, generator=dice) < 0.6
    mask[..., 0] = True
    numbers = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e9)
    chosen = {"bool": mask, "number": numbers}.get(masked)
    found = []
    for attend in (attend_short, sdpa_attention_forward):
        out, weights = attend(module, *given, chosen, scaling=0.3)
        assert weights is None
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-9, atol=1e-9)


def test_long_rows_keep_no_probabilities() -> None:
    module = nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    query = torch.randn(1, 1, LONGEST + 1, 4, requires_grad=True)
    assert "Attend" not in type(attend_short(module, query, query, query, None)[0].grad_fn).__name__
