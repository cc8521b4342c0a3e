from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging as transformers_logging

from budwood.assets import ModelRef, gguf, load_model, load_tokenizer, resolve_model, stored_labels
from budwood.assets.padding import ensure_padding
from budwood.errors import BadCheckpoint, BadConfig, NotAvailable
from small_models import save_bert, save_gguf, save_llama, save_t5
from tiny_tokenizers import make_tokenizer


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def same_weights(one: Any, other: Any) -> bool:
    there = other.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.state_dict().items())


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_causal_lm_comes_back_bit_for_bit_and_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = save_llama(tmp_path)
    transformers_logging.set_verbosity_info()
    transformers_logging.enable_progress_bar()
    capfd.readouterr()
    model = load_model(resolve_model(tmp_path), task="causal-lm")
    assert transformers_logging.get_verbosity() == logging.INFO  # as it was before
    assert transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    assert capfd.readouterr() == ("", "")
    assert same_weights(stored, model)
    assert not model.training


def test_the_stored_type_is_kept_unless_another_is_asked_for(tmp_path: Path) -> None:
    save_llama(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    ref = resolve_model(tmp_path)
    assert load_model(ref, task="causal-lm").dtype == torch.bfloat16
    assert load_model(ref, task="causal-lm", dtype=torch.float32).dtype == torch.float32


def test_a_new_head_knows_its_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_bert(tmp_path)
    with caplog.at_level(logging.INFO, logger="budwood"):
        model = load_model(resolve_model(tmp_path), task="classification", labels=["bad", "good", "so-so"])
    assert model.config.id2label == {0: "bad", 1: "good", 2: "so-so"}
    assert model.config.label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert model.config.num_labels == 3
    assert model.classifier.weight.shape == (3, 16)
    assert "new, not yet trained: bert.pooler.dense.bias" in caplog.text


def test_a_stored_head_is_kept(tmp_path: Path) -> None:
    stored = save_bert(tmp_path, labels=("neg", "pos"))
    ref = resolve_model(tmp_path)
    assert stored_labels(ref) == ("neg", "pos")
    assert same_weights(stored, load_model(ref, task="classification"))
    assert same_weights(stored, load_model(ref, task="classification", labels=["neg", "pos"]))
    with pytest.raises(BadConfig, match=r"another order, \['neg', 'pos'\]; give them in that order"):
        load_model(ref, task="classification", labels=["pos", "neg"])


def test_a_stored_head_of_another_size_gives_way_and_the_body_does_not(tmp_path: Path) -> None:
    stored = save_bert(tmp_path, labels=("neg", "pos"))
    model = load_model(resolve_model(tmp_path), task="classification", labels=["a", "b", "c"])
    assert model.classifier.weight.shape == (3, 16)
    assert same_weights(stored.bert, model.bert)


@pytest.mark.parametrize("labels", [[], ["one"], ["a", "b", "a"]])
def test_labels_that_are_none(tmp_path: Path, labels: list[str]) -> None:
    save_bert(tmp_path)
    with pytest.raises(BadConfig, match="at least two, all different"):
        load_model(resolve_model(tmp_path), task="classification", labels=labels)


def test_no_head_and_no_labels(tmp_path: Path) -> None:
    save_bert(tmp_path)
    with pytest.raises(BadConfig, match=r"no classification head yet; say which labels"):
        load_model(resolve_model(tmp_path), task="classification")


def test_a_decoder_that_classifies_knows_its_padding(tmp_path: Path) -> None:
    save_llama(tmp_path)
    ref = resolve_model(tmp_path)
    model = load_model(ref, task="classification", labels=["a", "b"])
    assert model.config.pad_token_id == load_tokenizer(ref).pad_token_id is not None
    ids = torch.tensor([[9, 8, 7, 0, 0], [9, 8, 7, 6, 5]])
    ids[0, 3:] = model.config.pad_token_id
    mask = (ids != model.config.pad_token_id).long()
    alone = model(input_ids=ids[:1, :3]).logits
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[:1], alone)


