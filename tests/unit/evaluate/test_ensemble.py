"""Several adapters in one batch: every row is as under its adapter alone, and they vote or average."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_generate import build
from test_task import QUESTIONS, classifier, written
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
    BertConfig,
    T5Config,
)

import budwood.core as core
from adapted import perturb
from budwood.core import Method, Stack
from budwood.data import Cloze, collate, encode, read, with_cloze
from budwood.errors import BadConfig, NoSuchAdapter
from budwood.evaluate import Ensemble, EvaluationResult, Options, Sampling, complete, evaluate
from budwood.evaluate.batches import batches
from budwood.evaluate.inputs import class_logits
from budwood.methods import AdapterP, LoRA, MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from tiny_tokenizers import make_tokenizer

PROMPTS = (PromptTuning(length=3), PromptTuning(length=7), PromptTuning(length=5))
MIXED = (PrefixTuning(length=4, width=None), LoRA(rank=2), AdapterP(size=4), PromptTuning(length=2))
NAMES = ("a", "b", "c", "d")
WORDS = "no=area|centre,yes=city"
ASKED = ["name : Alimentum", "What is it ? An answer .", "area", "city centre"]


def adapted(model: Any, methods: tuple[Method, ...], size: float = 0.5) -> tuple[str, ...]:
    """The names of the methods, attached with effects that differ."""
    for name, method in zip(NAMES, methods, strict=False):
        core.attach(model, method, name=name)
        perturb(model, name, seed=ord(name), scale=size)
    model.eval()
    return NAMES[: len(methods)]


def alone(model: Any, corpus: Any, names: tuple[str, ...], **options: Any) -> list[EvaluationResult]:
    found = []
    for name in names:
        with core.using(model, name):
            found.append(evaluate(model, make_tokenizer(), corpus, options=Options(**options)))
    return found


def together(model: Any, corpus: Any, names: tuple[str, ...], **options: Any) -> EvaluationResult:
    return evaluate(model, make_tokenizer(), corpus, options=Options(ensemble=Ensemble(names), **options))


@pytest.mark.parametrize("methods", [PROMPTS, MIXED], ids=["prompts", "mixed"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_logits_and_answers_are_those_of_each_adapter_alone(
    kind: str, methods: tuple[Method, ...], tmp_path: Path
) -> None:
    model, tokenizer = build(kind), make_tokenizer()
    names = adapted(model, methods)
    corpus = written(tmp_path / "d", QUESTIONS)
    batch = collate(encode(corpus, "test", tokenizer).examples, 2)

    def forward(model: Any, batch: Any) -> torch.Tensor:
        return model(**batch.inputs()).logits * batch.attention_mask[..., None]

    with torch.no_grad():
        logits = Ensemble(names).ask(model, batch, forward)
        for name, row in zip(names, logits, strict=True):
            with core.using(model, name):
                torch.testing.assert_close(row, forward(model, batch), rtol=1e-5, atol=1e-5)
    assert max(float((logits[0] - other).abs().max()) for other in logits[1:]) > 1e-2
    for sampling in (None, Sampling(seed=3, temperature=2.0)):
        asked: dict[str, Any] = {"max_new_tokens": 6, "sampling": sampling}
        each = []
        for name in names:
            with core.using(model, name):
                each.append(complete(model, tokenizer, ASKED, **asked))
        assert len({answers[0].ids for answers in each}) > 1
        for place, name in enumerate(names):  # alone, and first of all with no two alike
            assert complete(model, tokenizer, ASKED, **asked, ensemble=Ensemble((name,))) == each[place]
        found = complete(model, tokenizer, ASKED, **asked, ensemble=Ensemble(names))
        for place, answer in enumerate(found):
            texts = [answers[place].text.strip() for answers in each]
            assert answer == each[texts.index(max(texts, key=texts.count))][place]


def test_the_ids_of_every_row_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What generate returns, before the vote."""
    model, tokenizer = build(), make_tokenizer()
    names = adapted(model, (*PROMPTS[:2], *MIXED[:2]))
    kept: list[list[str]] = []
    vote = Ensemble.vote
    monkeypatch.setattr(Ensemble, "vote", lambda self, texts: [kept.append(list(texts)), vote(self, texts)][1])
    complete(model, tokenizer, ASKED, max_new_tokens=5, ensemble=Ensemble(names), batch_size=3)
    each = []
    for name in names:
        with core.using(model, name):
            each.append([answer.text.strip() for answer in complete(model, tokenizer, ASKED, max_new_tokens=5)])
    assert sorted(kept) == sorted(map(list, zip(*each, strict=True)))


