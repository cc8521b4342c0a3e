"""MAD-X from the command line on an encoder: a language by masked-lm, a task on top, the language swapped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from small_models import save_bert
from tiny_tokenizers import make_tokenizer

from .conftest import Run
from .test_stacked import loss

QUICK = ("--budget", "12steps", "--batch", "8", "--precision", "exact", "--samples", "1", "--learning-rate", "0.01")
LANGUAGE = ("--task", "masked-lm", "--method", "adapter-p:bottleneck_size=4,invertible=true")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_bert(tmp_path / "bert", tokenizer=False)
    tokenizer = make_tokenizer()
    tokenizer.mask_token = "<|im_start|>"
    tokenizer.save_pretrained(tmp_path / "bert")
    for name, text in (("north", "There is a place in the city centre"), ("south", "What is it ? An answer")):
        rows = [{"text": f"{text} {n} ."} for n in range(24)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"{n % 2}\t{'city' if n % 2 else 'answer'} {n}\n" for n in range(24)]
    Path("task.tsv").write_text("label\ttext\n" + "".join(lines))
    return tmp_path


def test_mad_x(budwood: Run, here: Path) -> None:
    for name in ("north", "south"):
        ran = budwood("train", "bert", f"{name}.jsonl", *QUICK, *LANGUAGE, "--out", name)
        assert ran.code == 0, ran.err
    task = ("--method", "adapter-p:bottleneck_size=4", "--on", "north", "--out", "task")
    ran = budwood("train", "bert", "task.tsv", *QUICK, *task)
    assert ran.code == 0, ran.err
    found = [budwood("eval", "task", "--json", *more) for more in ((), ("--on", "south"), ("--on", "none"))]
    assert len({loss(one) for one in found}) == 3
    merged = budwood("merge", "task", "--out", "merged")
    assert merged.code != 0 and "cannot be folded" in merged.err

    ran = budwood("eval", "north", "--json")
    assert {score["name"] for score in ran.json["scores"]} == {"loss", "masked_perplexity", "token_accuracy"}
    shutil.copytree("north/adapter", "alone")
    assert budwood("eval", "alone", "north.jsonl", "--json").json["scores"] != ran.json["scores"]
    ran = budwood("eval", "north", "--metric", "rouge_l")
    assert ran.code == 2 and "no metric 'rouge_l' for masked-lm" in ran.err


def test_try_fills_in_words(budwood: Run, here: Path) -> None:
    ran = budwood("train", "bert", "north.jsonl", *QUICK, "--task", "masked-lm", "--method", "lora", "--out", "north")
    assert ran.code == 0, ran.err
    asked = budwood("try", "north", "--prompt", "There is a <|im_start|> in the <|im_start|>", "--json")
    (answer,) = asked.json["answers"]
    assert answer["after"].count(", ") == 1
    held = budwood("try", "north", "--rows", 2, "--json").json["answers"]
    assert all("<|im_start|>" in one["prompt"] and one["expected"] and one["after"] for one in held)
    ran = budwood("try", "north", "--prompt", "There is a place")
    assert ran.code == 2 and "hides no word; write <|im_start|>" in ran.err
    merged = budwood("merge", "north", "--out", "merged", "--json")
    assert merged.code == 0 and merged.json["largest_difference"] < 1e-4
    shutil.copytree("north/adapter", "alone")
    assert budwood("merge", "alone", "--out", "again", "--json").code == 0


def test_what_cannot_be_learned(budwood: Run, here: Path) -> None:
    ran = budwood("train", "bert", "north.jsonl", "--dry-run")
    assert ran.code == 4 and "--task masked-lm" in ran.err
    ran = budwood("train", "bert", "north.jsonl", "--task", "mlm", "--dry-run")
    assert ran.code == 2 and "masked-lm" in ran.err
