"""Whole comparisons on tiny models in folders, in processes of their own: what is kept, and what a stop costs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from budwood.compare.config import Comparing, Unheard
from budwood.compare.plan import bytes_of, contenders_of, default_methods, label_of, seeds_of
from budwood.compare.run import compare_job, resume
from budwood.compare.work import Task, perform
from budwood.errors import BadConfig, BadData, NotAvailable, WrongOrder
from budwood.methods import IA3, LoRA, parse_method
from budwood.records import Comparison, ComparisonFolder, Item
from budwood.train.config import TrainConfig
from budwood.train.job import Job
from tokens import model_folder

QUICK: dict[str, Any] = {
    "budget": "6steps", "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "eval_every": 0,
    "rate_steps": 0, "test_rows": 12, "eval_rows": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def faq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "faq.jsonl"
    rows = [{"question": f"what is w{n} ?", "answer": f"it is w{n * 7 % 60} ."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class Heard(Unheard):
    """Keeps what it is told."""

    begun: list[str] = field(default_factory=list)
    ended: list[tuple[str, str]] = field(default_factory=list)

    def begin(self, task: Task, number: int, total: int) -> None:
        self.begun.append(task.name.rsplit("-", 2)[0])

    def end(self, item: Item, comparison: Comparison) -> None:
        self.ended.append((item.label, item.status))


def small(model: Path, data: Path, out: Path, *methods: str, seeds: int = 1, **settings: Any) -> tuple[Any, Heard]:
    heard = Heard()
    own = {key: settings.pop(key) for key in ("memory", "search") if key in settings}
    job = Job(model=str(model), data=str(data), config=TrainConfig(**{**QUICK, **settings}), out=out)
    wanted = Comparing(methods=methods, seeds=seeds, **{"search": False, **own})
    return compare_job(job, wanted, listener=heard), heard


@pytest.fixture(scope="module")
def done(llama: Path, faq: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison with one method that this model does not have the parts for."""
    out = tmp_path_factory.mktemp("done") / "cmp"
    small(llama, faq, out, "lora:rank=2", "bitfit", "ia3")
    return out


def test_everything_is_on_disk(done: Path) -> None:
    record = ComparisonFolder(done).read()
    assert record.status == "finished" and record.task == "causal-lm" and record.seeds == (0,)
    assert [one.label for one in record.contenders] == ["base", "lora:rank=2", "bitfit", "ia3"]
    verdicts = {one.label: one.verdict for one in record.contenders}
    assert verdicts == {"base": "ready", "lora:rank=2": "ready", "bitfit": "refused", "ia3": "ready"}
    assert "bias" in (record.contender("bitfit").why or "")
    folder = ComparisonFolder(done)
    runs = {item.label: folder.run(item) for item in record.items if item.status == "finished"}
    assert set(runs) == {"base", "lora:rank=2", "ia3"}
    base = runs["base"].result()
    assert base is not None and base.parameters is not None and base.parameters.trained_count == 0
    for label in ("lora:rank=2", "ia3"):
        result = runs[label].result()
        assert result is not None and result.inference is not None and result.memory is not None
        assert [one.base for one in result.quality] == [one.score for one in base.quality]
        assert [timing.batch for timing in result.inference.timings] == [1, 8]
        assert len(runs[label].predictions()) == len(runs["base"].predictions()) == 4
        assert runs[label].data()["hash"] == runs["base"].data()["hash"]


def test_the_report_is_written(done: Path) -> None:
    page = (done / "report.html").read_text()
    assert len(page) < 300_000 and "lora:rank=2" in page and "src=" not in page and "@import" not in page
    assert {path.name for path in done.glob("report.*")} >= {"report.html", "report.md", "report.csv", "report.json"}


