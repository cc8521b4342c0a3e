"""The demo model: what tiny random ones cannot show about rounding, stop tokens and memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from budwood.assets import get, load_model, load_tokenizer, resolve_model
from budwood.data import encode, read
from budwood.evaluate import complete, evaluate_loss
from budwood.evaluate.task import batches
from budwood.records import MemoryMeter

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    ref = resolve_model("demo-lm")
    return load_model(ref, task="causal-lm", dtype=torch.float32), load_tokenizer(ref)


def test_losses_are_the_models_own_in_less_memory(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    examples = encode(read(get("demo-chat")), "validation", tokenizer).examples[:16]
    given = list(batches(examples, tokenizer, 16))
    meter = MemoryMeter()
    report = evaluate_loss(model, given)
    ours = meter.read().peak_bytes
    meter = MemoryMeter()
    with torch.no_grad():
        own = float(model(**given[0].inputs(), labels=given[0].labels).loss)
    plain = meter.read().peak_bytes
    assert report.route == "chunked head"
    assert report.loss.value == pytest.approx(own, rel=1e-5)
    logits = 4 * given[0].input_ids.numel() * model.config.vocab_size
    assert plain - ours > logits // 2, f"{ours // MIB} MiB against {plain // MIB} MiB"


def test_answers_do_not_hang_on_the_batch_and_stop(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    questions = ["What is the capital of France?", "Hi!", "Name the three primary colours, briefly."]
    prompts = [[{"role": "user", "content": question}] for question in questions]
    together = complete(model, tokenizer, prompts, max_new_tokens=40)
    assert together == [complete(model, tokenizer, [prompt], max_new_tokens=40)[0] for prompt in prompts]
    assert together[0].stopped and "Paris" in together[0].text and "<|" not in together[0].text
