from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.hf_api import HfApi
from safetensors.torch import load_file

from budwood.assets import hub, load_model, load_tokenizer, resolve_data, resolve_model
from budwood.assets.catalogue import CATALOGUE, find
from budwood.assets.folder import conversion
from budwood.errors import BadCheckpoint, NotAvailable
from small_models import COMMIT, save_bert, save_llama, small_hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **settings: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(HfApi, "model_info", refuse)
    monkeypatch.setattr(HfApi, "dataset_info", refuse)


# --- local things -----------------------------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is_and_closes_the_hub(
    tmp_path: Path, online: None, nobody_asks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_llama(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    ref = resolve_model("model")
    assert (ref.kind, ref.path, ref.name, ref.path_or_id) == (
        "folder",
        tmp_path / "model",
        "model",
        str(tmp_path / "model"),
    )
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE is True


def test_a_remote_name_later_opens_the_hub_again(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path / "model")
    resolve_model(tmp_path / "model")
    monkeypatch.setattr(hub, "ask", lambda repo, kind: None)
    assert resolve_data("someone/some-data") == "someone/some-data"
    assert constants.HF_HUB_OFFLINE is False
    resolve_model(tmp_path / "model")
    assert constants.HF_HUB_OFFLINE is False  # the data is still to be fetched by this process


def test_the_users_own_offline_switch_stays(tmp_path: Path, nobody_asks: None) -> None:
    save_llama(tmp_path / "model")
    resolve_model(tmp_path / "model")
    with pytest.raises(NotAvailable, match="offline"):
        resolve_model("someone/some-model")
    with pytest.raises(NotAvailable, match="offline"):
        resolve_data("someone/some-data")
    assert constants.HF_HUB_OFFLINE is True


def test_a_demo_name_is_the_asset(own_cache: Path, nobody_asks: None) -> None:
    for name in ("demo-lm", "demo-chat"):
        (own_cache / find(name).folder_name).mkdir(parents=True)
        (own_cache / find(name).folder_name / "SOURCE.json").write_text('{"files": {}}')
    ref = resolve_model("demo-lm")
    assert (ref.kind, ref.path, ref.name) == ("demo", own_cache / find("demo-lm").folder_name, "demo-lm")
    assert resolve_data("demo-chat") == own_cache / find("demo-chat").folder_name


def test_a_folder_of_that_name_comes_before_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path / "demo-lm")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("demo-lm").kind == "folder"


def test_data_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    assert resolve_data(tmp_path / "rows.jsonl") == tmp_path / "rows.jsonl"
    assert resolve_data(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo-lmm", r"'demo-lmm' is no folder or file.*org/name; did you mean 'demo-lm'\?"),
        ("my-modle", r"did you mean 'my-model'\?"),
        ("gpt2", r"written org/name; there are: demo-encoder, demo-lm"),
        ("demo-chat", r"demo-chat is data, and a model is asked for here; .*demo-lm"),
        ("./my-modl", r"no file or folder './my-modl'; did you mean 'my-model'\?"),
        ("nowhere/at/all", r"no file or folder 'nowhere/at/all'; nor is there a folder nowhere/at"),
        ("my-model/x.gguf", r"no file or folder 'my-model/x.gguf'; nothing in .*my-model has a name like it"),
        ("rows.jsonl", r"rows.jsonl is a file.*looks like data"),
        ("weights.bin", r"weights.bin, which is a pickle: (.|\n)*safetensors"),
        ("alone.safetensors", r"alone.safetensors holds weights alone; name the folder"),
    ],
)
def test_names_that_mean_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    (tmp_path / "my-model").mkdir()
    for file in ("rows.jsonl", "weights.bin", "alone.safetensors"):
        (tmp_path / file).write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAvailable, match=message):
        resolve_model(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo-chatt", r"did you mean 'demo-chat'\?"),
        ("demo-lm", r"demo-lm is a model, and data is asked for here; .*demo-chat, demo-questions, demo-topics"),
        ("faq.jsnl", r"did you mean 'faq.jsonl'\?"),
        ("fak.jsonl", r"no file or folder 'fak.jsonl'; did you mean 'faq.jsonl'\?"),
        ("data/faq.csv", r"no file or folder 'data/faq.csv'; nor is there a folder data"),
    ],
)
def test_names_that_mean_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    (tmp_path / "faq.jsonl").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAvailable, match=message):
        resolve_data(name)


