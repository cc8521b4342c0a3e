"""Cloze: a language model names the class by a word, from a pattern to an adapter that remembers it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from budwood.core import using
from budwood.data import read, with_cloze
from budwood.data.pattern import Cloze
from budwood.errors import BadConfig, NotAvailable
from budwood.evaluate import answer, evaluate
from budwood.interop import describe
from budwood.methods import LoRA
from budwood.train.job import Job
from budwood.train.run import Run, check_job, train
from families import FAMILIES
from tokens import model_folder, tokenizer

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 8, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip
PATTERN, WORDS = "{text} it is <mask>", {"fine": "good", "poor": ["bad", "w50"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with a head for words, a decoder, an encoder-decoder, and films."""
    place = tmp_path_factory.mktemp("cloze")
    model_folder(place / "bert", "bert")
    made = tokenizer()
    made.mask_token = "w59"
    made.save_pretrained(place / "bert")
    model_folder(place / "llama")
    FAMILIES["t5"].build().save_pretrained(place / "t5")
    made.save_pretrained(place / "t5")
    lines = [f"the film w{n % 40} is {('w41', 'w42')[n % 2]} w{n % 13} .\t{('fine', 'poor')[n % 2]}" for n in range(80)]
    (place / "films.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return place


def go(model: object, data: object, out: Path, **more: Any) -> Run:
    said = {"budget": more.pop("budget", "60steps"), **QUICK}
    kept = {"method": LoRA(rank=8, targets=("all",)), "pattern": PATTERN, "verbalizer": WORDS}
    return train(model, data, config=said, out=out, **{**kept, **more})


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_class_is_learned_through_words(place: Path, tmp_path: Path, kind: str) -> None:
    run = go(place / kind, place / "films.tsv", tmp_path / "run")  # a pattern means the task
    assert run.manifest.task == "cloze" and run.result is not None
    found = {entry.metric: entry for entry in run.result.quality}
    assert set(found) == {"accuracy", "macro_f1", "mcc", "loss"}
    loss = found["loss"]
    assert loss.base is not None and loss.score.high < 0.7 * loss.base.low  # the base is scored, untuned
    assert found["accuracy"].score.value == 1.0
    proof = next(line["proof"] for line in run.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] == 0.0 and proof["movement"]["unmoved"] == {}
    said = describe(run.adapter)
    assert said.task == "cloze" and said.labels == ("fine", "poor") and said.cloze is not None
    cloze = Cloze.from_dict(said.cloze)
    assert cloze == Cloze.of(PATTERN, WORDS).for_model(is_masked=kind == "bert")
    model, made = run.load()
    corpus = with_cloze(read(place / "films.tsv", task="cloze", labels=said.labels), cloze)
    assert evaluate(model, made, corpus, "train").score("accuracy").value == 1.0
    assert [name for name, _ in answer(model, made, cloze, ["the film w3 is w42 w5 .", "the film w3 is w41 w5 ."])] == [
        "poor",
        "fine",
    ]
    sample = run.samples()[-1]
    assert sample["now"] == sample["reference"]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_p_tuning_stands_in_for_the_pattern_s_pseudo_tokens(place: Path, tmp_path: Path, kind: str) -> None:
    pattern = "<p><p> {text} <p> <mask>"
    run = go(place / kind, place / "films.tsv", tmp_path / "run", method="p-tuning", pattern=pattern)
    bare = go(place / kind, place / "films.tsv", tmp_path / "bare", pattern="{text} <mask>", budget="1steps")
    found, without = ({entry.metric: entry for entry in one.result.quality} for one in (run, bare) if one.result)
    assert found["loss"].base == without["loss"].base  # the base reads the pattern without them
    proof = next(line["proof"] for line in run.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] <= 1e-6 and proof["movement"]["unmoved"] == {}
    assert run.manifest.method["p-tuning"]["length"] == 3 and run.manifest.method["p-tuning"]["place"] == "inside"
    model, made = run.load()
    said = describe(run.adapter)
    assert said.cloze is not None
    corpus = with_cloze(read(place / "films.tsv", task="cloze", labels=said.labels), Cloze.from_dict(said.cloze))
    trained, again = (evaluate(model, made, corpus, "train").score("loss").value for _ in range(2))
    with using(model, None):
        base = evaluate(model, made, corpus, "train").score("loss").value
    assert trained == again != base


def test_resumed_settings_say_the_same(place: Path) -> None:
    job = Job(model=str(place / "bert"), data=str(place / "films.tsv"), pattern=PATTERN, verbalizer=WORDS)
    assert Job.from_dict(job.to_dict()).cloze == job.cloze and job.task == "cloze"


def test_refusals(place: Path) -> None:
    asked = {"model": str(place / "bert"), "data": str(place / "films.tsv"), **QUICK}
    said = {"pattern": PATTERN, "verbalizer": WORDS}
    for more, error, match in (
        ({"task": "cloze", "pattern": PATTERN}, BadConfig, "needs a verbalizer.*--verbalizer negative="),
        ({"task": "cloze", "verbalizer": WORDS}, BadConfig, "needs a pattern"),
        ({**said, "task": "classification"}, BadConfig, "belong to task cloze"),
        ({**said, "pattern": "{text} it is"}, BadConfig, "has no <mask>"),
        ({**said, "model": str(place / "llama"), "pattern": "<mask> is {text}"}, BadConfig, "goes on after <mask>"),
        ({**said, "model": str(place / "t5")}, NotAvailable, r"t5\) is an encoder-decoder, and cloze needs"),
        ({**said, "pattern": f"<p>{PATTERN}"}, BadConfig, "1 <p>, and method lora.*--method p-tuning"),
        ({**said, "verbalizer": {"fine": "good"}}, BadConfig, "no word for the label 'poor'"),
        ({**said, "verbalizer": {**WORDS, "fien": "it"}}, BadConfig, "'fien', which is no label; .*fine"),
        ({**said, "verbalizer": {"fine": "good", "poor": "ugly"}}, BadConfig, "'ugly' for 'poor' becomes '<unk>'"),
    ):
        with pytest.raises(error, match=match):
            check_job(Job.from_dict({**asked, **more}))