def test_what_is_finished_is_not_done_again(done: Path, llama: Path, faq: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in done.glob("runs/*-s0/result.json")}
    _, heard = small(llama, faq, done, "lora:rank=2", "ia3", "adapter-h")
    assert [name for name, _ in heard.ended if name != "bitfit"] == ["adapter-h"]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(BadConfig, match=r"compares with batch 4, and now it is 8; runs would not be alike"):
        small(llama, faq, done, "lora:rank=2", batch=8)


def test_the_rate_of_the_first_seed_is_that_of_the_next(llama: Path, faq: Path, tmp_path: Path) -> None:
    compared, _ = small(
        llama, faq, tmp_path / "cmp", "lora:rank=2", seeds=2, search=True, rate_steps=4, budget="16steps"
    )
    record = compared.record
    contender = record.contender("lora:rank=2")
    assert contender.rates is not None and [trial.rate for trial in contender.rates.trials] == [3e-4, 1e-3, 3e-3]
    first, second = (ComparisonFolder(compared.path).run(item) for item in record.items if item.label != "base")
    assert first.manifest().rate_probe == contender.rates and second.manifest().rate_probe is None
    assert second.config()["learning_rate"] == contender.learning_rate and second.config()["seed"] == 1
    assert compared.table.method("lora:rank=2").seeds == (0, 1)


def test_a_limit_on_memory(llama: Path, faq: Path, tmp_path: Path) -> None:
    compared, _ = small(llama, faq, tmp_path / "cmp", "ia3", "lora:rank=2", memory="1KiB")
    record = compared.record
    assert {one.verdict for one in record.contenders if one.label != "base"} == {"left out"}
    assert "over the limit of 1.0 KiB" in str(record.contender("ia3").why)
    assert not list(compared.path.glob("runs/ia3*"))


COMMAND = [sys.executable, "-c", "import sys; from budwood.cli.app import main; sys.exit(main(sys.argv[1:]))"]


def begun(llama: Path, faq: Path, out: Path) -> subprocess.Popen[str]:
    """The command, in the middle of the steps of its first run."""
    words = ["compare", llama, faq, "--method", "lora:rank=2", "--method", "ia3", "--no-search", "--out", out]
    words += ["--budget", "60steps", "--batch", "2", "--device", "cpu", "--precision", "exact", "--eval-every", "0"]
    words += ["--samples", "1", "--test-rows", "8", "--save-every", "0.01"]
    ran = subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/lora*/state/state.json")) and time.monotonic() < deadline:
        assert ran.poll() is None, ran.communicate()
        time.sleep(0.02)
    return ran


def test_kill_in_the_middle_and_go_on(llama: Path, faq: Path, tmp_path: Path) -> None:
    out = tmp_path / "cmp"
    ran = begun(llama, faq, out)
    os.kill(ran.pid, signal.SIGKILL)
    ran.communicate()
    record = ComparisonFolder(out).read()
    assert record.status == "interrupted" and all(one.status != "finished" for one in record.items[1:])
    compared = resume(out)
    assert compared.record.status == "finished"
    assert [one.status for one in compared.record.items] == ["finished"] * 3
    with pytest.raises(NotAvailable, match=r"holds no comparison.json"):
        resume(tmp_path)


def test_sigterm_saves_and_says_how_to_go_on(llama: Path, faq: Path, tmp_path: Path) -> None:
    out = tmp_path / "cmp"
    ran = begun(llama, faq, out)
    ran.send_signal(signal.SIGTERM)
    _, told = ran.communicate(timeout=60)
    assert ran.returncode == 143, told
    assert f"budwood compare --resume {out}" in told
    assert ComparisonFolder(out).read().status == "interrupted"
    assert list(out.glob("runs/lora*/state/state.json"))


def test_data_that_cannot_be_learned_from_ends_it(llama: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "a"}\n')
    with pytest.raises(BadData):
        small(llama, bad, tmp_path / "cmp", "ia3")
    assert ComparisonFolder(tmp_path / "cmp").read().status == "failed"