def test_votes() -> None:
    both = Ensemble(("a", "b", "c", "d"))
    assert both.vote(["x", "y", "y", "x"]) == 0 and both.vote(["x", "y", "z", "y"]) == 1
    assert both.vote(["x", "y", "z", "w"]) == 0


def test_classes_have_the_mean_probability(tmp_path: Path) -> None:
    lines = [f"{n % 2}\t{'good' if n % 2 else 'bad'} name {n}\n" for n in range(8)]
    (tmp_path / "test.tsv").write_text("label\ttext\n" + "".join(lines))
    corpus, model = read(tmp_path), classifier()
    names = adapted(model, MIXED)  # each with a head of its own
    batch = next(batches(encode(corpus, "test", make_tokenizer()).examples, make_tokenizer(), 8))
    shares = []
    with torch.no_grad():
        for name in names:
            with core.using(model, name):
                shares.append(class_logits(model, batch).softmax(-1))
    mean = torch.stack(shares).mean(0)
    found = together(model, corpus, names)
    expected = {row: int(guess) for row, guess in zip(batch.rows, mean.argmax(-1), strict=True)}
    assert [p.prediction for p in found.predictions] == [f"LABEL_{expected[p.row]}" for p in found.predictions]
    loss = -float(mean[torch.arange(8), batch.labels].log().mean())
    assert found.score("loss").value == pytest.approx(loss, rel=1e-4)
    assert len({score.score("loss").value for score in alone(model, corpus, names)}) == 4


def test_a_cloze_has_the_mean_over_classes_and_not_words(tmp_path: Path) -> None:
    (tmp_path / "test.tsv").write_text("label\ttext\n" + "no\tbad name\nyes\tgood area\nno\tarea\n" * 2)
    corpus = with_cloze(read(tmp_path, task="cloze"), replace(Cloze.of("{text} It is <mask>", WORDS), is_masked=False))
    model = build()
    names = adapted(model, (PromptTuning(length=2), PrefixTuning(length=3, width=None)), 1.5)
    each, found = alone(model, corpus, names), together(model, corpus, names)
    for place, prediction in enumerate(found.predictions):
        right = [math.exp(-one.predictions[place].values["loss"]) for one in each]
        assert math.exp(-prediction.values["loss"]) == pytest.approx(sum(right) / 2, rel=1e-4)


