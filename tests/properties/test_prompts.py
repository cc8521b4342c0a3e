"""Prompts in texts: padding, batches, heads, caches, plans of several, threads, and what is refused."""

from __future__ import annotations

import copy
import io
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, DynamicCache, StaticCache

import budwood.core as core
from adapted import adapted, anatomy_of, close, logits, perturb, weighted
from budwood.core import Method, Route, Skip, Stack, Sum, Tasks
from budwood.errors import BadConfig, BudwoodError, NoSuchSite
from budwood.methods import AdapterP, LoRA, MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from families import FAMILIES, PAD

DECODERS = ("llama", "gpt2", "gpt_neox", "opt", "mistral", "gemma3", "bloom", "falcon")
COUNT_PADDING = ("bert", "albert", "distilbert", "deberta-v2", "bart")
"""Whose positions count padding, with or without a prompt."""
IN_TEXT = ("prompt-tuning", "prompt-front", "p-tuning", "p-tuning-mlp", "multitask-prompt")


def several(family: str, **methods: Method) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model with adapters by name, moved away from where they start, and its batch."""
    torch.manual_seed(6)
    model = FAMILIES[family].build()
    for number, (name, method) in enumerate(methods.items()):
        core.attach(model, method, name=name, anatomy=anatomy_of(family))
        perturb(model, name, seed=number)
    return model.eval(), FAMILIES[family].batch()


def under(model: nn.Module, batch: dict[str, Any], plan: core.Plan) -> Tensor:
    with torch.no_grad(), core.using(model, plan):
        out: Tensor = model(**batch).logits
        return out


def row(batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """One row of a batch, without its padding at the end."""
    length = int(batch["attention_mask"][number].sum())
    own = {k: v[number : number + 1] for k, v in batch.items()}
    return own | {k: own[k][:, :length] for k in ("input_ids", "attention_mask")}


def left_padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every row rolled to the right end, with positions that count real tokens."""
    moved = dict(batch)
    for key in ("input_ids", "attention_mask"):
        rows = zip(batch[key], batch["attention_mask"].sum(dim=1).tolist(), strict=True)
        moved[key] = torch.stack([values.roll(len(values) - length) for values, length in rows])
    return moved


@pytest.mark.parametrize("variant", [*IN_TEXT, "prefix-tuning", "prefix-rows"])
@pytest.mark.parametrize("family", [*DECODERS, "bert", "albert", "distilbert", "t5", "bart", "deberta-v2"])
def test_rows_and_padding(family: str, variant: str) -> None:
    """A row of a batch, padded at either end, is the row alone."""
    model, batch = adapted(family, variant, perturbed=True)
    with torch.no_grad():
        whole = model(**batch).logits
        moved = left_padded(batch)
        if FAMILIES[family].kind == "decoder" and family != "bloom":
            moved["position_ids"] = (moved["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        rolled = model(**moved).logits
        for number in range(2):
            alone = model(**row(batch, number)).logits[0]
            length = len(alone)
            assert close(whole[number, :length], alone, 1e-5)
            if family not in COUNT_PADDING:
                assert close(rolled[number, -length:], alone, 1e-5)
        full = row(batch, 0)
        bare = {key: value for key, value in full.items() if key != "attention_mask"}
        assert close(model(**bare).logits, model(**full).logits, 1e-6)


@pytest.mark.parametrize("family", ["t5", "mbart"])
def test_encoder_states_are_longer_and_the_decoder_reads_them(family: str) -> None:
    model, batch = several(family, p=PromptTuning(length=3))
    out = model(**batch)
    assert out.encoder_last_hidden_state.shape[1] == 3 + batch["input_ids"].shape[1]
    assert out.logits.shape[1] == batch["decoder_input_ids"].shape[1]
    encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])  # type: ignore[operator]
    kept = {key: value for key, value in batch.items() if key != "input_ids"}
    assert close(model(encoder_outputs=encoded, **kept).logits, out.logits, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "mistral"])
