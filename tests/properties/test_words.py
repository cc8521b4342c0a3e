"""What starts as a text does what the base does on that text: positions, masks, heads and layouts all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, close
from budwood.core import Method
from budwood.errors import BadConfig
from budwood.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning, PTuningV2
from families import FAMILIES, SMALL
from tokens import WORDS, tokenizer

WORDS_READ = (5, 40, 9, 62)
SAID: dict[str, Any] = {"init": "text", "ids": WORDS_READ, "length": len(WORDS_READ)}
SLIDING = ("mistral", "gemma2", "gemma3", "gpt_neo")
"""Whose windows of 4 tokens lose sight of a text, and never of a prefix."""
ROTARY = (
    *("llama", "qwen2", "qwen3", "gemma", "phi", "phi3", "mixtral", "olmo2", "granite", "stablelm", "cohere"),
    *("gpt_neox", "qwen3_moe", "deepseek_v2"),
)
LEARNED = ("gpt2", "gpt_bigcode", "opt")
PROMPTS: dict[str, Method] = {
    "prompt-tuning": PromptTuning(**SAID),
    "p-tuning": PTuning(**SAID, width=6),
    "p-tuning-mlp": PTuning(**SAID, encoder="mlp"),
    "multitask-prompt": MultitaskPrompt(**SAID, tasks=2),
}


def attached(family: str, method: Method, name: str = "faq") -> nn.Module:
    torch.manual_seed(4)
    model = FAMILIES[family].build()
    core.attach(model, method, name=name, anatomy=anatomy_of(family))
    return model.eval()


def with_words(batch: dict[str, Tensor], words: tuple[int, ...] = WORDS_READ, *, behind: int = 0) -> dict[str, Tensor]:
    """The batch with the words as text, behind that many tokens."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    read = torch.tensor(words).expand(len(ids), -1)
    return batch | {
        "input_ids": torch.cat([ids[:, :behind], read, ids[:, behind:]], dim=1),
        "attention_mask": torch.cat([mask[:, :behind], torch.ones_like(read), mask[:, behind:]], dim=1),
    }


def cut(logits: Tensor, length: int, count: int = len(WORDS_READ), *, behind: int = 0) -> Tensor:
    """Without the positions of the words, where there is one logit vector a token."""
    if logits.dim() < 3 or logits.shape[1] != length + count:
        return logits
    return torch.cat([logits[:, :behind], logits[:, behind + count :]], dim=1)


def real(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    mask = batch["attention_mask"].bool()
    return logits[mask] if logits.shape[:2] == mask.shape else logits


@pytest.mark.parametrize("width", [None, 8])
@pytest.mark.parametrize("family", [*ROTARY, *LEARNED])
def test_a_prefix_that_starts_as_a_text(family: str, width: int | None) -> None:
    """Rotary models behave so wherever the text begins; with a table of positions it has to begin behind the words."""
    batch = FAMILIES[family].batch()
    with torch.no_grad():
        base = FAMILIES[family].build()
        expected = real(cut(base(**with_words(batch)).logits, batch["input_ids"].shape[1]), batch)
        assert not close(real(base(**batch).logits, batch), expected, 1e-2)
        for positions in ("kept", "shifted") if family in ROTARY else ("shifted",):
            model = attached(family, PrefixTuning(**SAID, width=width, positions=positions))
            assert close(real(model(**batch).logits, batch), expected, 3e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prefix_that_starts_as_a_text_generates_as_after_it(family: str) -> None:
    batch = FAMILIES[family].batch()
    ids = batch["input_ids"][:1]
    model = attached(family, PrefixTuning(**SAID, positions="shifted"))
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    for beams in (1, 3):
        words = torch.cat([torch.tensor([WORDS_READ]), ids], dim=1)
        expected = FAMILIES[family].build().generate(words, num_beams=beams, **settings)[:, words.shape[1] :]
        assert torch.equal(model.generate(ids, num_beams=beams, **settings)[:, ids.shape[1] :], expected)  # type: ignore[operator]


def test_a_shorter_text_is_repeated() -> None:
    batch = FAMILIES["llama"].batch()
    for method in (PrefixTuning(init="text", ids=(5, 40), length=5), PromptTuning(init="text", ids=(5, 40), length=5)):
        model = attached("llama", method)
        read = with_words(batch, (5, 40, 5, 40, 5))
        with torch.no_grad():
            expected = real(cut(FAMILIES["llama"].build()(**read).logits, 7, 5), batch)
            assert close(real(model(**batch).logits, batch), expected, 3e-5)


@pytest.mark.parametrize("variant", PROMPTS)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("mamba", "rwkv")])
def test_a_prompt_that_starts_as_a_text(family: str, variant: str) -> None:
    batch = FAMILIES[family].batch()
    model = attached(family, PROMPTS[variant])
    behind = int(FAMILIES[family].kind == "encoder")
    length = batch["input_ids"].shape[1]
    with torch.no_grad():
        expected = cut(FAMILIES[family].build()(**with_words(batch, behind=behind)).logits, length, behind=behind)
        for key, parameter in core.named_parameters(model, "faq").items():
            if variant == "multitask-prompt" and key.rsplit(".")[-1] in "UV":
                parameter.copy_(parameter.round())  # they are drawn around a product of ones
        assert close(real(model(**batch).logits, batch), real(expected, batch), 3e-5)