def test_other_rows_than_before_are_refused(llama: Path, faq: Path, tmp_path: Path) -> None:
    own = tmp_path / "faq.jsonl"
    own.write_text(faq.read_text())
    small(llama, own, tmp_path / "cmp", "ia3")
    own.write_text(faq.read_text().replace("w7 ", "w8 "))
    with pytest.raises(BadConfig, match="holds other rows than when"):
        small(llama, own, tmp_path / "cmp", "ia3", "lora")


def test_methods_are_named_once() -> None:
    assert {"full", "lora", "adapter-h", "adapter-p", "parallel", "prefix-tuning", "p-tuning", "p-tuning-v2"} <= set(
        default_methods()
    )
    assert [one.label for one in contenders_of(["lora", LoRA(rank=2), {"ia3": {}}])] == [
        *("base", "lora", "lora:rank=2", "ia3"),
    ]
    with pytest.raises(BadConfig, match="lora is there twice"):
        contenders_of(["lora", "lora"])
    with pytest.raises(BadConfig, match="did you mean 'lora'"):
        contenders_of(["lorra"])
    assert parse_method(label_of(LoRA(rank=2, targets=("attn.q", "mlp.*")))) == LoRA(
        rank=2, targets=("attn.q", "mlp.*")
    )
    assert label_of(IA3()) == "ia3"


@pytest.mark.parametrize(("text", "wanted"), [("6GiB", 6 * 2**30), ("800MB", 800_000_000), ("1k", 1000), (42, 42)])
def test_sizes_of_memory(text: str | int, wanted: int) -> None:
    assert bytes_of(text) == wanted


@pytest.mark.parametrize("text", ["much", "-3GiB", "0", "3 apples"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadConfig, match=r"write it as 6GiB or 800MB"):
        bytes_of(text)


def test_seeds() -> None:
    assert seeds_of(3, 5) == (5, 6, 7) and seeds_of((1, 4), 0) == (1, 4)
    for wrong in (0, (), (1, 1), (-1,)):
        with pytest.raises(BadConfig, match="give how many"):
            seeds_of(wrong, 0)


def test_a_task_tells_its_error(tmp_path: Path) -> None:
    config = Job(model="nowhere", data="nothing").to_dict()
    found = perform(Task(kind="probe", name="x", config=config, out=str(tmp_path / "x")), lambda event: None)
    assert found["kind"] == "NotAvailable" and "nothing" in found["error"] + "nothing"
    found = perform(Task(kind="train", name="x", config={**config, "batch": "many"}, out="x"), lambda event: None)
    assert found["kind"] == "BadConfig"


def test_one_that_runs_is_not_gone_on_with(done: Path, llama: Path, faq: Path, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "cmp")
    folder.path.mkdir()
    (folder.path / "config.yaml").write_text((done / "config.yaml").read_text())
    folder.begun(ComparisonFolder(done).read(), budwood="0")
    with pytest.raises(WrongOrder, match="is still being compared by process"):
        small(llama, faq, folder.path, "ia3")


@pytest.mark.slow
def test_ray_does_the_same_runs(llama: Path, faq: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    own, _ = small(llama, faq, tmp_path / "own", "lora:rank=2", "ia3")
    job = Job(model=str(llama), data=str(faq), config=TrainConfig(**QUICK), out=tmp_path / "ray")
    found = compare_job(job, Comparing(methods=("lora:rank=2", "ia3", "bitfit"), search=False, ray=True))
    record = found.record
    assert record.status == "finished"
    assert [(one.label, one.status) for one in record.items] == [
        ("base", "finished"), ("lora:rank=2", "finished"), ("ia3", "finished"), ("bitfit", "failed"),
    ]  # fmt: skip
    for label in ("base", "lora:rank=2", "ia3"):
        ours, theirs = own.table.method(label).quality, found.table.method(label).quality
        assert ours is not None
        assert theirs is not None
        assert theirs.value == pytest.approx(ours.value, rel=1e-6)