@pytest.mark.parametrize(
    ("save", "task", "message"),
    [
        (save_bert, "causal-lm", r"\(bert\) is no causal LM.*labelled data.*demo-lm"),
        (save_t5, "causal-lm", r"\(t5\) is an encoder-decoder"),
    ],
)
def test_a_model_that_cannot_do_the_task(tmp_path: Path, save: Any, task: Any, message: str) -> None:
    save(tmp_path)
    with pytest.raises(NotAvailable, match=message):
        load_model(resolve_model(tmp_path), task=task)


def test_a_kind_without_a_classification_head(tmp_path: Path) -> None:
    from transformers import CodeGenConfig, CodeGenForCausalLM

    config = CodeGenConfig(vocab_size=420, n_embd=16, n_layer=1, n_head=4, rotary_dim=4, n_positions=32)
    CodeGenForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(NotAvailable, match=r"\(codegen\) has no form with a classification head"):
        load_model(resolve_model(tmp_path), task="classification", labels=["a", "b"])


def test_weights_of_another_model_are_noticed(tmp_path: Path) -> None:
    save_llama(tmp_path)
    edit_json(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(
        BadCheckpoint, match=r"9 weights of LlamaForCausalLM are missing.*model.layers.2.input_layernorm"
    ):
        load_model(resolve_model(tmp_path), task="causal-lm")
    edit_json(tmp_path / "config.json", num_hidden_layers=2, intermediate_size=40)
    with pytest.raises(BadCheckpoint, match=r"6 weights .*stored \(16, 24\), needed \(16, 40\)"):
        load_model(resolve_model(tmp_path), task="causal-lm")


def test_a_weight_file_that_was_cut_off(tmp_path: Path) -> None:
    save_llama(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(BadCheckpoint, match=r"damaged or cut off"):
        load_model(resolve_model(tmp_path), task="causal-lm")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("{", BadCheckpoint, r"config.json cannot be read"),
        ("[]", BadCheckpoint, r"config.json cannot be read"),
        ("{}", BadCheckpoint, r"names no model_type"),
        (
            '{"model_type": "brandnew"}',
            NotAvailable,
            r"'brandnew', which transformers .* does not know.*pip install -U",
        ),
        (
            '{"model_type": "homemade", "auto_map": {"AutoConfig": "own.Config"}}',
            NotAvailable,
            r"Python code of its own \(homemade\).*--trust-remote-code",
        ),
    ],
)
def test_a_config_that_is_of_no_use(tmp_path: Path, content: str, error: type[Exception], message: str) -> None:
    save_llama(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=message):
        load_model(resolve_model(tmp_path), task="causal-lm")


OWN_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path(__file__).with_name("it-ran").touch()

class Config(LlamaConfig):
    model_type = "homemade"