@pytest.mark.parametrize("variant", IN_TEXT)
def test_generation_in_other_ways(family: str, variant: str) -> None:
    model, _ = adapted(family, variant, perturbed=True)
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    generate: Any = model.generate
    greedy = generate(ids, **settings)
    assert torch.equal(generate(ids, prompt_lookup_num_tokens=3, **settings), greedy)
    with core.using(model, None):
        embeds = model.get_input_embeddings()(ids)  # type: ignore[operator]
    for beams in (1, 2):
        expected = generate(ids, num_beams=beams, **settings)[:, ids.shape[1] :]
        assert torch.equal(generate(inputs_embeds=embeds, num_beams=beams, **settings), expected)
    sampled = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        sampled.append(generate(ids, use_cache=use_cache, **settings | {"do_sample": True}))
    assert torch.equal(*sampled)
    with pytest.raises(BadConfig, match=r"attention_mask \[batch, tokens\].*4 dimensions.*cache_implementation out"):
        generate(ids, cache_implementation="static", **settings)


@pytest.mark.parametrize("more", [1, 2, 3, 9])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_generate_goes_on_from_a_cache_with_a_prefix_and_never_with_a_prompt(
    family: str, padding: int, more: int
) -> None:
    """It takes the cache's length for that of the text."""
    ids = torch.tensor([[PAD] * padding + [5, 6, 7, 8, 5, 6, 7, 8]])
    mask = (ids != PAD).long()
    settings: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    for variant in ("prefix-tuning", "prefix-rows", "prompt-tuning"):
        model, _ = adapted(family, variant, perturbed=True)
        generate: Any = model.generate
        cache = DynamicCache(config=model.config)
        begun = generate(ids, attention_mask=mask, past_key_values=cache, **settings)
        longer = torch.cat([begun, torch.randint(4, 90, (1, more))], dim=1)
        seen = {"attention_mask": torch.cat([mask, torch.ones(1, 2 + more, dtype=torch.int64)], dim=1)}
        if variant == "prompt-tuning":
            with pytest.raises(
                BadConfig, match=f"a text of {ids.shape[1] + 2 + more} tokens goes on from a cache.*a prompt of 3"
            ):
                generate(longer, past_key_values=cache, **seen, **settings)
        else:
            expected = generate(longer, **seen, **settings)
            assert torch.equal(generate(longer, past_key_values=cache, **seen, **settings), expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "mistral", "bloom"])
def test_a_text_that_goes_on_from_a_cache_by_hand(family: str) -> None:
    """New tokens alone, with and without a mask and positions, under prompts of several lengths."""
    model, batch = several(family, a=PromptTuning(length=2), b=PromptTuning(length=5))
    ids = batch["input_ids"]
    plans: tuple[core.Plan, ...] = ("a", "b", None)
    for plan in ("a", Route(plans, torch.tensor([1, 0])), Route(plans, torch.tensor([2, 1]))):
        if isinstance(plan, Route) and family == "bloom":
            continue  # without a mask it would not know of columns that are hidden
        with torch.no_grad(), core.using(model, plan):
            expected = model(input_ids=ids).logits
            for masked in (False, True):
                cache, found = DynamicCache(config=model.config), []
                for begin, end in ((0, 4), (4, 6), (6, 7)):
                    given = {"attention_mask": torch.ones_like(ids)[:, :end]} if masked else {}
                    found.append(model(input_ids=ids[:, begin:end], past_key_values=cache, **given).logits)
                assert close(torch.cat(found, dim=1), expected, 1e-5)


def test_a_static_cache_needs_room_for_the_prompt() -> None:
    model, batch = several("llama", p=PromptTuning(length=4))
    ids = batch["input_ids"][:1]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        roomy = StaticCache(config=model.config, max_cache_len=16)
        assert close(model(input_ids=ids[:, :5], past_key_values=roomy).logits, expected[:, :5], 1e-5)
        for place in (5, 6):
            assert close(
                model(input_ids=ids[:, place : place + 1], past_key_values=roomy).logits[:, 0], expected[:, place], 1e-5
            )
        with pytest.raises(
            BadConfig, match="static cache holds 8 tokens.*prompt of 4 and the text are 11.*room for both"
        ):
            model(input_ids=ids, past_key_values=StaticCache(config=model.config, max_cache_len=8))


