from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_generate import build
from transformers import BertConfig, BertForSequenceClassification

from budwood.data import read
from budwood.errors import BadConfig, BadData
from budwood.evaluate import METRICS, Options, Task, evaluate
from budwood.evaluate.overlap import rouge_l_of
from tiny_tokenizers import make_tokenizer

QUESTIONS = [
    {"question": "What is it ?", "answer": "a place"},
    {"question": "area", "answer": "city centre ."},
    {"question": "What is it ?", "answer": "the city"},
    {"question": "name : Alimentum", "answer": "There is"},
]


def written(folder: Path, rows: list[dict[str, Any]], name: str = "test.jsonl") -> Any:
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read(folder)


def classifier(**settings: Any) -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=420,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=2,
        **{"num_labels": 2, **settings},
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.normal_(model.classifier.weight, std=2.0)
    return model.eval()


def test_losses_of_answers(tmp_path: Path) -> None:
    corpus = written(tmp_path / "d", QUESTIONS)
    model, tokenizer = build(), make_tokenizer()
    result = evaluate(model, tokenizer, corpus)
    assert [score.name for score in result.scores] == ["loss", "perplexity", "token_accuracy"]
    assert result.score("perplexity").value == pytest.approx(np.exp(result.score("loss").value))
    assert [p.row for p in result.predictions] == [0, 1, 2, 3] and result.notes == ()
    assert result.score("loss").value == pytest.approx(
        sum(p.values["loss_sum"] for p in result.predictions) / sum(p.values["tokens"] for p in result.predictions)
    )
    assert result.predictions[1].references == ("city centre .",) and result.predictions[1].prediction is None
    ids = tokenizer("area city centre .")["input_ids"] + [1]
    with torch.no_grad():
        log = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    start = len(tokenizer("area")["input_ids"])
    own = -sum(float(log[t - 1, ids[t]]) for t in range(start, len(ids)))
    assert result.predictions[1].values["loss_sum"] == pytest.approx(own, rel=1e-4)
    assert evaluate(model, tokenizer, corpus, options=Options(batch=1)).score("loss").value == pytest.approx(
        result.score("loss").value, rel=1e-5
    )


def test_answers_of_rows_that_ask_the_same_are_all_right(tmp_path: Path) -> None:
    corpus = written(tmp_path / "d", QUESTIONS)
    model, tokenizer = build(), make_tokenizer()
    options = Options(metrics=("rouge_l", "bleu", "exact_match", "token_f1", "loss"), max_new_tokens=6)
    result = Task(corpus, "test", options)(model, tokenizer)
    assert [score.name for score in result.scores] == list(options.metrics)
    assert result.score("rouge_l").n == 3
    first = result.predictions[0]
    assert first.references == ("a place", "the city") and first.prediction is not None
    assert first.values["rouge_l"] == max(rouge_l_of(first.prediction, text) for text in first.references)
    assert {"loss_sum", "tokens", "exact_match", "token_f1", "new_tokens", "stopped"} <= set(first.values)
    assert result.predictions[2].prediction is None and result.predictions[2].row == 2
    answered = [p for p in result.predictions if p.prediction is not None]
    assert np.mean([p.values["rouge_l"] for p in answered]) == pytest.approx(result.score("rouge_l").value)
    data = json.loads(json.dumps(first.to_dict()))
    assert data["row"] == 0 and data["where"].endswith("test.jsonl, row 1") and data["prompt"] == "What is it ?"


def test_some_answers_only(tmp_path: Path) -> None:
    corpus = written(tmp_path / "d", QUESTIONS)
    options = Options(metrics=("token_f1",), max_new_tokens=3, answers=2)
    result = evaluate(build(), make_tokenizer(), corpus, options=options)
    assert result.score("token_f1").n == 2 and len(result.predictions) == 2
    assert result.notes == ("the first 2 of 3 prompts were answered",)


