"""Cloze and pairs of texts from the command line: trained, scored, tried and merged without saying how again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from small_models import save_bert, save_t5
from tiny_tokenizers import make_tokenizer

from .conftest import Run

QUICK = ("--budget", "12steps", "--batch", "8", "--precision", "exact", "--samples", "1", "--learning-rate", "0.01")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_bert(tmp_path / "bert", tokenizer=False)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "bert")
    save_t5(tmp_path / "t5")
    lines = [f"{('city', 'town')[n % 2]}\tThere is {n}\tWhat is {n % 5}\n" for n in range(24)]
    Path("pairs.tsv").write_text("label\tsentence1\tsentence2\n" + "".join(lines))
    rows = [{"prompt": f"What is {n} ?", "completion": "An answer"} for n in range(24)]
    Path("asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_cloze_is_remembered(budwood: Run, here: Path) -> None:
    cloze = ("--pattern", "{sentence1} in the <mask> . {sentence2}", "--verbalizer", "town=place|area,city=city")
    ran = budwood("train", "bert", "pairs.tsv", *QUICK, *cloze, "--out", "run")
    assert ran.code == 0, ran.err
    scored = budwood("eval", "run", "--json")
    assert {score["name"] for score in scored.json["scores"]} == {"accuracy", "macro_f1", "mcc", "loss"}
    assert scored.json["scores"] != scored.json["base_scores"]
    shutil.copytree("run/adapter", "alone")
    alone = budwood("eval", "alone", "pairs.tsv", "--json")
    assert alone.code == 0 and alone.json["split"] == "train"
    asked = budwood("try", "run", "--prompt", "There is 3\nWhat is 4", "--json")
    (answer,) = asked.json["answers"]
    assert answer["after"].split()[0] in ("city", "town") and answer["after"].endswith("%)")
    held = budwood("try", "alone", "--prompt", "There is 3", "--json")
    assert held.code == 3 and "write each on a line of its own" in held.err
    held = budwood("try", "run", "--rows", "1", "--json")
    assert held.json["answers"][0]["expected"] in ("city", "town")
    for subject in ("run", "alone"):
        merged = budwood("merge", subject, "--out", f"merged-{subject}")
        assert merged.code == 0, merged.err
    again = budwood("train", "--config", "run/config.yaml", "--out", "again")
    assert again.code == 0, again.err
    assert budwood("eval", "again", "--json").json["scores"] == scored.json["scores"]


def test_a_damaged_cloze_is_named(budwood: Run, here: Path) -> None:
    ran = budwood("train", "bert", "pairs.tsv", *QUICK, "--task", "cloze", "--dry-run")
    assert ran.code == 2 and "task cloze needs a pattern" in ran.err
    ran = budwood("train", "bert", "pairs.tsv", *QUICK, "--pattern", "{text} <mask> {sentence2}")
    assert ran.code == 2 and "task cloze needs a verbalizer" in ran.err


def test_pairs_of_texts(budwood: Run, here: Path) -> None:
    ran = budwood("train", "t5", "asked.jsonl", *QUICK, "--out", "run")
    assert ran.code == 0, ran.err
    scored = budwood("eval", "run", "--metric", "exact_match", "--metric", "loss", "--answers", "2", "--json")
    assert [score["name"] for score in scored.json["scores"]] == ["exact_match", "loss"]
    asked = budwood("try", "run", "--prompt", "What is 3 ?", "--max-new-tokens", "5", "--json")
    assert asked.code == 0 and len(asked.json["answers"]) == 1
    shutil.copytree("run/adapter", "alone")
    for subject in ("run", "alone"):
        merged = budwood("merge", subject, "--out", f"merged-{subject}")
        assert merged.code == 0, merged.err
    shown = budwood("data", "show", "asked.jsonl", "--model", "t5", "--rows", "1")
    assert shown.code == 0 and " -> [[An answer" in shown.out
    ran = budwood("train", "t5", "pairs.tsv", *QUICK, "--task", "causal-lm")
    assert ran.code == 3 and "no shape recognised" in ran.err