def test_masks_of_four_dimensions_are_refused() -> None:
    for family in ("llama", "bert"):
        model, batch = several(family, p=PromptTuning(length=2))
        mask = torch.ones(2, 1, 7, 7, dtype=torch.bool).tril()
        with pytest.raises(BadConfig, match=r"attention_mask \[batch, tokens\]; this one comes of 4 dimensions"):
            model(input_ids=batch["input_ids"], attention_mask=mask)
        with torch.no_grad():
            assert model(**batch).logits.shape[1] == 7  # the next forward knows nothing of it


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "gpt_neox", "roberta", "t5"])
def test_plans_of_several(family: str) -> None:
    """Prompts of three lengths, a LoRA and the base in one batch; two prompts side by side; both orders differ."""
    place: Any = "front" if FAMILIES[family].kind != "encoder" else "after-first"
    base = FAMILIES[family].build()
    model, batch = several(
        family, a=PromptTuning(length=2), b=PTuning(length=5, width=4), c=LoRA(rank=2), d=PTuning(length=1, place=place)
    )
    parts = ("a", None, "b", "c", Stack(("a", "b")), Stack(("c", Route(("a", "d"), torch.tensor([0, 1] * 3)))))
    batch = {key: value.repeat(3, *(1,) * (value.dim() - 1)) for key, value in batch.items()}
    routed = under(model, batch, Route(parts, torch.arange(6)))
    for number, plan in enumerate((*parts[:5], Stack(("c", "d")))):
        alone = under(model, batch, plan)
        real = slice(None, int(batch["attention_mask"][number].sum()) if family != "t5" else None)
        assert close(routed[number, real], alone[number, real], 1e-5)
    assert not close(under(model, batch, Stack(("a", "b"))), under(model, batch, Stack(("b", "a"))), 1e-4)
    assert torch.equal(under(model, batch, Skip("a", (0,))), under(model, batch, "a"))
    assert close(under(model, batch, None), base(**batch).logits, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_generation_with_prompts_of_several_lengths(family: str) -> None:
    model, _ = several(
        family, a=PromptTuning(length=2), b=PTuning(length=5, width=4), c=PrefixTuning(length=3, width=4)
    )
    ids = torch.tensor([[5, 16, 27, 38, 49, 50]]).repeat(4, 1)
    ids[1, :2] = PAD
    mask = (ids != PAD).long()
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": PAD, "eos_token_id": None}
    parts = ("a", "b", None, Stack(("c", "a")))
    generate: Any = model.generate
    for beams in (1, 3):
        for mode in ({}, {"use_cache": False}):
            with core.using(model, Route(parts, torch.arange(4))):
                routed = generate(ids, attention_mask=mask, num_beams=beams, **settings, **mode)
            for number, plan in enumerate(parts):
                with core.using(model, plan):
                    alone = generate(
                        ids[number : number + 1], attention_mask=mask[number : number + 1], num_beams=beams, **settings
                    )
                assert torch.equal(routed[number], alone[0])


def test_tasks_choose_prompts_by_row() -> None:
    model, batch = several("llama", m=MultitaskPrompt(length=3, tasks=3, rank=2), a=PromptTuning(length=1))
    batch = {key: value[:1].repeat(3, 1) for key, value in batch.items()}
    mixed = under(model, batch, Tasks("m", torch.tensor([2, 0, 1])))
    for number, task in enumerate((2, 0, 1)):
        assert close(mixed[number], under(model, batch, Tasks("m", torch.tensor([task])))[number], 1e-6)
    assert close(under(model, batch, "m"), under(model, batch, Tasks("m", torch.zeros(3, dtype=torch.int64))), 1e-7)
    route = Route(
        (Tasks("m", torch.tensor([1, 1, 2])), Stack(("a", Tasks("m", torch.tensor([2]))))), torch.tensor([0, 1, 0])
    )
    routed = under(model, batch, route)
    assert close(routed[0], under(model, batch, Tasks("m", torch.tensor([1])))[0], 1e-5)
    assert close(routed[1], under(model, batch, Stack(("a", Tasks("m", torch.tensor([2])))))[1], 1e-5)
    assert close(routed[2], under(model, batch, Tasks("m", torch.tensor([2])))[2], 1e-5)
    for rows, match in (([3], "tasks 3 to 3, and 'm'.*has the tasks 0 to 2"), ([-1], "tasks -1 to -1")):
        with pytest.raises(BadConfig, match=match):
            core.activate(model, Tasks("m", torch.tensor(rows)))
    with pytest.raises(BadConfig, match="'a'.*has only task 0"):
        core.activate(model, Tasks("a", torch.tensor([1])))
    with pytest.raises(BadConfig, match="the plan has 2 rows and this batch 3"):
        under(model, batch, Tasks("m", torch.tensor([0, 1])))
    assert under(model, batch, "m").shape[1] == 7


def test_one_of_several_goes() -> None:
    model, batch = several(
        "llama", a=PromptTuning(length=2), b=PTuning(length=3, encoder=None), c=PrefixTuning(length=2)
    )
    before = {plan: under(model, batch, plan) for plan in ("b", "c")}
    core.activate(model, Stack(("a", "b", "c")))
    core.detach(model, "a")
    assert torch.equal(model(**batch).logits, under(model, batch, Stack(("b", "c"))))
    core.attach(model, PromptTuning(length=4), name="e")
    assert all(torch.equal(under(model, batch, plan), expected) for plan, expected in before.items())
    core.detach(model, "b")
    core.detach(model, "e")
    assert torch.equal(under(model, batch, "c"), before["c"])
    core.detach(model, "c")
    assert torch.equal(model(**batch).logits, FAMILIES["llama"].build()(**batch).logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_beside_adapters_of_other_kinds() -> None:
    for family in ("llama", "bert", "t5"):
        model, batch = several(
            family, p=PromptTuning(length=3), x=PrefixTuning(length=2, width=4), a=AdapterP(size=4), q=LoRA(rank=2)
        )
        names = ("p", "x", "a", "q")
        whole = under(model, batch, Stack(names))
        for left in names:
            assert not close(whole, under(model, batch, Stack(tuple(n for n in names if n != left))), 1e-4)
        core.activate(model, Stack(names))
        weighted(logits(model, batch)).backward()
        assert all(p.grad is not None and p.grad.any() for name in names for p in core.parameters(model, name))


def test_sums_and_two_places_are_refused() -> None:
    model, batch = several(
        "llama", a=PromptTuning(length=2), b=PTuning(length=2), c=PTuning(length=2, place="after-first")
    )
    with pytest.raises(BadConfig, match="'a' cannot be a part of Sum: it stands beside the text.*Stack"):
        core.activate(model, Sum(("a", "b")))
    with pytest.raises(BadConfig, match="prompts in front and behind the first token; use one place"):
        under(model, batch, Stack(("a", "c")))
    assert under(model, batch, "c").shape[1] == 7


@pytest.mark.parametrize("auto", [AutoModelForTokenClassification, AutoModelForQuestionAnswering])
@pytest.mark.parametrize("family", ["bert", "llama", "roberta", "gpt2"])
def test_heads_that_read_tokens_see_the_text(family: str, auto: Any) -> None:
    torch.manual_seed(2)
    model = auto.from_config(FAMILIES[family].build().config).eval()
    core.attach(model, PromptTuning(length=3), name="p")
    batch = FAMILIES[family].batch()
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    found = out["start_logits"] if "start_logits" in out else out["logits"]
    assert found.shape[:2] == batch["input_ids"].shape
    assert all(states.shape[:2] == batch["input_ids"].shape for states in out.hidden_states)
    for number in range(2):
        alone = model(**row(batch, number))
        one = alone["start_logits"] if "start_logits" in out else alone["logits"]
        assert close(found[number, : one.shape[1]], one[0], 1e-5)


@pytest.mark.parametrize("variant", [*IN_TEXT, "prefix-rows"])
@pytest.mark.parametrize("family", ["llama-classify", "gpt2-classify", "bert-classify", "roberta-classify"])
def test_heads_that_read_one_token_find_it(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    with torch.no_grad():
        whole = model(**batch).logits
        for number in range(2):
            assert close(whole[number], model(**row(batch, number)).logits[0], 1e-5)


@pytest.mark.parametrize("family", ["bert-classify", "roberta-classify", "distilbert-classify", "llama-classify"])
def test_heads_find_the_first_row_of_prompts_of_several_lengths(family: str) -> None:
    model, batch = several(
        family, a=PromptTuning(length=2, place="front"), b=PromptTuning(length=5, place="front"), c=LoRA(rank=2)
    )
    batch = {key: value[:1].repeat(4, 1) for key, value in batch.items()}
    plans: tuple[core.Plan, ...] = ("a", "b", None, "c")
    routed = under(model, batch, Route(plans, torch.arange(4)))
    for number, plan in enumerate(plans):
        assert close(routed[number], under(model, batch, plan)[number], 1e-5)


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2", "mistral", "mpt", "bloom", "falcon", "t5"])
def test_padding_on_the_left_of_prompts_of_several_lengths(family: str) -> None:
    model, batch = several(family, a=PromptTuning(length=2), b=PromptTuning(length=5))
    moved = left_padded(batch)
    if family in ("llama", "gpt2", "mistral", "falcon"):
        moved["position_ids"] = (moved["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    for plans in (("a", "b"), ("b", "a"), ("b", None)):
        routed = under(model, moved, Route(plans, torch.arange(2)))
        for number, plan in enumerate(plans):
            alone = under(model, row(batch, number), plan)[0]
            assert close(routed[number, -len(alone) :], alone, 1e-5)


@pytest.mark.parametrize("variant", [*IN_TEXT, "prefix-tuning", "prefix-rows"])
def test_two_threads_have_batches_of_their_own(variant: str) -> None:
    """Both forwards are past the first block when either goes on."""
    model, batch = adapted("bert", variant, perturbed=True)
    halves = [row(batch, number) for number in (0, 1)]  # of 7 and of 5 tokens
    expected = [under(model, half, "faq") for half in halves]
    both = Barrier(2, timeout=20)
    model.get_submodule("bert.encoder.layer.0.attention").register_forward_pre_hook(lambda *_: [both.wait(), None][1])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda half: model(**half).logits, halves))
    assert all(close(one, other, 1e-6) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("variant", [*IN_TEXT, "prefix-tuning", "prefix-rows"])
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_after_an_error_and_around_another_forward(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    other = {key: value[:1] for key, value in batch.items()}
    last = next(reversed([m for name, m in model.named_modules() if name.endswith((".1", ".1.layer.0"))]))
    with torch.no_grad():
        expected, small = model(**batch).logits, model(**other).logits

        def fail(*_: Any) -> None:
            raise RuntimeError("on purpose")

        handle = last.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**batch)
        handle.remove()
        with core.using(model, None):
            assert torch.equal(model(**batch).logits, FAMILIES[family].build()(**batch).logits)
        assert torch.equal(model(**batch).logits, expected)

        inner: list[Tensor] = []

        def nest(*_: Any) -> None:
            handle.remove()
            inner.append(model(**other).logits)

        handle = last.register_forward_hook(nest)
        assert torch.equal(model(**batch).logits, expected)
        assert torch.equal(inner[0], small)


@pytest.mark.parametrize("variant", [*IN_TEXT, "prefix-tuning"])
@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_precision_and_modes(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    expected = logits(model, batch).detach()
    with torch.inference_mode():
        assert close(logits(model, batch), expected, 1e-6)
    weighted(logits(model, batch)).backward()
    weighted(logits(model, batch)).backward()
    twice = {name: p.grad.clone() for name, p in core.named_parameters(model, "faq").items() if p.grad is not None}
    model.zero_grad()
    (2 * weighted(logits(model, batch))).backward()
    for name, parameter in core.named_parameters(model, "faq").items():
        assert parameter.grad is not None
        assert close(twice[name], parameter.grad, 1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert close(logits(model, batch).float(), expected, 0.1)
    half, _ = adapted(family, variant, dtype=torch.bfloat16)
    out = logits(half, batch)
    assert out.dtype == torch.bfloat16
    weighted(out.float()).backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in core.parameters(half, "faq"))


def test_a_copy_lives_when_the_original_is_detached() -> None:
    for variant in (*IN_TEXT, "prefix-tuning", "prefix-rows"):
        for family in ("llama", "t5"):
            model, batch = adapted(family, variant, perturbed=True)
            expected = under(model, batch, "faq")
            file = io.BytesIO()
            torch.save(model, file)
            twin = copy.deepcopy(model)
            core.detach(model, "faq")
            file.seek(0)
            for other in (twin, torch.load(file, weights_only=False)):
                assert torch.equal(under(other, batch, "faq"), expected)
                core.detach(other, "faq")
                with torch.no_grad():
                    assert torch.equal(other(**batch).logits, model(**batch).logits)
                assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.modules())


def test_a_text_that_leaves_no_room() -> None:
    for family in ("gpt2", "bert", "roberta", "bart", "opt"):
        model = FAMILIES[family].build()
        core.attach(model, PromptTuning(length=10), name="p", anatomy=anatomy_of(family))
        batch = {"input_ids": torch.full((1, 54), 5), "attention_mask": torch.ones(1, 54, dtype=torch.int64)}
        room = core.positions_taken(model)
        assert room == 10
        if FAMILIES[family].kind == "encoder-decoder":
            batch["decoder_input_ids"] = torch.full((1, 3), 5)
        limit = 62 if family == "roberta" else 64
        model(**{k: v[:, : limit - 10] for k, v in batch.items()})
        longer = {k: torch.cat([v, v[:, :1]], dim=1) for k, v in batch.items()}
        with pytest.raises(
            BadConfig, match=rf"a prompt of 10 and a text of 55 .* the model has {limit}; cut the text to"
        ):
            model(**longer)
        with core.using(model, None):
            assert model(**longer).logits.shape[0] == 1


REFUSED: list[tuple[str, Method, type[BudwoodError], str]] = [
    ("gpt2", PromptTuning(length=64), BadConfig, "a prompt of 64 leaves no room for text: the model has 64 positions"),
    ("roberta", PTuning(length=62), BadConfig, "a prompt of 62 leaves no room for text: the model has 62 positions"),
    ("bart", PromptTuning(length=70), BadConfig, "a prompt of 70 leaves no room.*the model has 64"),
    ("llama", PromptTuning(length=2, ids=(5, 96)), BadConfig, "ids hold 96, and the vocabulary is 96 tokens"),
    (
        "llama",
        PromptTuning(init="text", text="it", length=2),
        BadConfig,
        r"init=text needs a tokenizer: attach\(\.\.\., to",
    ),
    ("mamba", PromptTuning(), NoSuchSite, "keeps what it has read in a state of its own.*use lora or an adapter"),
]


@pytest.mark.parametrize(("family", "method", "error", "match"), REFUSED, ids=[match[:40] for *_, match in REFUSED])
def test_mistakes(family: str, method: Method, error: type[BudwoodError], match: str) -> None:
    model = FAMILIES[family].build()
    with pytest.raises(error, match=match):
        core.attach(model, method, name="p", anatomy=anatomy_of(family))
    assert core.adapters(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
