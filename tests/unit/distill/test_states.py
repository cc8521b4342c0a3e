from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from budwood.anatomy import discover
from budwood.core import attach, named_parameters
from budwood.distill.relations import minilm, relation_loss
from budwood.distill.states import (
    StateMatch,
    attention_error,
    cosine_states,
    last,
    squared_states,
    uniform,
)
from budwood.distill.watch import QKV, Seen, Wanted, watching
from budwood.errors import BadConfig, BadData, WrongOrder
from budwood.methods import LoRA, PrefixTuning, PromptTuning
from families import FAMILIES, SMALL

MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
EVERYTHING = Wanted(states=(0, 1, 2), projections=(2,), attentions=(1,))


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def text_of(family: str) -> Tensor:
    return FAMILIES[family].batch()["attention_mask"].bool()


# ---- maps


def test_uniform_maps() -> None:
    assert uniform(3, 12) == {0: 0, 1: 4, 2: 8, 3: 12}
    assert uniform(6, 12)[5] == 10 and uniform(4, 6) == {0: 0, 1: 2, 2: 3, 3: 5, 4: 6}
    assert uniform(4, 30) == {layer: int(layer * 30 / 4 + 0.5) for layer in range(5)}


def test_last_maps() -> None:
    assert last(6, 12) == {6: 12} and last(6, 12, 3) == {4: 10, 5: 11, 6: 12}
    with pytest.raises(BadConfig, match="say 1 to 6"):
        last(6, 12, 7)


# ---- watching


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox", "qwen3_moe", "roberta-classify", "opt"])
def test_states_are_those_that_transformers_gives(family: str) -> None:
    model: Any = FAMILIES[family].build()
    model.set_attn_implementation("eager")
    batch, before = FAMILIES[family].batch(), hooks(model)
    anatomy = discover(model)
    with watching(model, anatomy, EVERYTHING) as seen:
        model(**batch)
    assert hooks(model) == before
    own = model(**batch, output_hidden_states=True, output_attentions=True)
    for layer in (0, 1):  # the last of transformers' comes after the final norm
        assert torch.equal(seen.states[layer], own.hidden_states[layer])
    assert torch.equal(seen.attentions[1], own.attentions[0])
    assert {role: x.shape[:2] for role, x in seen.projections[2].items()} == dict.fromkeys(QKV, (2, 7))


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_stacks_of_an_encoder_decoder(family: str, stack: str) -> None:
    model: Any = FAMILIES[family].build()
    model.set_attn_implementation("eager")
    batch = FAMILIES[family].batch()
    anatomy = discover(model)
    with watching(model, anatomy, replace(EVERYTHING, stack=stack)) as seen:
        model(**batch)
    own = model(**batch, output_hidden_states=True, output_attentions=True)
    assert torch.equal(seen.states[1], own[f"{stack}_hidden_states"][1])
    assert torch.equal(seen.attentions[1], own[f"{stack}_attentions"][0])
    with (
        pytest.raises(BadConfig, match="this model has encoder and decoder: say which"),
        watching(model, anatomy, EVERYTHING),
    ):
        pass


def test_rows_of_a_fused_projection_are_its_queries_keys_and_values() -> None:
    """GPT-NeoX has them head by head: sizes 8, three to a head."""
    model, batch = FAMILIES["gpt_neox"].build(), FAMILIES["gpt_neox"].batch()
    module = model.get_submodule("gpt_neox.layers.1.attention.query_key_value")
    kept: list[Tensor] = []
    module.register_forward_hook(lambda _, __, y: kept.append(y))
    with watching(model, discover(model), Wanted(projections=(2,))) as seen:
        model(**batch)
    heads = kept[-1].unflatten(-1, (4, 3, 8))  # [B, S, heads, 3, size]
    for number, role in enumerate(QKV):
        assert torch.equal(seen.projections[2][role], heads[..., number, :].flatten(-2))


@pytest.mark.parametrize("family", SMALL)
def test_gradients_for_a_student_and_none_for_a_teacher(family: str) -> None:
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    anatomy = discover(model)
    wanted = Wanted(states=(1,), projections=(1,), stack="encoder" if "decoder_input_ids" in batch else "")
    with watching(model, anatomy, wanted) as seen:
        model(**batch)
    assert seen.states[1].requires_grad and all(x.requires_grad for x in seen.projections[1].values())
    with torch.no_grad(), watching(model, anatomy, wanted) as seen:
        model(**batch)
    assert not seen.states[1].requires_grad


