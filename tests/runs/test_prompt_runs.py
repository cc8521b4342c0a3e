"""Prompts through whole runs: in mixed precision, and so long that they leave little room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from budwood.cli.app import main
from budwood.errors import BadConfig
from budwood.train.run import Run, train
from families import FAMILIES
from tokens import model_folder, tokenizer

QUICK: dict[str, Any] = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
    "budget": "2steps",
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("prompts")
    model_folder(place / "llama")
    for name in ("gpt2", "bart"):
        FAMILIES[name].build().save_pretrained(place / name)
        tokenizer().save_pretrained(place / name)
    rows = [{"source": f"w{n} is " * (1 if n % 9 else 40), "target": f"w{n}"} for n in range(40)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def go(place: Path, kind: str, out: Path, method: str, **more: Any) -> Run:
    return train(place / kind, place / "rows.jsonl", method=method, config={**QUICK, **more}, out=out)


@pytest.mark.parametrize("method", ["prefix-tuning", "p-tuning-v2", "p-tuning", "unipelt"])
def test_a_compact_base_takes_prefixes(place: Path, tmp_path: Path, method: str) -> None:
    """Linears in bfloat16 and all else in float32: what looks at the model has to run it as training does."""
    run = go(place, "llama", tmp_path / "run", method, precision="bf16", gradient_checkpointing=True)
    proof = next(line["proof"] for line in run.metrics() if "proof" in line)
    assert proof["reload"]["largest_difference"] < 0.02 and proof["movement"]["unmoved"] == {}
    kind = json.loads((run.adapter / "adapter_config.json").read_text())["peft_type"]
    assert kind == {"p-tuning": "P_TUNING", "unipelt": kind}.get(method, "PREFIX_TUNING")


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_a_prompt_that_leaves_little_room(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """56 of 64 positions: the samples, the times and the scores of the base and of the adapter fit into the rest."""
    run = go(place, kind, tmp_path / "run", "prompt-tuning:length=56")
    assert main(["eval", str(run.path), *(["--metric", "rouge_l"] if kind == "bart" else []), "--json"]) == 0
    capsys.readouterr()
    with pytest.raises(BadConfig, match="57 positions and the model reads 64, which leaves fewer than 8"):
        go(place, kind, tmp_path / "more", "prompt-tuning:length=57")
