"""A model and its tokenizer with fewer tokens: ids, generation, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import budwood.core as core
import budwood.prune.tokens as tokens
import budwood.prune.vocabulary as vocabulary
from budwood.errors import BadConfig, BadData, VerificationFailed, WrongOrder
from budwood.methods import LoRA
from budwood.prune.rows import parameters_with
from budwood.prune.vocabulary import trim
from small_models import SIZES
from tiny_tokenizers import CHATML, OF_KINDS, make_small, make_tokenizer, make_wordpiece

TEXTS = ["a place in the city", "What is it ?"]


def make_llama(**settings: Any) -> Any:
    torch.manual_seed(5)
    sizes = {**SIZES, "vocab_size": 420, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, **settings}
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def make_masked(kind: Any, config: Any, **settings: Any) -> Any:
    torch.manual_seed(6)
    return kind(config(**{**SIZES, **settings})).eval()


def test_it_writes_what_the_whole_model_writes_with_those_tokens_and_stops_at_the_same(tmp_path: Path) -> None:
    model, tokenizer = make_llama(), make_tokenizer(CHATML)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    kept = trim(model, tokenizer, TEXTS).kept
    prompt = tokenizer("a place in", return_tensors="pt")
    others = [number for number in range(420) if number not in kept]
    settings = {"do_sample": False, "max_new_tokens": 8}
    written = model.generate(**prompt, **settings, eos_token_id=None, suppress_tokens=others)[0, -8:].tolist()
    end = written[3]
    model.generation_config.eos_token_id = [1, end]
    cut = trim(model, tokenizer, TEXTS)
    assert cut.kept == kept
    cut.model.save_pretrained(tmp_path)
    cut.tokenizer.save_pretrained(tmp_path)
    reader = AutoTokenizer.from_pretrained(tmp_path)
    for writer in (cut.model, AutoModelForCausalLM.from_pretrained(tmp_path)):
        answer = writer.generate(**reader("a place in", return_tensors="pt"), **settings)[0]
        fresh = [kept[number] for number in answer.tolist()][prompt.input_ids.shape[1] :]
        assert fresh == written[: written.index(end) + 1]


def test_ids_of_both_configurations_follow_and_are_kept() -> None:
    model, tokenizer = make_llama(eos_token_id=[1, 300], unk_token_id=301, mask_token_id=-1), make_tokenizer()
    model.generation_config.suppress_tokens = [302, 5]
    model.generation_config.bad_words_ids = [[303, 304], [0]]
    model.generation_config.decoder_start_token_id = 999
    cut = trim(model, tokenizer, ["a"])
    new = {old: place for place, old in enumerate(cut.kept)}
    assert {300, 301, 302, 303, 304} <= new.keys()
    assert cut.model.config.eos_token_id == [1, new[300]]
    assert cut.model.config.unk_token_id == new[301]
    assert cut.model.config.mask_token_id == -1
    assert cut.model.generation_config.eos_token_id == [1, new[300]]
    assert cut.model.generation_config.suppress_tokens == [new[302], 5]
    assert cut.model.generation_config.bad_words_ids == [[new[303], new[304]], [0]]
    assert cut.model.generation_config.decoder_start_token_id == 999
    assert model.config.eos_token_id == [1, 300]
    assert model.generation_config.suppress_tokens == [302, 5]


def test_special_ids_of_an_encoder_move_to_where_the_tokenizer_has_them() -> None:
    tokenizer = make_wordpiece()
    size = len(tokenizer)
    model = make_masked(BertForMaskedLM, BertConfig, vocab_size=size, pad_token_id=tokenizer.pad_token_id)
    cut = trim(model, tokenizer, TEXTS)
    assert "[unused0]" not in cut.tokenizer.get_vocab()
    assert cut.model.config.pad_token_id == cut.tokenizer.pad_token_id
    assert cut.model.cls.predictions.bias.shape == (len(cut.kept),)
    assert cut.model.cls.predictions.decoder.weight is cut.model.bert.embeddings.word_embeddings.weight
    assert torch.equal(cut.model.cls.predictions.bias, model.cls.predictions.bias[list(cut.kept)])


def test_a_bias_that_is_a_buffer_is_cut() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3}
    config = BartConfig(vocab_size=96, **sizes, **heads, **special, forced_eos_token_id=3)
    model = BartForConditionalGeneration(config).eval()
    model.final_logits_bias = torch.randn(1, 96)
    cut = trim(model, make_small(), TEXTS)
    assert torch.equal(cut.model.final_logits_bias, model.final_logits_bias[:, list(cut.kept)])


@pytest.mark.parametrize("tied", [True, False])
def test_ties_modes_types_and_what_is_trained_stay(tied: bool) -> None:
    model = make_llama(tie_word_embeddings=tied).to(torch.bfloat16).train()
    model.model.embed_tokens.weight.requires_grad_(False)
    cut = trim(model, make_tokenizer(), TEXTS)
    assert (cut.model.lm_head.weight is cut.model.model.embed_tokens.weight) is tied
    assert cut.model.training
    assert model.training
    assert {p.dtype for p in cut.model.parameters()} == {torch.bfloat16}
    assert not cut.model.model.embed_tokens.weight.requires_grad
    assert cut.model.model.norm.weight.requires_grad
    rows = (420 - len(cut.kept)) * SIZES["hidden_size"]
    assert cut.parameters[0] - cut.parameters[1] == rows * (1 if tied else 2)
    assert cut.parameters[1] == parameters_with(model, len(cut.kept))


def test_rows_beyond_the_tokenizer_are_cut_and_a_needed_vocabulary_stays_whole() -> None:
    model, tokenizer = make_llama(), make_tokenizer()
    everything = [tokenizer.convert_tokens_to_string([token]) for token in tokenizer.get_vocab()]
    cut = trim(model, tokenizer, everything)
    assert cut.rows == (420, len(tokenizer))
    assert not cut.is_whole
    again = trim(cut.model, cut.tokenizer, everything)
    assert again.is_whole
    assert again.model is cut.model
    assert again.tokenizer is cut.tokenizer
    assert str(again) == f"the vocabulary stays whole: all {len(tokenizer)} tokens are needed"


def test_what_was_done_is_said() -> None:
    model, tokenizer = make_masked(BertForMaskedLM, BertConfig, vocab_size=77), make_wordpiece()
    assert len(tokenizer) == 77
    cut = trim(model, tokenizer, ["a place", "漢"])
    share = cut.parameters[1] / cut.parameters[0]
    assert str(cut) == (
        f"vocabulary 77 -> {len(cut.kept)} tokens (the texts use 3), {share:.0%} of the parameters; "
        "2 texts encode as before; 1 texts have parts that it cannot encode"
    )


@pytest.mark.parametrize("kind", ["GPT-2", "Llama-2", "T5", "XLM-R"])
def test_every_kind_of_tokenizer_goes_with_a_model(kind: str) -> None:
    tokenizer = OF_KINDS[kind]()
    cut = trim(make_llama(), tokenizer, TEXTS)
    assert cut.model.get_input_embeddings().num_embeddings == len(cut.tokenizer) < len(tokenizer)


def test_what_a_first_try_leaves_out_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the merges of a text were not those of its tokens by themselves."""
    whole = tokens.closure
    monkeypatch.setattr(tokens, "closure", lambda description, needed: whole(description, ()))
    tokenizer = make_tokenizer()
    cut = trim(make_llama(), tokenizer, TEXTS)
    new = {old: place for place, old in enumerate(cut.kept)}
    assert [new[number] for number in tokenizer(TEXTS[0]).input_ids] == cut.tokenizer(TEXTS[0]).input_ids
    monkeypatch.setattr(vocabulary, "touching", lambda tokenizer, texts: set())
    model = make_llama()
    with pytest.raises(VerificationFailed, match="encodes 2 texts otherwise than before, 'a place in the city' among"):
        trim(model, tokenizer, TEXTS)
    assert model.config.vocab_size == 420


