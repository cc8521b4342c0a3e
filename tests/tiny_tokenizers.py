"""Small tokenizers, trained on a few sentences, with chat templates of the kinds there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

SENTENCES = ["name : Alimentum | area : city centre", "There is a place in the city centre .", "What is it ? An answer"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2 and Qwen2.5, without the default system message."""

FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As Qwen3: what is written into the last answer is left out of earlier ones."""

BARE = (
    "{% for m in messages %}{{ ('Q: ' if m.role == 'user' else 'A: ') + m.content.strip() + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
"""Closes an answer with no special token at all."""

STRICT = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') "
    "+ '\n' + m.content.strip() + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""As Gemma: refuses system messages, and ends turns with a token that is not the tokenizer's eos."""

SPECIAL = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]


def make_tokenizer(template: str | None = None, *, eos: str | None = "</s>", bos: bool = False) -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 4 + ["a\n\nb \n\n c\n\n"] * 8, trainer)
    if bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, bos_token="<s>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = template
    return tokenizer


SPECIAL_FIRST = ["<unk>", "<pad>", "<s>", "</s>"]
"""As the configurations of tests/families.py number them."""


def make_small() -> Any:
    """Fewer than the 96 tokens of tests/families.py, by characters and not by bytes, with an unknown token."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    _train(inner, _bpe(90, special_tokens=SPECIAL_FIRST))
    named = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token"), SPECIAL_FIRST, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def make_bytes(kind: type[Any] = GPT2Tokenizer, first: tuple[str, ...] = ("<|endoftext|>",)) -> Any:
    """Byte-level BPE."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(inner, _bpe(360 + len(first), special_tokens=list(first), initial_alphabet=alphabet))
    return kind(**_bpe_of(inner))


def make_byte_fallback() -> Any:
    """BPE by characters with bytes for those that it lacks, as converted from SentencePiece."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    numbers = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(inner, _bpe(400, special_tokens=["<unk>", "<s>", "</s>", *numbers]))
    return LlamaTokenizer(**_bpe_of(inner), pad_token="</s>")


def make_wordpiece() -> Any:
    """WordPiece, with the special tokens behind some that nobody uses."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    _train(inner, trainers.WordPieceTrainer(vocab_size=140, special_tokens=special, show_progress=False))
    return BertTokenizer(vocab=inner.get_vocab(with_added_tokens=False))


def make_unigram(kind: type[Any] = T5Tokenizer, first: tuple[str, ...] = ("<pad>", "</s>", "<unk>")) -> Any:
    """Unigram, whose pieces have scores."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=list(first), unk_token="<unk>", show_progress=False)
    _train(inner, trainer)
    pieces = [tuple(entry) for entry in json.loads(inner.to_str())["model"]["vocab"]]
    return kind(vocab=pieces, **({"extra_ids": 3} if kind is T5Tokenizer else {}))


OF_KINDS: dict[str, Callable[[], Any]] = {
    "GPT-2": make_bytes,
    "RoBERTa": lambda: make_bytes(RobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>", "<mask>")),
    "ChatML": lambda: make_tokenizer(CHATML, bos=True),
    "Llama-2": make_byte_fallback,
    "BERT": make_wordpiece,
    "T5": make_unigram,
    "XLM-R": lambda: make_unigram(XLMRobertaTokenizer, ("<s>", "<pad>", "</s>", "<unk>")),
}
"""One tokenizer of every kind there is, of the class that a hub's model would bring."""


def _train(inner: Tokenizer, trainer: Any) -> None:
    inner.train_from_iterator(SENTENCES * 4, trainer)


def _bpe(size: int, **settings: Any) -> Any:
    return trainers.BpeTrainer(vocab_size=size, show_progress=False, **settings)


def _bpe_of(inner: Tokenizer) -> dict[str, Any]:
    model = json.loads(inner.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
