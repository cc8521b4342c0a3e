"""The likeliest piece over all windows, against numbers made by hand and against every piece tried in turn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

from budwood.data import Example, Passage, collate, encode_passages, read
from budwood.errors import BadConfig, BadData
from budwood.evaluate import answer_passages, evaluate, locate
from budwood.evaluate.spans import LONGEST_ANSWER, Found, _best, _better
from budwood.train.objective import FindSpan
from families import FAMILIES
from tokens import tokenizer

TEXT = "the film w1 is good . the color of w2 is w3 . a name w4"


def model(family: str = "bert") -> PreTrainedModel:
    torch.manual_seed(1)
    config = FAMILIES[family].build().config
    config.num_labels, config.pad_token_id = 2, 0
    found = AutoModelForQuestionAnswering.from_config(config).eval()
    nn.init.normal_(found.qa_outputs.weight, std=2.0)
    return found


def test_the_best_piece_is_the_best_of_all() -> None:
    dice = torch.Generator().manual_seed(0)
    parts = [None, None, *((n, n + 1) for n in range(60)), None]
    for _ in range(20):
        logits: Tensor = torch.randn(2, len(parts), generator=dice) * 3
        logits[:, :2] += 20  # what is no text cannot be chosen
        every = {
            (first, last): float(logits[0, first] + logits[1, last])
            for first in range(2, 62)
            for last in range(first, min(62, first + LONGEST_ANSWER))
        }
        first, last = max(every, key=lambda pair: every[pair])
        found = _best(logits, parts)
        assert (found.begin, found.end) == (first - 2, last - 1) and found.score == pytest.approx(every[first, last])
        assert found.nothing == pytest.approx(float(logits[0, 0] + logits[1, 0])) and found.is_nothing


def test_windows_are_put_together() -> None:
    one, other = Found(0, 4, 3.0, 1.0), Found(5, 9, 2.0, -1.0)
    assert _better(one, other) == _better(other, one) == Found(0, 4, 3.0, -1.0)
    assert not _better(one, other).is_nothing
    nowhere = _best(torch.zeros(2, 3), [None, None, None])
    assert nowhere.is_nothing and nowhere.text(Passage("abc", "d", ())) == ""


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_answers_do_not_depend_on_the_batch(family: str) -> None:
    asked = [Passage(TEXT, "what is w1 ?", ()), Passage(TEXT * 3, "what is the color ?", ())]
    finder, made = model(family), tokenizer()
    together, alone = (answer_passages(finder, made, asked, max_length=20, batch_size=size) for size in (8, 1))
    assert together == alone and all(text and text in TEXT * 3 for text, _ in together)


def test_the_loss_is_transformers_own_and_the_sum_of_its_pieces() -> None:
    finder = model()
    examples = [
        Example(ids=[5, 6, 7, 8], parts=[None, None, (0, 1), (1, 2)], span=(2, 3), row=0),
        Example(ids=[5, 6, 7, 8, 9, 10], parts=[None, *((n, n + 1) for n in range(5))], span=(0, 0), row=1),
    ]
    each = [collate([one], 0) for one in examples]
    ours = [FindSpan()(finder, batch).total.item() for batch in each]
    for batch, mine in zip(each, ours, strict=True):
        begin, end = batch.spans.unbind(dim=1)
        assert mine == pytest.approx(
            finder(**batch.inputs(), start_positions=begin, end_positions=end).loss.item(), rel=1e-5
        )
    together = FindSpan()(finder, collate(examples, 0))
    assert together.tokens == 2 and together.total.item() == pytest.approx(sum(ours), rel=1e-5)
    found = locate(finder, [collate(examples, 0)])
    assert found.losses == pytest.approx(ours, rel=1e-5) and found.loss.value == pytest.approx(sum(ours) / 2, rel=1e-5)
    with pytest.raises(BadData, match="read the data with task question-answering"):
        FindSpan()(finder, collate([Example(ids=[1], label=0, row=0)], 0))
    with pytest.raises(BadConfig, match="load the model for question-answering"):
        locate(FAMILIES["llama"].build(), each)


class _Knowing(nn.Module):
    """Points at one piece of each row, or at nothing."""

    def __init__(self, pieces: list[tuple[int, int]]) -> None:
        super().__init__()
        self.pieces, self.config, self.device = pieces, model().config, torch.device("cpu")

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        logits = torch.zeros(2, *input_ids.shape)
        for row, piece in enumerate(self.pieces):
            logits[:, row, 0] = 1.0
            for side, token in enumerate(piece):
                logits[side, row, token] = 5.0
        from transformers.modeling_outputs import QuestionAnsweringModelOutput

        return QuestionAnsweringModelOutput(start_logits=logits[0], end_logits=logits[1])


def test_exact_match_and_f1_over_rows(tmp_path: Any) -> None:
    rows = (
        '{"context": "the film w1 is good", "question": "what is good ?", "answers": ["The film w1", "w1"]}\n'
        '{"context": "the film w1 is good .", "question": "what is it ?", "answers": "is good"}\n'
    )
    (tmp_path / "q.jsonl").write_text(rows.replace("The film", "the film"))
    corpus = read(tmp_path / "q.jsonl")
    (first, second), made = [row.value for row in corpus.rows("train")], tokenizer()
    (one,), (other,) = (encode_passages([value], made) for value in (first, second))
    token = {part: number for number, part in enumerate(one.parts or [])}
    knowing = _Knowing([(0, 0), (token[9, 11], token[9, 11])])  # the longest row comes first
    plain = evaluate(knowing, made, corpus, "train")
    assert {score.name: score.value for score in plain.scores if score.name != "loss"}["exact_match"] == 0.5
    assert plain.predictions[0].prediction == "w1" and plain.predictions[1].prediction != ""
    (tmp_path / "q.jsonl").write_text(rows.replace("The film", "the film").replace('"is good"', "[]"))
    both = evaluate(knowing, made, read(tmp_path / "q.jsonl"), "train")  # now nothing may be said
    assert [p.prediction for p in both.predictions] == ["w1", ""] and both.predictions[1].references == ("",)
    assert {s.name: s.value for s in both.scores if s.name != "loss"} == {"exact_match": 1.0, "token_f1": 1.0}
    assert both.predictions[0].values == {"exact_match": 1.0, "token_f1": 1.0} and other.ids