def test_what_an_adapter_changes_is_seen() -> None:
    model, batch = FAMILIES["llama"].build(), FAMILIES["llama"].batch()
    wanted, anatomy = Wanted(projections=(1,)), discover(model)
    with watching(model, anatomy, wanted) as base:
        model(**batch)
    attach(model, LoRA(rank=2, targets=("attn.k",)), name="a")
    for parameter in named_parameters(model, "a").values():
        parameter.data.add_(torch.randn_like(parameter))
    with watching(model, anatomy, wanted) as changed:
        model(**batch)
    assert torch.equal(base.projections[1]["attn.q"], changed.projections[1]["attn.q"])
    assert not torch.allclose(base.projections[1]["attn.k"], changed.projections[1]["attn.k"])


@pytest.mark.parametrize(("family", "place"), [("llama", "front"), ("bert", "after-first")])
def test_of_a_model_with_a_prompt_the_text_alone(family: str, place: Any) -> None:
    """The same positions as of a teacher without one: as many, and those that stand at the end of the stack."""
    model: Any = FAMILIES[family].build()
    batch = FAMILIES[family].batch()
    attach(model, PromptTuning(length=3, place=place, trained=()), name="a")
    anatomy = discover(FAMILIES[family].build())
    with watching(model, anatomy, Wanted(states=(0, 2), projections=(1,))) as seen:
        inside = model.base_model(**batch)[0]
    assert seen.states[0].shape == seen.states[2].shape == (2, 7, 32)
    assert all(x.shape[1] == 7 for x in seen.projections[1].values())
    final = seen.states[2] if family == "bert" else model.model.norm(seen.states[2])
    torch.testing.assert_close(final, inside)


def test_attention_with_prefixes_is_refused() -> None:
    model: Any = FAMILIES["bert"].build()
    model.set_attn_implementation("eager")
    anatomy = discover(model)
    attach(model, PrefixTuning(length=3), name="a")
    with watching(model, anatomy, Wanted(attentions=(1,))) as seen:
        model(**FAMILIES["bert"].batch())
    with pytest.raises(BadConfig, match="the student attends from 7 to 10 positions and the text has 7"):
        attention_error(seen.attentions[1], torch.zeros(2, 4, 7, 7), text_of("bert"))


@pytest.mark.parametrize("layer", ["states", "projections"])
def test_gradient_checkpointing_changes_no_gradient(layer: str) -> None:
    found = []
    for checkpoints in (False, True):
        model: Any = FAMILIES["llama"].build()
        if checkpoints:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with watching(model, discover(model), Wanted(states=(1,), projections=(2,))) as seen:
            model(**FAMILIES["llama"].batch())
        value = seen.states[1] if layer == "states" else seen.projections[2]["attn.v"]
        value.square().sum().backward()  # type: ignore[no-untyped-call]
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 8
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_reentrant_checkpoints_are_refused() -> None:
    model: Any = FAMILIES["llama"].build()
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(WrongOrder, match="use_reentrant"), watching(model, discover(model), Wanted(projections=(1,))):
        model(**FAMILIES["llama"].batch())


def test_what_cannot_be_watched_is_refused() -> None:
    llama, albert, mla = (FAMILIES[name].build() for name in ("llama", "albert", "deepseek_v2"))
    anatomy, batch = discover(llama), FAMILIES["llama"].batch()
    with pytest.raises(WrongOrder, match="no forward passed layer 1"), watching(llama, anatomy, Wanted(states=(1,))):
        pass
    with pytest.raises(WrongOrder, match="more than once"), watching(llama, anatomy, Wanted(states=(1,))):
        llama(**batch)
        llama(**batch)
    with (
        pytest.raises(WrongOrder, match="more than once.*ALBERT"),
        watching(albert, discover(albert), Wanted(states=(1,))),
    ):
        albert(**FAMILIES["albert"].batch())
    with pytest.raises(BadConfig, match="layers 1 to 2"), watching(llama, anatomy, Wanted(states=(3,))):
        pass
    with (
        pytest.raises(BadConfig, match=r"layer 1 .* has no attn\.q"),
        watching(mla, discover(mla), Wanted(projections=(1,))),
    ):
        pass
    with (
        pytest.raises(BadConfig, match=r"set_attn_implementation\('eager'\)"),
        watching(llama, anatomy, Wanted(attentions=(1,))),
    ):
        llama(**batch)
    assert not hooks(llama) and not hooks(albert) and not hooks(mla)


# ---- distances


