"""A tiny tokenizer with a chat template, and tiny models saved to folders with it: for runs without a network."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

WORDS = (
    *("<pad>", "<bos>", "<eos>", "<unk>", "user", "assistant", "system", ":"),
    *("what", "is", "the", "of", "a", "name", "capital", "color", "sound", "?", ".", "it", "good", "bad", "film"),
    *(f"w{number}" for number in range(60)),
)
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %} <eos>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One id for each word of WORDS."""
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=64, chat_template=TEMPLATE,
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": []})
    return made


def model_folder(folder: Path, kind: str = "llama") -> Path:
    """A tiny random model with the tokenizer, as `from_pretrained` reads it."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **sizes, **special, max_position_embeddings=64)
    auto = AutoModelForMaskedLM if kind == "bert" else AutoModelForCausalLM
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
