from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.gpt2 import GPT2Config

from budwood.core import attach
from budwood.data import Turn
from budwood.errors import BadConfig, BadData
from budwood.evaluate import Sampling, complete, generate
from budwood.evaluate.generate import context_of, stop_tokens
from budwood.evaluate.sampling import Draw, keep
from budwood.methods import LoRA
from families import FAMILIES
from tiny_tokenizers import CHATML, STRICT, make_tokenizer

PROMPTS = ["name : Alimentum", "There", "What is it ? An answer . What is it ?", "city centre", "a", "area :"]


def build(kind: str = "llama", *, vocabulary: int = 420) -> Any:
    torch.manual_seed(11)
    shape = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind == "llama":
        config: Any = LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            **shape,
        )
    else:
        config = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def by_hand(model: Any, ids: list[int], new: int, stops: tuple[int, ...]) -> list[int]:
    """Greedy, without cache, batch or padding: the whole row anew for each token."""
    out: list[int] = []
    for _ in range(new):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + out]), use_cache=False).logits[0, -1].argmax())
        if token in stops:
            break
        out.append(token)
    return out


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_greedy_batches_are_what_single_rows_are_by_hand(kind: str) -> None:
    model, tokenizer = build(kind), make_tokenizer()
    stops = stop_tokens(model, tokenizer)
    expected = [by_hand(model, tokenizer(prompt)["input_ids"], 12, stops) for prompt in PROMPTS]
    assert len({tuple(row) for row in expected}) > 3
    for size in (1, 2, 6):
        found = complete(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=size)
        assert [list(answer.ids) for answer in found] == expected
    texts = generate(model, tokenizer, PROMPTS, max_new_tokens=12)
    assert texts == [tokenizer.decode(row, skip_special_tokens=True) for row in expected]


def test_a_stop_token_ends_an_answer_and_is_not_in_it() -> None:
    model, tokenizer = build(), make_tokenizer()
    (whole,) = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=10)
    stop = whole.ids[4]
    place = whole.ids.index(stop)
    (cut,) = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=10, stop_ids=[stop])
    assert cut.ids == whole.ids[:place] and cut.stopped
    model.generation_config.eos_token_id = [1, stop]
    (again,) = complete(model, tokenizer, PROMPTS[:1], max_new_tokens=10)
    assert again == cut


def test_stop_tokens_come_from_tokenizer_template_and_model() -> None:
    model = build()
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, make_tokenizer()) == (1,)
    assert stop_tokens(model, make_tokenizer(CHATML)) == (1, 4)
    assert stop_tokens(model, make_tokenizer(STRICT)) == (1, 6)
    model.generation_config.eos_token_id = [9, 8]
    assert stop_tokens(model, make_tokenizer(), more=[12]) == (1, 8, 9, 12)
    model.generation_config.eos_token_id = None
    with pytest.raises(BadConfig, match="nothing ends an answer"):
        stop_tokens(model, make_tokenizer(eos=None))


def test_messages_and_turns_go_through_the_template() -> None:
    model, tokenizer = build(), make_tokenizer(CHATML)
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is it ?"}], tokenize=False, add_generation_prompt=True
    )
    text = generate(model, tokenizer, [written], max_new_tokens=6)
    assert generate(model, tokenizer, [[{"role": "user", "content": "What is it ?"}]], max_new_tokens=6) == text
    assert generate(model, tokenizer, [(Turn("user", "What is it ?"),)], max_new_tokens=6) == text
    mixed = generate(model, tokenizer, [PROMPTS[0], [Turn("user", "What is it ?")]], max_new_tokens=6)
    assert mixed[1:] == text and mixed[:1] == generate(model, tokenizer, PROMPTS[:1], max_new_tokens=6)


def test_the_models_own_settings_do_not_leak_in() -> None:
    model, tokenizer = build(), make_tokenizer()
    plain = generate(model, tokenizer, PROMPTS[:2], max_new_tokens=12)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    model.generation_config.temperature = 3.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.max_length = 3
    assert generate(model, tokenizer, PROMPTS[:2], max_new_tokens=12) == plain