def test_a_model_that_answers_otherwise_is_found() -> None:
    """RoBERTa counts positions from the id of padding, so an id before it cannot go."""
    tokenizer = make_wordpiece()
    tokenizer.add_special_tokens({"pad_token": "[MASK]"})
    model = make_masked(RobertaForMaskedLM, RobertaConfig, vocab_size=77, pad_token_id=6, max_position_embeddings=40)
    with pytest.raises(VerificationFailed, match="RobertaForMaskedLM with fewer tokens answers otherwise than before"):
        trim(model, tokenizer, TEXTS)


def test_models_that_cannot_be_cut_are_refused_by_name() -> None:
    tokenizer = make_tokenizer()
    model = make_llama()
    core.attach(model, LoRA(rank=2), name="faq")
    with pytest.raises(WrongOrder, match=r"adapters are attached \(faq\); merge or detach them"):
        trim(model, tokenizer, TEXTS)
    core.detach(model, "faq")
    model.model.strange = torch.nn.Linear(2, 2)
    with pytest.raises(BadConfig, match=r"2 weights of the model are not those .* model\.strange\.bias among them"):
        trim(model, tokenizer, TEXTS)
    with pytest.raises(BadConfig, match="the tokenizer has 314 tokens and the model rows for 300"):
        trim(make_llama(vocab_size=300), tokenizer, TEXTS)
    model = make_llama()
    model.config.vocab_size = 421
    with pytest.raises(BadConfig, match=r"has 420 embeddings and its config says vocab_size 421; set"):
        trim(model, tokenizer, TEXTS)
    model = make_llama()
    model.set_input_embeddings(torch.nn.Linear(3, 3))
    with pytest.raises(BadConfig, match="LlamaForCausalLM has no table with a row for each token"):
        trim(model, tokenizer, TEXTS)
    model = make_llama()
    model.generation_config.sequence_bias = [[[3], -1.0]]
    with pytest.raises(BadConfig, match="sets sequence_bias, .* set it to None"):
        trim(model, tokenizer, TEXTS)
    model = make_llama()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(WrongOrder, match="the model is quantised; load it in full precision"):
        trim(model, tokenizer, TEXTS)


@pytest.mark.parametrize(
    ("texts", "said"), [([], "0 texts were given"), (["", ""], "2 texts were given, with no token in them")]
)
def test_no_texts_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(BadData, match=said):
        trim(make_llama(), make_tokenizer(), texts)


def test_an_empty_text_among_others_is_no_trouble() -> None:
    assert trim(make_llama(), make_tokenizer(), ["", "a place"]).used.texts == 2
