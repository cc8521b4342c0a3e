from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from budwood.data import encode, read, with_validation
from budwood.errors import BadData, OutOfMemory
from budwood.methods import Full, LoRA
from budwood.train import probe as probing
from budwood.train.preflight import data_facts, human_seconds, preflight
from budwood.train.probe import probe
from budwood.train.randomness import random_state
from tokens import tokenizer
from training import Job, job, rows


def forecast(run: Job) -> probing.Forecast:
    return probe(run.prepared, run.objective, run.feed, run.config)


@pytest.mark.parametrize("method", [LoRA(dropout=0.2), Full()], ids=["lora", "full"])
def test_probing_leaves_no_trace(method: LoRA | Full) -> None:
    run = job(method=method)
    before = {name: tensor.clone() for name, tensor in run.prepared.model.state_dict().items()}
    modes = [module.training for module in run.prepared.model.modules()]
    drawn = random_state()
    found = forecast(run)
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.prepared.model.state_dict().items())
    assert [module.training for module in run.prepared.model.modules()] == modes
    assert torch.equal(random_state().tensors["torch"], drawn.tensors["torch"])
    assert all(p.grad is None for p in run.prepared.parameters.values())
    assert not run.prepared.optimizer.state
    assert found.step_s > 0
    assert found.pieces == 1
    trained_bytes = sum(p.numel() * 4 for p in run.prepared.parameters.values())
    assert found.step_bytes >= 2 * trained_bytes
    assert found.longest_tokens == max(len(example.ids) for example in run.feed.examples)


def test_what_does_not_fit_is_computed_in_more_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row takes 100 bytes here and each further row 50: three rows fit into 230."""
    run = job(batch=8)
    tried: list[int] = []
    monkeypatch.setattr(probing, "available_bytes", lambda device: 230 + 2 * trained(run))
    monkeypatch.setattr(probing, "MARGIN", 1.0)
    monkeypatch.setattr(probing, "_peak", lambda device: lambda: 50 + 50 * max(tried, default=0))
    real = probing._tried
    monkeypatch.setattr(probing, "_tried", lambda p, o, f, n: (tried.append(n), real(p, o, f, n))[1])
    assert forecast(run).pieces == 3
    assert tried == [1, 2, 3]


def trained(run: Job) -> int:
    return sum(p.numel() * p.element_size() for p in run.prepared.parameters.values())


def test_one_row_that_does_not_fit_is_refused_with_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = job()
    monkeypatch.setattr(probing, "available_bytes", lambda device: 1000)
    with pytest.raises(OutOfMemory, match=r"precision: bf16.*gradient_checkpointing: true.*max_length: \d+") as refused:
        forecast(run)
    assert refused.value.exit_code == 5


def test_running_out_while_probing_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    run = job(batch=8)

    def greedy(module: object, args: tuple[torch.Tensor, ...], output: object) -> None:
        if args[0].shape[0] > 3:
            raise RuntimeError("not enough memory: you tried to allocate")

    run.prepared.model.model.embed_tokens.register_forward_hook(greedy)
    assert forecast(run).pieces == 4


FAQ = '{"prompt": "what is w1 ?", "completion": "it is w2 . w3 w4 w5 w6"}\n'


def facts(tmp_path: Path, text: str, **settings: int) -> object:
    (tmp_path / "faq.jsonl").write_text(text)
    corpus = with_validation(read(tmp_path / "faq.jsonl"))
    train = encode(corpus, "train", tokenizer(), **settings)
    return data_facts(corpus, train, 1, tokenizer())


def test_the_facts_of_the_data(tmp_path: Path) -> None:
    lines = [FAQ.replace("w1", f"w{number}").replace("w2", f"w{number + 7}") for number in range(20)]
    found = facts(tmp_path, "".join(lines) + lines[4] + lines[5])
    assert found.rows + 2 >= 18
    assert found.learned_tokens < found.total_tokens
    assert "[[it is" in found.shown
    assert "<eos>]]" in found.shown
    assert [finding.kind for finding in found.findings] == ["repeats"] * len(found.findings) != []


def test_rows_cut_are_counted(tmp_path: Path) -> None:
    lines = [FAQ.replace("w1", f"w{number}") for number in range(20)]
    found = facts(tmp_path, "".join(lines), max_length=14)
    assert found.rows_cut == found.rows
    assert found.rows_empty == 0
    assert found.longest > 14


def test_mostly_nothing_to_learn_is_refused_with_the_length_that_works(tmp_path: Path) -> None:
    short = [FAQ.replace("w1", f"w{number}") for number in range(8)]
    long = [FAQ.replace("w1", f"w{number} w3 w3 w3 w3 w3 w3") for number in range(30)]
    with pytest.raises(BadData, match=r"of 3\d rows have nothing left to learn; max_length: \d+ keeps") as refused:
        facts(tmp_path, "".join([*short, *long]), max_length=12)
    assert refused.value.exit_code == 3


def test_answers_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"w{number} w2", "completion": ""}) + "\n" for number in range(20)]
    with pytest.raises(BadData, match="have no answer to learn"):
        facts(tmp_path, "".join(lines))


def test_lines_say_what_matters(tmp_path: Path) -> None:
    lines = [FAQ.replace("w1", f"w{number}") for number in range(20)]
    run = job(budget="2epochs", batch=4, examples=rows(18))
    found = preflight(
        facts(tmp_path, "".join(lines), max_length=14), run.prepared, run.feed, run.config, forecast(run), held_bytes=7
    )
    text = "\n".join(found.lines())
    assert "10 steps, 2 epochs" in text
    assert "parameters trained" in text
    assert "rows are cut at 14 tokens; max_length:" in text
    assert found.steps == 10
    assert found.predicted_bytes == 7 + found.forecast.step_bytes
    assert found.to_dict()["epochs"] == 2.0
    hour = job(budget="1h").config
    timed = preflight(facts(tmp_path, "".join(lines)), run.prepared, run.feed, hour, forecast(run), held_bytes=7)
    assert timed.steps is None
    assert timed.predicted_s == 3600
    assert "about 60 min of training" in "\n".join(timed.lines())


def test_times_as_people_say_them() -> None:
    assert [human_seconds(s) for s in (40, 200, 9000)] == ["40 s", "3 min", "2.5 h"]
