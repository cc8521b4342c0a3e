"""Tagged words and questions about a text: learned, saved with their heads, resumed, merged, asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from budwood.cli.app import main
from budwood.errors import BadConfig
from budwood.interop import describe
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job
from budwood.train.run import Run, check_job, resume, train
from tokens import model_folder, tokenizer
from training import StopAt

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 8, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip


def tagged(count: int) -> list[dict[str, object]]:
    """w1 and w2 begin an X, w3 and w4 a Y; w11 to w14 go on with one and w21 to w24 with the other."""
    rows: list[dict[str, object]] = []
    for n in range(count):
        tokens, tags = ["the"], ["O"]
        for begin in (1 + n % 4, 1 + n // 4 % 4):
            kind, on = ("X", 11) if begin < 3 else ("Y", 21)
            tokens += [f"w{begin}", f"w{on + n % 4}", "is", "good"]
            tags += [f"B-{kind}", f"I-{kind}", "O", "O"]
        rows.append({"tokens": tokens[: 9 - n % 3], "tags": tags[: 9 - n % 3]})
    return rows


def asked(count: int) -> list[dict[str, object]]:
    """Colors are w20 to w24; every fourth text has none."""
    rows: list[dict[str, object]] = []
    for n in range(count):
        color, has_one = f"w{20 + n % 5}", n % 4 > 0
        context = f"a film w{n % 9} . " + (f"the color {color} . " if has_one else "") + "it is good" + " ." * (n % 3)
        rows.append({"context": context, "question": "what is the color ?", "answers": [color] if has_one else []})
    return rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("words")
    model_folder(place / "bert", "bert")
    model_folder(place / "llama")
    for name, rows in (("names", tagged(96)), ("passages", asked(120))):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def go(place: Path, data: str, out: Path, *, kind: str = "bert", **more: Any) -> Run:
    said = {"budget": more.pop("budget", "60steps"), **QUICK}
    return train(place / kind, place / f"{data}.jsonl", config=said, out=out, **{"method": "lora:rank=4", **more})


def proof_of(run: Run) -> dict[str, Any]:
    return next(line["proof"] for line in run.metrics() if "proof" in line)


def scores(run: Run) -> dict[str, Any]:
    assert run.result is not None
    return {entry.metric: entry for entry in run.result.quality}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_tags_are_learned(place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(place, "names", tmp_path / "run", kind=kind)
    found = scores(run)
    assert set(found) == {"span_f1", "span_precision", "span_recall", "token_accuracy", "loss"}
    assert found["span_f1"].score.low > 0.6 > found["span_f1"].base.high
    assert run.manifest.task == "token-classification"
    assert describe(run.adapter).labels == ("O", "B-X", "I-X", "B-Y", "I-Y")
    assert proof_of(run)["reload"]["largest_difference"] == 0.0 and proof_of(run)["movement"]["unmoved"] == {}
    assert "pipeline_tag: token-classification" in (run.adapter / "README.md").read_text()
    model, _ = run.load()
    assert type(model).__name__.endswith("ForTokenClassification") and model.config.id2label[1] == "B-X"
    sample = run.samples()[-1]
    assert sample["reference"].startswith("the [") and sample["now"] == sample["reference"] != sample["base"]
    assert main(["try", str(run.path), "--prompt", "the w3 w22 is good", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["after"] == "the [Y w3 w22] is good"


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_answers_are_learned(place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = go(place, "passages", tmp_path / "run", kind=kind)
    found = scores(run)
    assert set(found) == {"exact_match", "token_f1", "loss"} and run.manifest.task == "question-answering"
    assert found["exact_match"].score.low > 0.5 > found["exact_match"].base.high
    assert describe(run.adapter).labels is None
    assert proof_of(run)["reload"]["largest_difference"] == 0.0
    model, _ = run.load()
    assert type(model).__name__.endswith("ForQuestionAnswering")
    (tmp_path / "text.txt").write_text("a film w3 . the color w23 . it is good")
    asking = ["try", str(run.path), "--prompt", "what is the color ?", "--json"]
    assert main([*asking, "--file", str(tmp_path / "text.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["after"].startswith("w23")
    assert main(["try", str(run.path), "--rows", "2"]) == 0
    assert "in the data" in capsys.readouterr().out


@pytest.mark.slow
def test_other_methods_and_merging(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for data, method in (("names", "adapter-h"), ("passages", "ia3"), ("names", "selective")):
        run = go(place, data, tmp_path / method, method=method, budget="4steps")
        assert proof_of(run)["reload"]["largest_difference"] == 0.0
    for data, kind in (("names", "llama"), ("passages", "llama")):
        run = go(place, data, tmp_path / f"merge-{data}", kind=kind, budget="4steps")
        assert main(["merge", str(run.path), "--out", str(tmp_path / f"merged-{data}")]) == 0
        assert main(["merge", str(run.adapter), "--out", str(tmp_path / f"bare-{data}")]) == 0
        assert main(["eval", str(run.path), "--out", str(tmp_path / f"{data}.jsonl")]) == 0
        assert "prediction" in json.loads((tmp_path / f"{data}.jsonl").read_text().splitlines()[0])
    capsys.readouterr()


@pytest.mark.parametrize("data", ["names", "passages"])
def test_resumed_is_bit_for_bit_what_was_not_stopped(place: Path, tmp_path: Path, data: str) -> None:
    whole = go(place, data, tmp_path / "whole", budget="16steps")
    with pytest.raises(Interrupted):
        go(place, data, tmp_path / "cut", budget="16steps", observer=StopAt(7))
    left, right = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, resume(tmp_path / "cut")))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_refusals(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = AutoModelForSequenceClassification.from_pretrained(place / "bert", num_labels=5)
    for data, what, form in (
        ("names", "tag words", "TokenClassification"), ("passages", "find answers", "QuestionAnswering")
    ):  # fmt: skip
        with pytest.raises(BadConfig, match=f"cannot {what}; load it with transformers.AutoModelFor{form}"):
            check_job(Job(model=given, tokenizer=tokenizer(), data=place / f"{data}.jsonl"))
    run = go(place, "passages", tmp_path / "run", budget="1steps")
    assert main(["try", str(run.path), "--prompt", "what ?"]) == 2
    assert "a question is asked about a text: name a file that holds it, --file" in capsys.readouterr().err
    assert main(["try", str(run.path), "--file", str(tmp_path / "gone.txt"), "--prompt", "what ?"]) == 4
    assert "gone.txt does not exist" in capsys.readouterr().err
    assert main(["try", str(run.path), "--file", str(place / "passages.jsonl")]) == 2
    assert "nothing is asked about it; add --prompt" in capsys.readouterr().err
    other = go(place, "names", tmp_path / "other", budget="1steps")
    assert main(["try", str(other.path), "--file", "x.txt", "--prompt", "what ?"]) == 2
    assert "is for token-classification; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["prompt-tuning", "prefix-tuning"])
def test_what_is_longer_than_the_model_reads(
    place: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt leaves 44 of the encoder's 64 positions: words behind are left out, texts are read in windows."""
    run = go(place, "names", tmp_path / "run", method=method, budget="1steps")
    assert main(["try", str(run.path), "--prompt", "the w3 is good " * 60, "--json"]) == 0
    run = go(place, "passages", tmp_path / "asked", method=method, budget="1steps")
    (tmp_path / "text.txt").write_text("a film w3 . " * 60 + "the color w23")
    asking = ["try", str(run.path), "--prompt", "what is the color ?", "--file", str(tmp_path / "text.txt")]
    assert main([*asking, "--json"]) == 0
    capsys.readouterr()
