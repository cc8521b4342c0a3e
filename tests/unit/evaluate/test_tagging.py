"""Scores of tags against numbers counted by hand, and the same tags whatever the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, PreTrainedModel

from budwood.data import IGNORE, Example, Tagged, collate, read
from budwood.data.tagging import encode_words, labels_of
from budwood.errors import BadConfig, BadData
from budwood.evaluate import Options, evaluate, tag, tag_sentences
from budwood.evaluate.tagging import Tagging
from budwood.train.objective import Tag
from families import FAMILIES
from tokens import tokenizer

NAMES = ("O", "B-X", "I-X", "B-Y", "I-Y")


def model(
    family: str = "bert", form: Any = AutoModelForTokenClassification, labels: int = len(NAMES)
) -> PreTrainedModel:
    torch.manual_seed(0)
    config = FAMILIES[family].build().config
    config.num_labels, config.pad_token_id = labels, 0
    if labels == len(NAMES):
        config.id2label = dict(enumerate(NAMES))
    return form.from_config(config).eval()


def tagging(said: list[str], right: list[str]) -> Tagging:
    rows = range(len(said))
    return Tagging(
        names=NAMES, rows=tuple(rows), words=tuple(tuple(range(len(row.split()))) for row in said),
        said=tuple(tuple(row.split()) for row in said), right=tuple(tuple(row.split()) for row in right),
        losses=np.array([float(len(row.split())) for row in said]),
    )  # fmt: skip


def test_scores_are_those_counted_by_hand() -> None:
    found = tagging(["B-X I-X O O", "I-Y O O", "O O"], ["B-X I-X O B-Y", "B-Y O O", "O O"])
    scores = {score.name: score for score in found.scores}
    assert found.counts().tolist() == [[1, 1, 2], [1, 1, 1], [0, 0, 0]]
    assert found.counts(strict=True).tolist() == [[1, 1, 2], [0, 0, 1], [0, 0, 0]]
    values = {name: score.value for name, score in scores.items()}
    assert values == pytest.approx({
        "span_precision": 1.0, "span_recall": 2 / 3, "span_f1": 0.8, "strict_span_f1": 0.5,
        "token_accuracy": 7 / 9, "loss": 1.0,
    })  # fmt: skip
    assert all(score.low <= score.value <= score.high for score in scores.values())


def test_where_nothing_is_marked_scores_say_so() -> None:
    scores = {score.name: score for score in tagging(["O O"], ["O O"]).scores}
    assert (scores["span_f1"].value, scores["span_f1"].low, scores["span_f1"].high) == (0.0, 0.0, 1.0)
    assert scores["token_accuracy"].value == 1.0
    with pytest.raises(BadData, match="no rows to tag"):
        _ = tagging([], []).scores


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_tags_do_not_depend_on_the_batch(family: str) -> None:
    sentences = [["the", "film", "w3", "is", "good"], ["w1"], ["a", "name", "of", "the", "w59", "w2", "w3"]]
    made, tagger = tokenizer(), model(family)
    together, alone = (tag_sentences(tagger, made, sentences, batch_size=size) for size in (3, 1))
    assert together == alone and [len(tags) for tags in together] == [5, 1, 7]
    cut = tag_sentences(tagger, made, sentences, max_length=2)
    assert cut[2][2:] == ["O"] * 5


def test_the_loss_is_transformers_own_and_the_sum_of_its_pieces() -> None:
    tagger, made = model(), tokenizer()
    examples, _ = encode_words([["the", "film", "w3"], ["w1"]], made)
    examples = [replace(one, labels=labels_of(one.parts or [], [1, 2, 0])) for one in examples]
    batch = collate(examples, 0)
    ours = Tag()(tagger, batch)
    theirs = tagger(**batch.inputs(), labels=batch.labels).loss
    assert ours.tokens == 4 == Tag().targets(batch) == int((batch.labels != IGNORE).sum())
    assert torch.allclose(ours.total / ours.tokens, theirs, rtol=1e-6)
    assert tag(tagger, [batch]).losses.sum() == pytest.approx(ours.total.item(), rel=1e-5)
    pieces = sum(Tag()(tagger, collate([one], 0)).total.item() for one in examples)
    assert pieces == pytest.approx(ours.total.item(), rel=1e-5)
    with pytest.raises(BadData, match="a tag for each word"):
        Tag()(tagger, collate([Example(ids=[1, 2], label=0, row=0)], 0))
    with pytest.raises(BadConfig, match="load the model for token-classification"):
        tag(FAMILIES["llama"].build(), [batch])
    with pytest.raises(BadConfig, match="does not tag words"):
        tag(model(form=AutoModelForQuestionAnswering, labels=2), [batch])


def test_rows_and_predictions(tmp_path: Any) -> None:
    rows = ['{"tokens": ["the", "w1", "w2"], "tags": ["O", "B-Y", "I-Y"]}', '{"tokens": ["a"], "tags": ["B-X"]}']
    (tmp_path / "n.jsonl").write_text("\n".join(rows))
    corpus = read(tmp_path / "n.jsonl")
    assert corpus.labels == ("O", "B-X", "B-Y", "I-Y")  # the model has one more, and another order
    found = evaluate(model(), tokenizer(), corpus, "train", options=Options(metrics=("span_f1", "strict_span_f1")))
    assert [score.name for score in found.scores] == ["span_f1", "strict_span_f1"]
    first = found.predictions[0]
    assert first.references == ("O B-Y I-Y",) and len((first.prediction or "").split()) == 3
    assert set(first.values) == {"spans_right", "spans_said", "spans", "tokens", "tokens_right", "loss_sum"}
    assert isinstance(corpus.rows("train")[0].value, Tagged)
    other = read(tmp_path / "n.jsonl", labels=("O", "B-X", "B-Y", "I-Y", "B-Z"))
    with pytest.raises(BadData, match="the class 'B-Z', which the model does not know"):
        evaluate(model(), tokenizer(), other, "train")
    with pytest.raises(BadConfig, match="no metric 'accuracy' for token-classification"):
        evaluate(model(), tokenizer(), corpus, "train", options=Options(metrics=("accuracy",)))