def test_states_by_hand() -> None:
    student, teacher = torch.zeros(2, 4, 3), torch.zeros(2, 4, 3)
    student[0, 0], teacher[0, 0] = torch.tensor([3.0, 0, 0]), torch.tensor([0, 4.0, 0])
    student[0, 1] = teacher[0, 1] = torch.tensor([0, 0, 2.0])
    student[1, 3] = 1e6  # padding
    mask = torch.tensor([[True, True, False, False], [False, False, False, False]])
    assert float(squared_states(student, teacher, mask)) == pytest.approx((9 + 16) / 6)
    assert float(cosine_states(student, teacher, mask)) == pytest.approx(0.5)


def test_attention_by_hand() -> None:
    student, teacher = torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4)
    student[1, 0, 0, 1] = 0.6
    student[1, 1, 3, 3] = student[1, 1, 0, 3] = 9.0  # padding
    assert float(attention_error(student, teacher, MASK)) == pytest.approx(0.36 / (2 * (16 + 4)))


def test_a_match_projects_where_widths_differ() -> None:
    pairs = uniform(2, 4)
    student = Seen(states={layer: torch.randn(2, 4, 6, requires_grad=True) for layer in pairs})
    teacher = Seen(states={layer: torch.randn(2, 4, 10) for layer in pairs.values()})
    match = StateMatch(pairs, 6, 10)
    assert {name: (p.shape, p.dtype) for name, p in match.named_parameters()} == {
        "W.layers": ((10, 6), torch.float32),
        "W.embeddings": ((10, 6), torch.float32),
    }
    expected = torch.stack(
        [
            (student.states[own] @ match.W["layers" if own else "embeddings"].T - teacher.states[other])[MASK]
            .square()
            .mean()
            for own, other in pairs.items()
        ]
    ).mean()
    value = match(student, teacher, MASK)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(p.grad is not None and p.grad.any() for p in match.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match(student, teacher, MASK), value)


def test_a_match_of_one_width_has_nothing_to_train() -> None:
    states = {layer: torch.randn(2, 4, 6) for layer in (0, 1, 2)}
    match = StateMatch(last(2, 2), 6, 6, "cosine")
    assert not list(match.parameters())
    assert float(match(Seen(states=states), Seen(states=states), MASK)) == pytest.approx(0, abs=1e-6)
    with pytest.raises(BadConfig, match="no layers"):
        StateMatch({}, 6, 6)


def test_from_one_model_to_a_wider_one() -> None:
    """End to end: what a student with fewer layers and other widths and heads learns from."""
    student, teacher = FAMILIES["gpt2"].build(), FAMILIES["llama"].build()
    wanted = Wanted(states=(0, 1, 2), projections=(2,))
    with watching(student, discover(student), wanted) as own:
        student(**FAMILIES["gpt2"].batch())
    with torch.no_grad(), watching(teacher, discover(teacher), wanted) as other:
        teacher(**FAMILIES["llama"].batch())
    mask = text_of("llama")
    loss = StateMatch(uniform(2, 2), 32, 32)(own, other, mask) + minilm(
        own.projections[2], other.projections[2], mask, heads=2
    )
    loss.backward()
    assert loss > 0 and all(
        p.grad is not None and p.grad.isfinite().all()
        for name, p in student.named_parameters()
        if name.startswith("transformer.h.0.attn")
    )


@pytest.mark.parametrize(
    ("compute", "error", "message"),
    [
        (lambda x: squared_states(x, torch.zeros(2, 4, 5), MASK), BadConfig, "3 wide and the teacher's 5"),
        (lambda x: cosine_states(x, torch.zeros(2, 6, 3), MASK), BadData, r"\[2, 6\] of the teacher"),
        (lambda x: squared_states(x, x, ~MASK & MASK), BadData, "no position counts"),
        (lambda x: attention_error(x[:, None], torch.zeros(2, 2, 4, 3), MASK), BadConfig, "1 heads and the teacher 2"),
        (lambda x: relation_loss(x, x, MASK, heads=2), BadConfig, "3 wide, which 2 relation heads do not divide"),
        (lambda x: relation_loss(x, x[:, :2], MASK, heads=1), BadData, "let both read the same text"),
    ],
)
def test_what_does_not_fit_is_refused(compute: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compute(torch.zeros(2, 4, 3))


def test_relations_do_not_look_at_padding() -> None:
    student, teacher = torch.randn(2, 4, 6, requires_grad=True), torch.randn(2, 4, 10)
    value = relation_loss(student, teacher, MASK, heads=2)
    value.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None and student.grad.isfinite().all() and not student.grad[1, 2:].any()
    other = teacher.clone()
    other[1, 2:] = 77.0
    assert torch.equal(relation_loss(student, other, MASK, heads=2), value)
    assert float(relation_loss(teacher, teacher, MASK, heads=5)) == pytest.approx(0, abs=1e-6)
