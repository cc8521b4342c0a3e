"""Gradient checkpointing gives the same gradients, also when the plan is switched between forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import VARIANTS, adapted, logits, perturb, weighted

FAMILIES = ("llama", "gpt2", "bert", "gpt_neox", "qwen3_moe")


PAIRS = (("lora", "lora-all"), ("adapter-h", "parallel-all"), ("language", "compacter"), ("parallel-heads", "lora-qv"),
         ("prefix-tuning", "lora-all"), ("p-tuning", "adapter-h"), ("prefix-rows", "prompt-front"))  # fmt: skip
"""Adapters a and b; parallel-heads and the like read one module at another."""


def two_adapters(family: str, pair: tuple[str, str] = PAIRS[0]) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, batch = adapted(family, pair[0], "a", perturbed=True)
    core.attach(model, VARIANTS[pair[1]], name="b")
    perturb(model, "b", seed=11)
    return model.train(), batch


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def run(model: nn.Module, batch: dict[str, Tensor], *, switch: bool) -> dict[str, Tensor]:
    """Forward under a, forward under b, and one backward for both, perhaps with a switch to a before it."""
    core.activate(model, core.Stack(("a", "b")))  # both require gradients
    total = torch.zeros(())
    for name in "ab":
        with core.using(model, name):
            total = total + weighted(logits(model, batch))
    if switch:
        with core.using(model, "a"):
            total.backward()
    else:
        total.backward()
    return gradients(model)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    ("family", "pair"),
    [(family, PAIRS[0]) for family in FAMILIES]
    + [
        (family, pair)
        for family in ("llama", "bert", "falcon", "bart", "mixtral")
        for pair in PAIRS[1:]
        if not (family == "falcon" and pair[0].startswith("prefix"))
    ],
    ids=str,
)
def test_plan_switched_before_backward(family: str, pair: tuple[str, str], reentrant: bool) -> None:
    model, batch = two_adapters(family, pair)
    expected = run(model, batch, switch=False)
    assert {name.split(".deltas.")[1][0] for name in expected} == {"a", "b"}

    model, batch = two_adapters(family, pair)
    model.get_input_embeddings().register_forward_hook(require_gradient)  # type: ignore[operator]
    model.activation_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    found = run(model, batch, switch=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5 * max(1.0, float(gradient.abs().max())))


@pytest.mark.parametrize("reentrant", [False, True])
def test_nothing_of_a_recomputation_is_kept(reentrant: bool) -> None:
    """A recomputation stops before h: a residual that was kept for it would hold the graph of its block in memory."""
    model, batch = adapted("llama", "parallel-all", "a", perturbed=True)
    model.train().get_input_embeddings().register_forward_hook(require_gradient)  # type: ignore[operator]
    model.activation_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
    weighted(logits(model, batch)).backward()
    sources = [source for module in model.modules() if isinstance(module, core.Delta) for source in module.sources]
    assert len(sources) == 4
    assert all(source.value is None for source in sources)


def test_nothing_of_a_forward_that_failed_is_kept() -> None:
    """Training goes on with smaller pieces where memory runs out, which needs the memory of the first attempt."""
    model, batch = adapted("llama", "parallel-all", "a", perturbed=True)
    sources = [source for module in model.modules() if isinstance(module, core.Delta) for source in module.sources]
    expected = logits(model, batch)
    last = model.get_submodule("model.layers.1.mlp.down_proj")
    with pytest.raises(RuntimeError), failing(last):
        model(**batch)
    assert [source.value is None for source in sources].count(False) == 1
    left: list[bool] = []
    model.get_input_embeddings().register_forward_hook(  # type: ignore[operator]
        lambda *_: left.extend(source.value is not None for source in sources)
    )
    assert torch.equal(logits(model, batch), expected)
    assert left == [False] * 4


@contextmanager
def failing(module: nn.Module) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise RuntimeError

    handle = module.register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


def require_gradient(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output.requires_grad_() if output.is_leaf else output


def test_detach_gives_the_checkpoint_function_back() -> None:
    model, batch = two_adapters("llama")
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    before = checkpoint_functions(model)
    assert before
    weighted(logits(model, batch)).backward()
    assert checkpoint_functions(model).keys() == before.keys()
    assert all(function is not before[name] for name, function in checkpoint_functions(model).items())
    core.detach(model, "a")
    core.detach(model, "b")
    assert checkpoint_functions(model) == before


def checkpoint_functions(model: nn.Module) -> dict[str, object]:
    slot = "_gradient_checkpointing_func"
    return {name: vars(m)[slot] for name, m in model.named_modules() if slot in vars(m)}
