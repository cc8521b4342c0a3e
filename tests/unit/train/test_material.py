from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from budwood.anatomy import discover
from budwood.core import attach
from budwood.errors import BadConfig
from budwood.methods import Full, LoRA, Selective
from budwood.train.config import TrainConfig
from budwood.train.heads import new_modules, train_new_modules
from budwood.train.job import Job, as_config
from budwood.train.material import base_copy, gather, spread
from tokens import model_folder, tokenizer
from training import tiny


def test_a_base_copy_is_the_base_and_shares_nothing() -> None:
    model = tiny()
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attach(model, LoRA(), name="default")
    copy = base_copy(model)
    assert all(torch.equal(tensor, plain[name]) for name, tensor in copy.state_dict().items())
    with torch.no_grad():
        copy.lm_head.weight.zero_()
    assert torch.equal(model.lm_head.weight, plain["lm_head.weight"])
    assert not copy.training


def test_tied_weights_stay_tied_in_a_copy() -> None:
    model = tiny("gpt2")
    copy = base_copy(model)
    assert copy.lm_head.weight is copy.transformer.wte.weight


def test_what_no_checkpoint_holds_is_trained_too(tmp_path: Path) -> None:
    model_folder(tmp_path, "bert")
    loads = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        loads.append(AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=2))
    new = new_modules(*loads)
    assert set(new) == {"bert.pooler.dense", "classifier"}
    anatomy = discover(loads[0])
    method = train_new_modules(LoRA(), loads[0], anatomy, new)
    assert method.trained == ("classifier", "bert.pooler.dense")
    assert train_new_modules(Full(), loads[0], anatomy, new) == Full()
    assert train_new_modules(LoRA(), loads[0], anatomy, ("classifier",)) == LoRA()
    norms = train_new_modules(Selective(), loads[0], anatomy, new)
    assert "bert.pooler.dense.weight" in norms.unfreeze(loads[0], anatomy)


def test_rows_are_spread_evenly() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread([], 5) == []


def films(tmp_path: Path, classes: tuple[str, ...]) -> Path:
    rows = [{"text": f"the film w{n}", "label": classes[n % len(classes)]} for n in range(30)]
    (tmp_path / "films.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "films.jsonl"


def test_a_loaded_classifier_keeps_the_order_of_its_classes(tmp_path: Path) -> None:
    model = tiny("bert-classify")
    model.config.id2label = {0: "good", 1: "bad", 2: "fair"}
    data = films(tmp_path, ("bad", "fair", "good"))
    found = gather(Job(model=model, data=data, tokenizer=tokenizer()))
    assert found.corpus.labels == ("good", "bad", "fair")
    with pytest.raises(BadConfig, match="2 classes and the model's head 3; load the model with num_labels=2"):
        gather(Job(model=tiny("bert-classify"), data=films(tmp_path, ("bad", "good")), tokenizer=tokenizer()))


def test_rows_keep_at_most_what_the_model_reads(tmp_path: Path) -> None:
    words = " ".join(f"w{n}" for n in range(60))
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"text": f"w{n} {words} {words}"}) + "\n" for n in range(9))
    )
    long = tokenizer()
    long.model_max_length = 10**9
    found = gather(Job(model=tiny(), data=tmp_path / "long.jsonl", tokenizer=long))
    assert found.max_length == tiny().config.max_position_embeddings
    assert max(len(example.ids) for example in found.train.examples) == found.max_length
    assert found.train.report.rows_cut == len(found.train.examples)


def test_identity_changes_with_rows_and_tokens(tmp_path: Path) -> None:
    data = films(tmp_path, ("bad", "good"))
    model_folder(tmp_path / "m", "bert")
    job = Job(model=tmp_path / "m", data=data)
    first = gather(job).identity
    assert gather(job).identity == first
    data.write_text(data.read_text().replace("w7", "w8"))
    assert gather(job).identity != first


def test_configs_and_flags_together() -> None:
    assert as_config({"lr": 1e-3}, budget="5steps", seed=None) == TrainConfig(learning_rate=1e-3, budget="5steps")
    assert as_config(TrainConfig(batch=3), budget="5steps") == TrainConfig(batch=3, budget="5steps")
    assert as_config(None) == TrainConfig()


def test_jobs_from_files() -> None:
    said = {"model": "demo-lm", "data": "faq.jsonl", "method": {"lora": {"r": 4}}, "lr": 1e-3, "template": "plain"}
    job = Job.from_dict(said)
    assert job.method == LoRA(rank=4)
    assert job.config.learning_rate == 1e-3
    again = Job.from_dict(job.to_dict())
    assert again == job
    with pytest.raises(BadConfig, match="which data; add a line `data:"):
        Job.from_dict({"model": "demo-lm"})
    with pytest.raises(BadConfig, match="did you mean 'learning_rate'"):
        Job.from_dict({**said, "learning_rte": 1})