def test_the_adapter_is_in_force() -> None:
    model, tokenizer = build(), make_tokenizer()
    before = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    attach(model, LoRA(rank=2, targets=("all",)), name="a")
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6) == before
    for name, parameter in model.named_parameters():
        if ".deltas." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    after = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert after != before
    single = [generate(model, tokenizer, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    assert single == after


def test_sampling_hangs_on_seed_and_prompt_not_on_the_batch_or_the_global_state() -> None:
    model, tokenizer = build().train(), make_tokenizer()
    draw = Sampling(temperature=1.5, top_p=0.95, seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = complete(model, tokenizer, PROMPTS, max_new_tokens=8, sampling=draw, batch_size=6)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    torch.manual_seed(2)
    assert complete(model, tokenizer, PROMPTS, max_new_tokens=8, sampling=draw, batch_size=2) == first
    other = complete(model, tokenizer, PROMPTS, max_new_tokens=8, sampling=Sampling(seed=4, temperature=1.5))
    assert other != first
    same = complete(model, tokenizer, ["There"] * 6, max_new_tokens=8, sampling=draw)
    assert len({answer.ids for answer in same}) > 1


def test_hardly_any_temperature_is_greedy() -> None:
    model, tokenizer = build(), make_tokenizer()
    cold = Sampling(temperature=1e-6)
    greedy = generate(model, tokenizer, PROMPTS, max_new_tokens=6)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, sampling=cold) == greedy
    only = Sampling(top_k=1, temperature=2.0)
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=6, sampling=only) == greedy


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -50.0]])
    draws = Draw(Sampling(temperature=2.0, seed=7), range(4000))(torch.zeros(4000, 1), logits.expand(4000, -1))
    shares = torch.bincount(draws.argmax(1), minlength=5) / 4000
    np.testing.assert_allclose(shares.numpy(), (logits / 2).softmax(1)[0].numpy(), atol=0.025)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9, unique=True), st.integers(1, 9), st.floats(0.05, 1.0))
@settings(max_examples=60, deadline=None)
def test_what_stays_is_the_likeliest(values: list[float], top_k: int, top_p: float) -> None:
    scores = torch.tensor([values], dtype=torch.float64)
    kept = keep(scores, Sampling(top_k=top_k, top_p=top_p)).isfinite()[0]
    ordered = sorted(values, reverse=True)[:top_k]
    weights = torch.tensor(ordered).double().softmax(0).tolist()
    held, wanted = 0.0, []
    for value, weight in zip(ordered, weights, strict=True):
        if held >= top_p - 1e-9 and wanted:
            break
        wanted.append(value)
        held += weight
    assert abs(int(kept.sum()) - len(wanted)) <= (1 if abs(held - top_p) < 1e-6 else 0)
    assert kept[int(scores[0].argmax())]
    assert {value for value, stays in zip(values, kept.tolist(), strict=True) if stays} <= set(ordered)


def test_no_prompts_no_answers() -> None:
    assert complete(build(), make_tokenizer(), []) == []


def test_bad_input() -> None:
    model, tokenizer = build(), make_tokenizer()
    with pytest.raises(BadData, match="prompt 2 is empty"):
        complete(model, tokenizer, ["a", ""], max_new_tokens=5)
    with pytest.raises(BadData, match=r"prompt 1 has 60 tokens.*64.*at most 4 new tokens"):
        complete(model, tokenizer, ["q" * 60], max_new_tokens=5)
    with pytest.raises(BadData, match=r"prompt 1 has 70 tokens and the model takes 64; shorten it"):
        complete(model, tokenizer, ["q" * 70], max_new_tokens=5)
    with pytest.raises(BadConfig, match="max_new_tokens is 0"):
        complete(model, tokenizer, ["a"], max_new_tokens=0)
    with pytest.raises(BadConfig, match="LlamaForSequenceClassification does not generate"):
        complete(FAMILIES["llama-classify"].build(), tokenizer, ["a"])
    with pytest.raises(BadData, match="a message is .*'boss'.*system, user or assistant"):
        complete(model, tokenizer, [[{"role": "boss", "content": "x"}]])


@pytest.mark.parametrize(
    ("values", "words"),
    [({"temperature": 0.0}, "temperature is 0.0"), ({"top_p": 0.0}, "top_p is 0.0"), ({"top_k": -1}, "top_k is -1")],
)
def test_bad_sampling(values: dict[str, float], words: str) -> None:
    with pytest.raises(BadConfig, match=words):
        Sampling(**values)  # type: ignore[arg-type]


def test_context() -> None:
    assert context_of(build()) == 64 and context_of(build("gpt2")) == 64
    assert context_of(FAMILIES["bloom"].build()) is None