def test_what_was_cut_is_said(tmp_path: Path) -> None:
    corpus = written(tmp_path / "d", [*QUESTIONS, {"question": "q" * 90, "answer": "x"}])
    result = evaluate(build(), make_tokenizer(), corpus)
    assert result.notes == (
        "1 of 5 rows were cut to 64 tokens",
        "1 of 5 rows had nothing to score and were left out",
    )


def test_classes(tmp_path: Path) -> None:
    rows = [{"text": f"place number {n}", "label": "good" if n % 2 else "bad"} for n in range(8)]
    corpus = written(tmp_path / "d", rows)
    assert corpus.labels is not None
    model, tokenizer = classifier(), make_tokenizer()
    result = evaluate(model, tokenizer, corpus, options=Options(batch=3))
    assert {score.name for score in result.scores} == set(METRICS["classification"])
    assert [p.row for p in result.predictions] == list(range(8))
    assert {p.prediction for p in result.predictions} <= {"good", "bad"}
    assert result.predictions[1].references == ("good",)
    right = np.mean([p.prediction == p.references[0] for p in result.predictions])
    assert result.score("accuracy").value == right
    only = evaluate(model, tokenizer, corpus, options=Options(metrics=("mcc",)))
    assert [score.name for score in only.scores] == ["mcc"]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    rows = [{"text": f"place number {n}", "label": "good" if n % 2 else "bad"} for n in range(8)]
    corpus = written(tmp_path / "d", rows)
    one = classifier(id2label={0: "bad", 1: "good"})
    other = classifier(id2label={0: "good", 1: "other", 2: "bad"}, num_labels=3)
    with torch.no_grad():
        other.load_state_dict(
            {**one.state_dict(), **{k: v for k, v in other.state_dict().items() if "classifier" in k}}
        )
        other.classifier.weight.copy_(
            torch.stack([one.classifier.weight[1], one.classifier.weight[0] * 0, one.classifier.weight[0]])
        )
        other.classifier.bias.copy_(torch.tensor([0.0, -99.0, 0.0]))
    first = evaluate(one, make_tokenizer(), corpus)
    second = evaluate(other, make_tokenizer(), corpus)
    assert [p.prediction for p in first.predictions] == [p.prediction for p in second.predictions]
    assert first.score("accuracy").value == second.score("accuracy").value
    with pytest.raises(
        BadData, match=r"has the class 'good', which the model does not know; its 2 classes are bad, fine"
    ):
        evaluate(classifier(id2label={0: "bad", 1: "fine"}), make_tokenizer(), corpus)


def test_numbers_stand_for_classes(tmp_path: Path) -> None:
    rows = [{"text": f"place number {n}", "label": n % 2} for n in range(6)]
    corpus = written(tmp_path / "d", rows)
    result = evaluate(classifier(id2label={0: "NEGATIVE", 1: "POSITIVE"}), make_tokenizer(), corpus)
    assert [p.references[0] for p in result.predictions] == ["NEGATIVE", "POSITIVE"] * 3


def test_bad_input(tmp_path: Path) -> None:
    corpus = written(tmp_path / "d", QUESTIONS)
    model, tokenizer = build(), make_tokenizer()
    with pytest.raises(BadConfig, match="no metric 'rougel' for causal-lm; did you mean 'rouge_l'"):
        evaluate(model, tokenizer, corpus, options=Options(metrics=("rougel",)))
    with pytest.raises(BadConfig, match="no metric 'accuracy' for causal-lm"):
        evaluate(model, tokenizer, corpus, options=Options(metrics=("accuracy",)))
    with pytest.raises(BadConfig, match="no score 'mcc'"):
        evaluate(model, tokenizer, corpus).score("mcc")
    with pytest.raises(BadData, match="no validation split"):
        evaluate(model, tokenizer, corpus, "validation")
    plain = written(tmp_path / "p", [{"text": "There is a place"}] * 3)
    assert evaluate(model, tokenizer, plain).score("loss").n == 3
    with pytest.raises(BadData, match=r"no questions with answers.*ask for loss, perplexity"):
        evaluate(model, tokenizer, plain, options=Options(metrics=("rouge_l",)))
