"""Adapted models compile without graph breaks; plans change without piling up graphs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import budwood.core as core
from adapted import VARIANTS, adapted, close, logits, perturb
from budwood.errors import WrongOrder
from budwood.methods import Fusion
from families import FAMILIES


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def slow(*case: str) -> object:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("llama", "lora-qv"), slow("llama", "lora-dora"), slow("llama", "lora-pissa"), slow("llama", "ia3"),
        slow("bert", "adapter-p"),
        slow("llama", "adapter-h-ln"), slow("llama", "language"), slow("falcon", "parallel-all"),
        slow("gpt2", "parallel-heads"), slow("llama", "parallel-before"), slow("llama", "compacter"),
        slow("llama", "linear-adapter"), slow("bert", "adapter-h-norms"),
        slow("llama", "prefix-tuning"), slow("bert", "p-tuning-v2"), slow("gpt2", "prefix-rows"),
        slow("t5", "prefix-tuning"),
        slow("llama", "prompt-tuning"), slow("bert", "p-tuning-mlp"), slow("bert", "prompt-front"),
        slow("bert", "unipelt"), slow("llama", "unipelt"), slow("llama", "mam"),
        slow("gpt2", "lora-qv"), slow("gpt2", "bitfit"), slow("bert", "lora"),
    ],
)  # fmt: skip
def test_one_graph(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    with torch.no_grad():
        expected = logits(model, batch)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert close(logits(compiled, batch), expected, 1e-5)  # type: ignore[arg-type]


@pytest.mark.slow
def test_graphs_when_plans_change() -> None:
    model, batch = adapted("llama", "lora", "a", perturbed=True)
    core.attach(model, VARIANTS["lora-all"], name="b")
    perturb(model, "b", seed=5)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    plans: list[core.Plan] = ["a", "b", None, core.Stack(("a", "b"))]
    for plan in [*plans, *plans]:  # the second round compiles nothing new
        with torch.no_grad(), core.using(compiled, plan):  # type: ignore[arg-type]
            found = logits(compiled, batch)  # type: ignore[arg-type]
            assert close(found, logits(model, batch), 1e-5)
    assert counter.frame_count == len(plans)


def test_new_rows_reuse_the_graph() -> None:
    model, batch = adapted("llama", "lora-qv", "a", perturbed=True)
    core.attach(model, VARIANTS["lora-qv"], name="b")
    perturb(model, "b", seed=5)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for rows in ([0, 1], [1, 0], [1, 1], [0, 0]):
        route = core.Route(("a", "b"), torch.tensor(rows))
        with torch.no_grad(), core.using(model, route):
            assert close(logits(compiled, batch), logits(model, batch), 1e-5)  # type: ignore[arg-type]
    assert counter.frame_count == 1


def test_attach_after_compile_is_refused() -> None:
    compiled = torch.compile(FAMILIES["llama"].build())
    with pytest.raises(WrongOrder, match="attach first"):
        core.attach(compiled, VARIANTS["lora"], name="a")  # type: ignore[arg-type]


@pytest.mark.slow
def test_compositions_are_one_graph_each() -> None:
    model, batch = adapted("bert", "adapter-p", "a", perturbed=True)
    for name, variant in (("b", "parallel-all"), ("c", "lora-qv")):
        core.attach(model, VARIANTS[variant], name=name)
        perturb(model, name, seed=ord(name))
    core.attach(model, Fusion(of=("a", "b", "c")), name="f")
    perturb(model, "f", 0.05)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    plans: list[core.Plan] = [
        core.Fuse(("a", "b", "c"), by="f"),
        core.Skip(core.Sum(("a", "b"), (0.5, 2.0)), (0,)),
        core.Stack((core.Sum(("a", "c")), "b")),
    ]
    for plan in [*plans, *plans]:
        with torch.no_grad(), core.using(model, plan):
            assert close(logits(compiled, batch), logits(model, batch), 1e-5)  # type: ignore[arg-type]
    assert counter.frame_count == len(plans)
