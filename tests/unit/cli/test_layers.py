"""Flags over BUDWOOD_* over the file over defaults, and "did you mean" in every layer."""

from __future__ import annotations

from pathlib import Path

import pytest

from budwood.cli.layers import layered, method_of, read_yaml, split, text_of
from budwood.errors import BadConfig
from budwood.methods import LoRA


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("model: lm\nbatch: 2\nseed: 2\nbudget: 2steps\nmethod: {lora: {rank: 2}}\n")
    return path


def test_each_layer_wins_over_those_below(file: Path) -> None:
    environment = {
        "BUDWOOD_BATCH": "3",
        "BUDWOOD_SEED": "3",
        "HOME": "/",
        "BUDWOOD_CACHE": "/c",
        "BUDWOOD_HUB": "closed",
    }
    found = layered({"seed": 4}, file, environment)
    assert found == {"model": "lm", "batch": 3, "seed": 4, "budget": "2steps", "method": {"lora": {"rank": 2}}}


def test_the_environment_can_name_the_file(file: Path) -> None:
    assert layered({}, None, {"BUDWOOD_CONFIG": str(file)})["seed"] == 2
    assert layered({}, None, {"BUDWOOD_SEED": ""}) == {}


def test_values_of_the_environment_are_read_as_yaml_would() -> None:
    found = layered(
        {}, None, {"BUDWOOD_LEARNING_RATE": "0.001", "BUDWOOD_METHOD": "lora:rank=2", "BUDWOOD_BUDGET": "5"}
    )
    assert found == {"learning_rate": 0.001, "method": "lora:rank=2", "budget": "5"}


def test_names_of_other_tools(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(
        "model_name_or_path: lm\ndataset: d.jsonl\noutput_dir: o\nper_device_train_batch_size: 4\n"
        "gradient_accumulation_steps: 2\nmax_steps: 9\ncutoff_len: 64\n"
    )
    assert layered({}, path, {}) == {
        "model": "lm", "data": "d.jsonl", "out": "o", "batch": 8, "accumulate": 2, "budget": "9steps", "max_length": 64,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", r"run.yaml: no setting is called 'lerning_rate'; did you mean 'learning_rate'"),
        ("modle: lm", "did you mean 'model'"),
        ("batch: 4\nbatch_size: 8", "keep one of them"),
        ("model: a\nbase_model: b", "second time"),
        ("- a\n- b", "holds list"),
        ("a: [1", r"run.yaml is not YAML.*line 1"),
        ("1: 2", "key: value"),
    ],
)
def test_mistakes_in_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=message):
        layered({}, path, {})


def test_mistakes_in_the_environment() -> None:
    with pytest.raises(BadConfig, match=r"environment .*'batc'.*did you mean 'batch'"):
        layered({}, None, {"BUDWOOD_BATC": "3"})


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(BadConfig, match="not UTF-8"):
        read_yaml(tmp_path / "binary")
    (tmp_path / "empty.yaml").write_text("")
    assert read_yaml(tmp_path / "empty.yaml") == {}


def test_what_is_a_setting_and_what_stands_beside() -> None:
    training, beside = split({"batch": 4, "model": "lm", "out": "o"})
    assert (training, beside) == ({"batch": 4}, {"model": "lm", "out": "o"})


def test_methods_in_every_form() -> None:
    assert method_of(None) == LoRA()
    assert method_of("lora:rank=4") == method_of({"lora": {"rank": 4}}) == method_of({"lora": {"r": 4}}) == LoRA(rank=4)
    for wrong, message in (
        ({"lora": {"rnk": 4}}, "did you mean 'rank'"), ("lorra", "did you mean 'lora'"), (7, "write a name"),
        ({"lora": 3}, "field: value"), ({}, "one name"),
    ):  # fmt: skip
        with pytest.raises(BadConfig, match=message):
            method_of(wrong)


def test_text_must_be_text() -> None:
    assert text_of({"out": Path("o")}, "out") == "o"
    with pytest.raises(BadConfig, match="model is 7; it must be text"):
        text_of({"model": 7}, "model")