@pytest.mark.parametrize("place", ["front", "after-first"])
@pytest.mark.parametrize("family", [*SMALL, "bart", "roberta", "albert", "distilbert", "deberta-v2", "modernbert"])
def test_a_prompt_in_either_place(family: str, place: Any) -> None:
    batch = FAMILIES[family].batch()
    model = attached(family, PromptTuning(**SAID, place=place))
    behind = int(place == "after-first")
    with torch.no_grad():
        expected = cut(FAMILIES[family].build()(**with_words(batch, behind=behind)).logits, 7, behind=behind)
        if FAMILIES[family].name != "roberta-classify" or behind:  # its head reads the first row of the text
            assert close(real(model(**batch).logits, batch), real(expected, batch), 3e-5)


UNBUILT: list[tuple[type[Method], dict[str, Any], str]] = [
    (PromptTuning, {"length": 0}, r"prompt-tuning\.length is 0; it must be at least 1"),
    (PrefixTuning, {"length": -1}, r"prefix-tuning\.length is -1; it must be at least 1"),
    (PrefixTuning, {"width": 0}, r"prefix-tuning\.width is 0; it must be at least 1, or none"),
    (PrefixTuning, {"dropout": 1.0}, r"prefix-tuning\.dropout is 1\.0; it must be in \[0, 1\)"),
    (PTuningV2, {"dropout": -0.1}, r"p-tuning-v2\.dropout is -0\.1; it must be in \[0, 1\)"),
    (PTuning, {"width": 0}, r"p-tuning\.width is 0; it must be at least 1"),
    (PTuning, {"depth": 0}, r"p-tuning\.depth is 0; it must be at least 1"),
    (PTuning, {"dropout": 1.0}, r"p-tuning\.dropout is 1\.0; it must be in \[0, 1\)"),
    (PTuning, {"encoder": "gru"}, r"p-tuning\.encoder is 'gru'"),
    (MultitaskPrompt, {"tasks": 0}, r"multitask-prompt\.tasks is 0; it must be at least 1"),
    (MultitaskPrompt, {"rank": 0}, r"multitask-prompt\.rank is 0; it must be at least 1"),
    (PromptTuning, {"init": "text"}, r"init=text without a text; write both, as init=text,text='Summarise:'"),
    (PromptTuning, {"text": "it is"}, r"a text, and init=words; write both"),
    (PromptTuning, {"length": 2, "ids": (4, 5, 6)}, "what it starts from is 3 tokens and length 2; choose length=3"),
    (PromptTuning, {"ids": (4, 5), "sizes": (1, 2)}, "sizes add up to 3, and ids are 2"),
    (PromptTuning, {"ids": (4, 5), "sizes": (2, 0)}, r"sizes are \(2, 0\); a row is made of at least one token"),
    (PrefixTuning, {"init": "labels"}, "init=labels makes one row of each class; write them as init=text"),
]


@pytest.mark.parametrize(("method", "fields", "match"), UNBUILT, ids=[match[:40] for *_, match in UNBUILT])
def test_fields_that_make_no_sense(method: type[Method], fields: dict[str, Any], match: str) -> None:
    with pytest.raises(BadConfig, match=match):
        method(**fields)


UNWORDED: list[tuple[Method, dict[str, Any], str]] = [
    (PromptTuning(init="text", text="it is", length=2), {}, r"init=text needs a tokenizer: attach\(\.\.\., tokenizer="),
    (PromptTuning(init="labels", length=2), {"labels": ("good", "bad")}, "init=labels needs a tokenizer"),
    (
        PromptTuning(init="labels", length=2),
        {"tokenizer": tokenizer()},
        r"init=labels needs names of classes: rows with labels, or in Python attach\(",
    ),
    (
        PromptTuning(init="text", text="it is a film", length=3),
        {"tokenizer": tokenizer()},
        "the text is 4 tokens and length 3; choose length=4",
    ),
    (PromptTuning(init="text", text="  ", length=3), {"tokenizer": tokenizer()}, "makes nothing of '  '; write a text"),
    (PrefixTuning(ids=(5, -1), length=3), {}, "ids hold -1, and the vocabulary is 96 tokens"),
    (PromptTuning(ids=(5, 96), length=3), {}, "ids hold 96, and the vocabulary is 96 tokens"),
]


@pytest.mark.parametrize(("method", "given", "match"), UNWORDED, ids=[match[:40] for *_, match in UNWORDED])
def test_words_that_are_not_there(method: Method, given: dict[str, Any], match: str) -> None:
    model = FAMILIES["llama"].build()
    with pytest.raises(BadConfig, match=match):
        core.attach(model, method, name="p", anatomy=anatomy_of("llama"), **given)
    assert core.adapters(model) == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_classes_are_the_means_of_their_tokens() -> None:
    model = FAMILIES["llama"].build()
    table = model.get_input_embeddings().weight.detach().clone()
    method = PromptTuning(init="labels", length=4)
    core.attach(model, method, name="p", tokenizer=tokenizer(), labels=("good film", "bad"))
    (rows,) = core.parameters(model, "p")
    good, bad, film = (WORDS.index(word) for word in ("good", "bad", "film"))
    assert close(rows[0], (table[good] + table[film]) / 2, 1e-6)
    assert torch.equal(rows[1], table[bad])
    with torch.no_grad():
        rows.zero_()
    assert torch.equal(model.get_input_embeddings().weight, table)  # no view of it