def bert(**settings: Any) -> BertConfig:
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    more: dict[str, Any] = {"num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 2}
    return BertConfig(vocab_size=420, **sizes, **more, **settings)


@pytest.mark.parametrize("methods", [PROMPTS, MIXED], ids=["prompts", "mixed"])
def test_tokens_have_the_mean_probability(methods: tuple[Method, ...], tmp_path: Path) -> None:
    corpus, model = written(tmp_path / "d", QUESTIONS), build()
    names = adapted(model, methods, 0.2)
    one = together(model, corpus, names[:1])
    assert one.score("loss").value == pytest.approx(alone(model, corpus, names[:1])[0].score("loss").value, rel=1e-5)
    found, each = together(model, corpus, names), alone(model, corpus, names)
    losses = [result.score("loss").value for result in each]
    assert found.score("loss").value < sum(losses) / len(losses)  # Jensen
    row = found.predictions[1]
    tokenizer = make_tokenizer()
    ids = torch.tensor([tokenizer("area city centre .")["input_ids"] + [1]])
    start = len(tokenizer("area")["input_ids"])
    shares = []
    for name in names:
        with core.using(model, name), torch.no_grad():
            shares.append(model(input_ids=ids).logits[0].softmax(-1))
    mean = torch.stack(shares).mean(0)
    expected = -sum(float(mean[t - 1, ids[0, t]].log()) for t in range(start, ids.shape[1]))
    assert row.values["loss_sum"] == pytest.approx(expected, rel=1e-4)


def test_tags_and_spans_have_the_mean_probability(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tagged = [{"tokens": ["name", "Alimentum", "."], "tags": ["O", "B-X", "O"]}, {"tokens": ["area"], "tags": ["B-X"]}]
    corpus = written(tmp_path / "tags", tagged)
    torch.manual_seed(0)
    names_of = dict(enumerate(corpus.labels))
    model: Any = AutoModelForTokenClassification.from_config(bert(num_labels=len(names_of), id2label=names_of))
    names = adapted(model, (PromptTuning(length=2), LoRA(rank=2)), 1.0)
    logits = []
    ids = torch.tensor([tokenizer("area")["input_ids"]])
    for name in names:
        with core.using(model, name), torch.no_grad():
            logits.append(model(input_ids=ids).logits[:, -ids.shape[1] :].softmax(-1)[0, 0])
    found = together(model, corpus, names)
    right = list(corpus.labels).index("B-X")
    expected = -float(torch.stack(logits).mean(0)[right].log())
    assert found.predictions[1].values["loss_sum"] == pytest.approx(expected, rel=1e-4)

    asked = [{"context": "It is a place .", "question": "What is it ?", "answers": "a place"}] * 2
    corpus = written(tmp_path / "spans", asked)
    model = AutoModelForQuestionAnswering.from_config(bert())
    names = adapted(model, (PromptTuning(length=2), LoRA(rank=2)), 1.0)
    each, found = alone(model, corpus, names), together(model, corpus, names)
    assert found.score("loss").value < sum(one.score("loss").value for one in each) / 2
    one = together(model, corpus, names[1:])
    assert [p.prediction for p in one.predictions] == [p.prediction for p in each[1].predictions]
    assert one.score("loss").value == pytest.approx(each[1].score("loss").value, rel=1e-5)


def test_an_encoder_decoder_answers_and_is_scored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=420, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=2, pad_token_id=2
    )
    model: Any = AutoModelForSeq2SeqLM.from_config(config)
    tokenizer = make_tokenizer()
    names = adapted(model, (PromptTuning(length=2), PrefixTuning(length=3, width=None), LoRA(rank=2)), 1.0)
    path = written(tmp_path / "d", QUESTIONS) and tmp_path / "d"
    corpus = read(path, task="seq2seq")
    options: dict[str, Any] = {"metrics": ("loss", "exact_match"), "max_new_tokens": 4}
    each, found = alone(model, corpus, names, **options), together(model, corpus, names, **options)
    assert found.score("loss").value < sum(one.score("loss").value for one in each) / 3
    for name, result in zip(names, each, strict=True):
        one = together(model, corpus, (name,), **options)
        assert one.score("loss").value == pytest.approx(result.score("loss").value, rel=1e-4)
    said = [[p.prediction for p in result.predictions] for result in each]
    for place, prediction in enumerate(found.predictions):
        assert prediction.prediction in [texts[place] for texts in said]
    assert complete(model, tokenizer, ASKED, max_new_tokens=3, ensemble=Ensemble((Stack(("a", "c")), None)))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"Ensemble needs a tuple of adapters, as Ensemble\(\('a', 'b'\)\); got \(\)"):
        Ensemble(())
    model, tokenizer = build(), make_tokenizer()
    adapted(model, PROMPTS)
    with pytest.raises(NoSuchAdapter, match="no adapter is called 'z'"):
        complete(model, tokenizer, ASKED, max_new_tokens=2, ensemble=Ensemble(("a", "z")))
    assert core.pseudo_tokens(model) == 0 and core.positions_taken(model) == 5  # the plan from before is in force
    (tmp_path / "test.tsv").write_text("label\ttext\nno\tbad name\nyes\tgood area\n")
    corpus = with_cloze(
        read(tmp_path, task="cloze"), replace(Cloze.of("{text} <p><p> It is <mask>", WORDS), is_masked=False)
    )
    core.attach(model, PTuning(length=2, place="inside", encoder=None), name="p")
    core.attach(model, MultitaskPrompt(length=2, place="inside"), name="q")
    assert together(model, corpus, ("p", "q")).score("accuracy").n == 2
    with pytest.raises(BadConfig, match="adapters with 0 and 2 pseudo tokens cannot share the rows"):
        together(model, corpus, ("p", "a"))