class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_code_of_the_model_runs_only_when_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    stored = save_llama(tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text(OWN_CODE)
    edit_json(
        tmp_path / "model" / "config.json",
        model_type="homemade",
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    ref = resolve_model(tmp_path / "model")
    with pytest.raises(NotAvailable, match="--trust-remote-code"):
        load_model(ref, task="causal-lm")
    assert not list(tmp_path.rglob("it-ran"))
    assert same_weights(stored, load_model(ref, task="causal-lm", trust_remote_code=True))
    assert list(tmp_path.rglob("it-ran"))


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_comes_back(tmp_path: Path) -> None:
    save_llama(tmp_path)
    tokenizer = load_tokenizer(resolve_model(tmp_path))
    assert tokenizer("city centre").input_ids == make_tokenizer()("city centre").input_ids
    assert tokenizer.pad_token == "<pad>"


@pytest.mark.parametrize("save", [save_llama, save_bert])
def test_a_folder_without_tokenizer_is_refused(tmp_path: Path, save: Any) -> None:
    save(tmp_path, tokenizer=False)
    with pytest.raises(BadCheckpoint, match="tokenizer"):
        load_tokenizer(resolve_model(tmp_path))


@pytest.mark.parametrize(
    ("content", "chosen", "why"),
    [
        (["<s>", "</s>", "<|finetune_right_pad|>"], "<|finetune_right_pad|>", "made for it"),
        (["<s>", "</s>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>", "otherwise unused"),
        (["<s>", "</s>"], "</s>", "end-of-text"),
    ],
)
def test_padding_is_a_token_that_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: list[str], chosen: str, why: str
) -> None:
    from tokenizers import AddedToken, Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["a", "b", *content])}, unk_token="a"))
    inner.add_special_tokens([AddedToken(word, special=True) for word in content])
    save_llama(tmp_path, tokenizer=False)
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>").save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, logger="budwood"):
        tokenizer = load_tokenizer(resolve_model(tmp_path))
    assert tokenizer.pad_token == chosen
    assert len(tokenizer) == 2 + len(content)  # nothing was added
    assert f"no padding token; short rows are filled with '{chosen}'" in caplog.text
    assert why in caplog.text


def test_a_tokenizer_that_has_nothing_for_padding() -> None:
    class Bare:
        pad_token = eos_token = unk_token = None
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012

    with pytest.raises(BadCheckpoint, match=r"none that could serve; set pad_token"):
        ensure_padding(Bare(), "m")


# --- GGUF -------------------------------------------------------------------------------------------------------------


def test_a_gguf_file_is_a_model_that_can_be_trained_and_saved(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stored = save_gguf(tmp_path / "tiny.gguf")
    capfd.readouterr()
    ref = resolve_model(tmp_path / "tiny.gguf")
    model, tokenizer = load_model(ref, task="causal-lm"), load_tokenizer(ref)
    assert capfd.readouterr() == ("", "")
    assert ref.kind == "gguf"
    assert same_weights(stored, model)
    assert tokenizer("city centre").input_ids == make_tokenizer()("city centre").input_ids
    assert tokenizer.pad_token_id is not None
    model.save_pretrained(tmp_path / "saved")  # refused by transformers as long as it takes it for quantised
    tokenizer.save_pretrained(tmp_path / "saved")
    again = resolve_model(tmp_path / "saved")
    assert same_weights(stored, load_model(again, task="causal-lm"))
    assert load_model(ref, task="causal-lm", dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_model(ref, task="classification", labels=["a", "b"]).score.weight.shape == (2, 16)


def test_conversion_makes_an_ordinary_folder(tmp_path: Path) -> None:
    stored = save_gguf(tmp_path / "tiny.gguf")
    (tmp_path / "out").mkdir()
    count = gguf.convert(tmp_path / "tiny.gguf", tmp_path / "out", context=64)
    assert count == stored.num_parameters()
    assert not list((tmp_path / "out").glob("*.gguf")) + list((tmp_path / "out").glob("tokenizer.model"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "bfloat16"
    ref = resolve_model(tmp_path / "out")
    assert same_weights(stored.to(torch.bfloat16), load_model(ref, task="causal-lm"))
    tokenizer = load_tokenizer(ref)
    assert tokenizer.model_max_length == 64
    assert tokenizer("city centre").input_ids == make_tokenizer()("city centre").input_ids


def test_a_gguf_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    ref = ModelRef(kind="gguf", path=tmp_path / "bad.gguf", name="bad.gguf")
    with pytest.raises(BadCheckpoint, match=r"bad.gguf"):
        load_model(ref, task="causal-lm")
    with pytest.raises(BadCheckpoint, match=r"bad.gguf"):
        load_tokenizer(ref)


def test_without_the_gguf_package_the_install_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(__file__, tmp_path / "some.gguf")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(NotAvailable, match=r"pip install 'budwood\[demo\]'"):
        load_model(resolve_model(tmp_path / "some.gguf"), task="causal-lm")