# --- folders that are no model, or not all of one ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no config.json"),
        (("adapter_config.json",), r"it is an adapter. Name the base model here"),
        (("run.json",), r"it is a run of Budwood. To use it: budwood try"),
        (("tiny.Q4.gguf",), r"name the file: .*tiny.Q4.gguf"),
    ],
)
def test_a_folder_without_config_says_what_it_seems_to_be(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for file in files:
        (tmp_path / file).write_text("{}")
    with pytest.raises(NotAvailable, match=message):
        resolve_model(tmp_path)


def test_a_folder_around_the_model_folder_names_it(tmp_path: Path) -> None:
    save_llama(tmp_path / "out" / "checkpoint")
    with pytest.raises(NotAvailable, match=r"there is one in .*out/checkpoint"):
        resolve_model(tmp_path / "out")


def test_missing_weights_and_missing_shards(tmp_path: Path) -> None:
    model = save_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadCheckpoint, match=r"has a config.json and no weights: expected model.safetensors"):
        resolve_model(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert resolve_model(tmp_path).kind == "folder"
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(BadCheckpoint, match=r"lacks 1 of \d+ weight files, model-00002-of-"):
        resolve_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(BadCheckpoint, match=r"index.json cannot be read"):
        resolve_model(tmp_path)


def test_pickles_are_refused_and_the_command_that_is_named_converts_them(tmp_path: Path) -> None:
    weights = save_llama(tmp_path, tie_word_embeddings=True).state_dict()
    (tmp_path / "model.safetensors").unlink()
    half = len(weights) // 2
    for number, names in enumerate((list(weights)[:half], list(weights)[half:]), start=1):
        torch.save({name: weights[name] for name in names}, tmp_path / f"pytorch_model-0000{number}-of-00002.bin")
    with pytest.raises(NotAvailable, match=r"pytorch_model-00001-of-00002.bin, which is a pickle") as caught:
        resolve_model(tmp_path)
    command = conversion(tmp_path)
    assert command in str(caught.value)
    subprocess.run(command.replace("python ", f"{sys.executable} ", 1), shell=True, check=True)
    assert set(load_file(tmp_path / "model.safetensors")) == set(weights)
    loaded = load_model(resolve_model(tmp_path), task="causal-lm")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in weights.items())


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_model_is_fetched_once_and_complete(
    tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = save_llama(tmp_path / "served")
    (tmp_path / "served" / "pytorch_model.bin").write_bytes(b"a pickle that nobody wants")
    (tmp_path / "served" / "consolidated.safetensors").write_bytes(b"the same weights once more")
    said: list[str] = []
    with small_hub({"someone/tiny": tmp_path / "served"}) as (address, asked):
        use_hub(monkeypatch, address)
        ref = resolve_model("someone/tiny", say=said.append)
    assert (ref.kind, ref.name, ref.path_or_id, ref.revision) == ("hub", "someone/tiny", "someone/tiny", COMMIT)
    assert "kept in" in said[0]
    assert not any("pytorch_model" in path or "consolidated" in path for path in asked)
    model = load_model(ref, task="causal-lm")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in stored.state_dict().items())
    assert load_tokenizer(ref)("a b").input_ids

    # the hub is gone: the copy in its cache does, and so it does when the network is forbidden
    assert resolve_model("someone/tiny", say=said.append).path == ref.path
    assert "taking the copy in the hub's cache" in said[-1]
    assert resolve_model("someone/tiny", offline=True) == ref


def test_what_the_hub_refuses_is_said(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pickled", "raw", "gguf"):
        (tmp_path / name).mkdir()
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (tmp_path / "raw" / "README.md").write_bytes(b"x")
    (tmp_path / "gguf" / "tiny.gguf").write_bytes(b"x")
    served = {f"someone/{name}": tmp_path / name for name in ("pickled", "raw", "gguf")}
    with small_hub(served, gated=("someone/gated",)) as (address, asked):
        use_hub(monkeypatch, address)
        for name, message in (
            ("absent", r"no model 'someone/absent' that you may see: check the spelling, or log in"),
            ("gated", r"asks for a licence to be accepted.*hf auth login"),
            ("pickled", r"pytorch_model.bin only, which is a pickle(.|\n)*hf download someone/pickled"),
            ("raw", r"no safetensors weights"),
            ("gguf", r"hf download someone/gguf tiny.gguf"),
        ):
            with pytest.raises(NotAvailable, match=message):
                resolve_model(f"someone/{name}")
        with pytest.raises(NotAvailable, match=r"no dataset 'someone/absent'"):
            resolve_data("someone/absent")
        assert resolve_data("someone/raw") == "someone/raw"
    assert not any("resolve" in path for path in asked)  # nothing was downloaded


@pytest.mark.parametrize("how", ["refused", "silent", "unknown host"])
def test_a_hub_that_does_not_answer_is_given_up_soon(online: None, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1] if how == 'silent' else 9}"
        use_hub(monkeypatch, "http://hub.invalid" if how == "unknown host" else address)
        questions = ((resolve_model, "hf download a/b"), (resolve_data, "hf download a/b .*dataset"))
        for resolve, command in questions[: 1 if how == "silent" else 2]:
            started = time.perf_counter()
            with pytest.raises(NotAvailable, match=rf"cannot be asked(.|\n)*{command}"):
                resolve("a/b")
            assert time.perf_counter() - started < 5


def test_cached_data_does_without_the_hub(tmp_path: Path, online: None, monkeypatch: pytest.MonkeyPatch) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9")
    (tmp_path / "datasets" / "a___b").mkdir(parents=True)
    assert resolve_data("a/b") == "a/b"
    assert constants.HF_HUB_OFFLINE is True  # so that reading it does not ask again
    assert resolve_data("a/b", offline=True) == "a/b"


def test_a_bert_folder_is_a_model(tmp_path: Path) -> None:
    save_bert(tmp_path)
    assert resolve_model(tmp_path).kind == "folder"
    assert {asset.kind for asset in CATALOGUE} == {"causal-lm", "encoder", "data"}
