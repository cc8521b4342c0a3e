"""What teachers say, and that saying it changes nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification, BertConfig

import budwood as bw
from budwood.data import IGNORE, Batch, Example, collate
from budwood.data.batch import Blank
from budwood.distill.config import Distillation
from budwood.distill.objective import Distill
from budwood.distill.supervised import PADDING, Reader
from budwood.distill.teacher import LiveTeacher, Said, SameModel
from budwood.errors import BadConfig, BadData
from budwood.evaluate.inputs import fitted
from budwood.methods import Full, LoRA, PromptTuning, Selective
from families import FAMILIES
from training import PAD, labelled, rows, tiny

ALL = slice(None)
DECODERS = [name for name, family in FAMILIES.items() if family.kind == "decoder" and "classify" not in name]


def perturbed(model: Any, method: bw.Method, name: str = "x") -> Any:
    """The model with an adapter that does something."""
    bw.attach(model, method, name=name)
    with torch.no_grad():
        for parameter in bw.parameters(model, name):
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def by_hand(model: Any, batch: Batch) -> Tensor:
    """The model's own logits where the batch supervises tokens, row by row."""
    batch = fitted(model, batch)
    assert batch.labels is not None
    with torch.no_grad():
        logits = model.eval()(**batch.inputs()).logits
    found = []
    for row, length in enumerate(batch.labels.ne(IGNORE)):
        for place in length.nonzero().flatten().tolist():
            if not batch.shift or place:
                found.append(logits[row, logits.shape[1] - batch.labels.shape[1] + place - int(batch.shift)])
    return torch.stack(found) if batch.decoder_input_ids is None else logits[batch.labels != IGNORE]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_language_model_says_its_own_logits(family: str, side: Any) -> None:
    model = tiny(family)
    batch = collate(rows(4), PAD, side)
    said = LiveTeacher(model, "causal-lm").say(batch)
    assert len(said) == batch.num_targets
    torch.testing.assert_close(said.at(ALL), by_hand(model, batch), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(said.at(slice(3, 7)), said.at(ALL)[3:7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_says_its_own_logits(family: str) -> None:
    dice = random.Random(0)
    pairs = [
        Example(ids=dice.choices(range(4, 90), k=4 + row), target=[*dice.choices(range(4, 90), k=5 - row), 3], row=row)
        for row in range(3)
    ]
    model, batch = tiny(family), collate(pairs, PAD)
    said = LiveTeacher(model, "seq2seq").say(batch)
    torch.testing.assert_close(said.at(ALL), by_hand(model, batch), rtol=1e-4, atol=1e-5)


def test_hidden_words_tags_classes_and_ends() -> None:
    hidden = [Example(ids=e.ids, labels=e.labels, whole=e.ids, row=e.row) for e in rows(3)]
    model, batch = tiny("bert"), collate(hidden, PAD)
    torch.testing.assert_close(LiveTeacher(model, "masked-lm").say(batch).at(ALL), by_hand(model, batch))

    config = BertConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_labels=4
    )
    words = [Example(ids=e.ids, labels=[x % 4 for x in e.ids], parts=[None] * len(e.ids), row=0) for e in rows(3)]
    tagger, batch = AutoModelForTokenClassification.from_config(config), collate(words, PAD)
    torch.testing.assert_close(LiveTeacher(tagger, "token-classification").say(batch).at(ALL), by_hand(tagger, batch))

    classifier, batch = tiny("bert-classify"), collate(labelled(4), PAD)
    said = LiveTeacher(classifier, "classification").say(batch)
    torch.testing.assert_close(said.at(ALL), classifier(**batch.inputs()).logits)

    config.num_labels = 2
    finder = AutoModelForQuestionAnswering.from_config(config).eval()
    windows = [Example(ids=e.ids, span=(1, 2), parts=[None] * len(e.ids), row=e.row) for e in rows(3)]
    batch = collate(windows, PAD)
    reading = Reader("question-answering")(finder, batch)
    ends = finder(**batch.inputs())
    for row, length in enumerate(batch.lengths):
        torch.testing.assert_close(reading.at(ALL)[2 * row, :length], ends.start_logits[row, :length])
        torch.testing.assert_close(reading.at(ALL)[2 * row + 1, :length], ends.end_logits[row, :length])
        assert (reading.at(ALL)[2 * row, length:] == PADDING).all()
    assert reading.labels.tolist() == [1, 2] * 3


def test_a_cloze_says_classes() -> None:
    examples = [
        Example(ids=[5, 6, 7 + n], label=n % 2, blank=Blank(2, ((0, 7), (9,))), row=n) for n in range(3)
    ]  # fmt: skip
    model, batch = tiny(), collate(examples, PAD)
    logits = model(**batch.inputs()).logits[:, -1]
    said = LiveTeacher(model, "cloze").say(batch)
    torch.testing.assert_close(said.at(ALL), torch.stack((logits[:, [0, 7]].mean(-1), logits[:, 9]), -1))


def test_a_prompt_in_front_moves_nothing() -> None:
    model, batch = perturbed(tiny(), PromptTuning(length=3)), collate(rows(4), PAD)
    said = LiveTeacher(model, "causal-lm").say(batch)
    torch.testing.assert_close(said.at(ALL), by_hand(model, batch), rtol=1e-4, atol=1e-5)


def test_student_and_teacher_stand_at_the_same_positions_and_only_one_learns() -> None:
    model, batch = tiny(), collate(rows(4), PAD)
    reader = Reader("causal-lm", columns=90)
    reading = reader(model, batch)
    said = LiveTeacher(model, "causal-lm", columns=90).say(batch)
    assert batch.labels is not None and not reading.is_plain and reading.states.shape[1] == 32
    assert reading.labels.tolist() == batch.labels[:, 1:][batch.labels[:, 1:] != IGNORE].tolist()
    assert torch.equal(reading.at(ALL), said.at(ALL)) and said.at(ALL).shape == (len(reading), 90)
    assert reading.at(ALL).requires_grad and not said.at(ALL).requires_grad
    reading.at(ALL).sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_a_head_that_does_more_is_read_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = tiny(), collate(rows(4), PAD)
    forward = type(model).forward

    def more(self: Any, *args: Any, **settings: Any) -> Any:
        out = forward(self, *args, **settings)
        out.logits = out.logits + torch.arange(out.logits.shape[1])[:, None] * torch.linspace(0, 1, 96)
        return out

    monkeypatch.setattr(type(model), "forward", more)
    reading = Reader("causal-lm")(model, batch)
    assert reading.is_plain
    torch.testing.assert_close(reading.at(ALL), by_hand(model, batch))


def states(model: Any) -> list[Any]:
    return [
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    ]


def test_the_same_model_under_another_plan_leaves_no_trace() -> None:
    base, batch = tiny(), collate(rows(4), PAD)
    expected = by_hand(base, batch)
    model = perturbed(base, LoRA(rank=2, dropout=0.5, targets=("all",)))
    model.train()
    model.model.layers[0].eval()
    before = states(model)
    said = SameModel(model, "causal-lm").say(batch)
    torch.testing.assert_close(said.at(ALL), expected, rtol=1e-4, atol=1e-5)
    assert states(model) == before
    torch.manual_seed(3)
    student = Reader("causal-lm")(model, batch).at(ALL)
    torch.manual_seed(3)
    said = SameModel(model, "causal-lm").say(batch)
    again = Reader("causal-lm")(model, batch).at(ALL)
    said.at(ALL)
    assert torch.equal(student, again) and not torch.allclose(student, said.at(ALL), atol=1e-2)


def test_a_student_trained_in_place_cannot_be_its_own_teacher() -> None:
    for method in (Full(), Selective(part="norms")):
        model = tiny("gpt2")
        bw.attach(model, method, name="x")
        with pytest.raises(BadConfig, match=r"'x' trains the model's own weights in place.*give the teacher as a sec"):
            SameModel(model, "causal-lm")
    model = tiny("gpt2")
    teacher = SameModel(model, "causal-lm")
    bw.attach(model, Full(), name="late")
    with pytest.raises(BadConfig, match="'late' trains"):
        teacher.say(collate(rows(2), PAD))


def test_batches_of_other_tasks_are_refused() -> None:
    with pytest.raises(BadData, match="read the data with task causal-lm"):
        LiveTeacher(tiny(), "causal-lm").say(collate(labelled(2), PAD))
    with pytest.raises(BadData, match="read the data with task masked-lm"):
        LiveTeacher(tiny("bert"), "masked-lm").say(collate(rows(2), PAD))
    with pytest.raises(BadData, match="read the data with task classification"):
        LiveTeacher(tiny("bert-classify"), "classification").say(collate(rows(2), PAD))
    with pytest.raises(BadData, match="read the data with task question-answering"):
        LiveTeacher(tiny("bert"), "question-answering").say(collate(rows(2), PAD))
    with pytest.raises(BadConfig, match="only its likeliest choices; this loss needs the teacher itself"):
        Said(count=1, ids=torch.zeros(1, 1), log_probs=torch.zeros(1, 1)).at(ALL)


def test_recomputed_activations_are_the_students_though_the_same_model_teaches() -> None:
    batch, found = collate(rows(4), PAD), []
    for recomputes in (False, True):
        torch.manual_seed(5)
        model = perturbed(tiny(), LoRA(rank=2, targets=("all",)))
        model.train()
        if recomputes:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        config = Distillation(loss="forward-kl", kd_weight=1.0, ce_weight=0.0)
        teacher, reader = SameModel(model, "causal-lm"), Reader("causal-lm")
        loss = Distill(task="causal-lm", config=config, teacher=teacher, reader=reader)(model, batch)
        loss.total.backward()  # type: ignore[no-untyped-call]
        found.append(torch.cat([parameter.grad.flatten() for parameter in bw.parameters(model, "x")]))
    assert found[0].norm() > 0
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
