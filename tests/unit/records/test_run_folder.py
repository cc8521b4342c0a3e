from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from budwood.errors import BadCheckpoint, BadConfig, NotAvailable, WrongOrder
from budwood.records import Manifest, Parameters, Result, RunFolder, list_runs, machine

HERE = machine()


def manifest(**changes: object) -> Manifest:
    fields: dict[str, object] = {
        "command": ("budwood", "train", "demo-lm", "faq.jsonl"),
        "model": "demo-lm",
        "method": {"lora": {"rank": 8, "targets": ["attn.q"]}},
        "data": "faq.jsonl",
        "seed": 3,
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def create(root: Path, *, out: Path | None = None, force: bool = False, **changes: object) -> RunFolder:
    return RunFolder.create(
        root,
        manifest(**changes),
        config={"method": {"lora": {"rank": 8}}, "model": Path("demo-lm"), "text": "ü"},
        data={"rows": 12, "hash": "ab"},
        environment=HERE,
        out=out,
        force=force,
    )


def dead_process(run: RunFolder) -> None:
    """Makes run.json name a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = run.path / "run.json"
    data = json.loads(path.read_text())
    data["process"]["pid"] = ended.pid
    path.write_text(json.dumps(data))


def test_a_new_run_has_its_four_files_and_reads_back(tmp_path: Path) -> None:
    run = create(tmp_path / "runs", base={"sha256": "00"})
    assert re.fullmatch(r"\d{8}-\d{6}-lora-demo-lm", run.name)
    assert sorted(entry.name for entry in run.path.iterdir()) == [
        *("config.yaml", "data.json", "environment.json", "run.json")
    ]
    read = run.manifest()
    assert (read.status, read.seed, read.base) == ("running", 3, {"sha256": "00"})
    assert read.method == {"lora": {"rank": 8, "targets": ["attn.q"]}}
    assert read.command == ("budwood", "train", "demo-lm", "faq.jsonl")
    assert read.budwood and read.started.endswith("+00:00") and read.finished is None
    assert run.config() == {"method": {"lora": {"rank": 8}}, "model": "demo-lm", "text": "ü"}
    assert run.data() == {"rows": 12, "hash": "ab"}
    assert run.environment()["versions"]["torch"]
    assert run.adapter == run.path / "adapter" and run.state == run.path / "state"


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    runs = [create(tmp_path) for _ in range(5)]
    assert len({run.path for run in runs}) == 5
    assert list(list_runs(tmp_path).runs) == runs


def test_the_model_name_is_made_safe(tmp_path: Path) -> None:
    assert create(tmp_path, model="org/My Model:7b").name.endswith("-lora-My-Model-7b")
    assert create(tmp_path, model="C:\\models\\x.gguf").name.endswith("-lora-x.gguf")


def test_status_changes(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.interrupt("Ctrl-C")
    assert (run.manifest().status, run.manifest().error) == ("interrupted", "Ctrl-C")
    run.resume(step=4)
    assert (run.manifest().status, run.manifest().error, len(run.manifest().resumed)) == ("running", None, 1)
    run.fail("loss is NaN")
    assert (run.manifest().status, run.manifest().error) == ("failed", "loss is NaN")
    run.finish()
    assert run.manifest().status == "finished" and run.manifest().finished is not None


def test_a_run_whose_process_is_gone_reads_as_interrupted(tmp_path: Path) -> None:
    run = create(tmp_path)
    dead_process(run)
    assert run.manifest().status == "interrupted"
    assert "killed" in (run.manifest().error or "")


def test_a_run_on_another_host_is_left_alone(tmp_path: Path) -> None:
    run = create(tmp_path)
    path = run.path / "run.json"
    path.write_text(path.read_text().replace('"host": "', '"host": "other-'))
    assert run.manifest().status == "running"
    with pytest.raises(WrongOrder, match="still being written by process .* on other-"):
        run.resume(step=1)


def test_metrics_survive_a_torn_line_and_a_resume(tmp_path: Path) -> None:
    run = create(tmp_path)
    for step in range(1, 6):
        run.add_metrics({"step": step, "loss": 1 / step, "kind": "train"})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [point["step"] for point in run.metrics()] == [1, 2, 3, 4, 5]
    run.resume(step=3)
    run.add_metrics({"step": 4, "loss": 9.0})
    assert [(point["step"], point["loss"]) for point in run.metrics()] == [*((1, 1.0), (2, 0.5), (3, 1 / 3), (4, 9.0))]
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 7 and all(json.loads(line) for line in lines)


def test_samples_and_predictions(tmp_path: Path) -> None:
    run = create(tmp_path)
    run.add_sample({"step": 0, "prompt": "Hi", "base": "a", "now": "b"})
    run.add_sample({"step": 8, "prompt": "Hi", "base": "a", "now": "c"})
    run.add_prediction({"row": 1, "prediction": "x"})
    run.resume(step=4)
    assert [sample["now"] for sample in run.samples()] == ["b"]
    assert run.predictions() == []
    run.add_prediction({"row": 1, "prediction": "y"})
    assert run.predictions() == [{"row": 1, "prediction": "y"}]


def test_result_and_log(tmp_path: Path) -> None:
    run = create(tmp_path)
    assert run.result() is None
    result = Result(parameters=Parameters(trained_count=1, trained_bytes=4, base_count=10))
    run.write_result(result)
    assert run.result() == result
    run.log("first")
    run.log("second")
    assert re.fullmatch(r"\S+ first\n\S+ second\n", (run.path / "log.txt").read_text())


def test_out_names_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert create(tmp_path / "runs", out=out).path == out
    empty = tmp_path / "empty"
    empty.mkdir()
    assert create(tmp_path / "runs", out=empty).path == empty
    assert sorted(entry.name for entry in empty.iterdir()) == [
        *("config.yaml", "data.json", "environment.json", "run.json")
    ]


def test_an_earlier_run_is_replaced_only_by_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = create(tmp_path, out=out)
    run.add_metrics({"step": 1})
    run.adapter.mkdir()
    (out / "notes.txt").write_text("mine")
    run.finish()
    with pytest.raises(BadConfig, match=r"holds a run already.*--force"):
        create(tmp_path, out=out)
    assert run.metrics() == [{"step": 1}] and run.manifest().status == "finished"
    again = create(tmp_path, out=out, force=True, seed=9)
    assert again.manifest().seed == 9 and again.metrics() == [] and not again.adapter.exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert not list(out.glob(".replaced*"))


def test_force_spares_what_is_not_a_run_and_what_still_runs(tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.tex").write_text("long work")
    with pytest.raises(BadConfig, match=r"not empty \(chapter.tex\) and not a run.*--out"):
        create(tmp_path, out=out, force=True)
    running = create(tmp_path, out=tmp_path / "running")
    with pytest.raises(WrongOrder, match="still going"):
        create(tmp_path, out=running.path, force=True)
    dead_process(running)
    assert create(tmp_path, out=running.path, force=True).manifest().status == "running"


def test_a_run_that_cannot_be_begun_leaves_the_old_one(tmp_path: Path) -> None:
    run = create(tmp_path, out=tmp_path / "out")
    run.finish()
    with pytest.raises(TypeError):
        RunFolder.create(
            tmp_path, manifest(), config={"x": object()}, data={}, environment=HERE, out=run.path, force=True
        )
    assert run.manifest().status == "finished" and run.config()["text"] == "ü"
    with pytest.raises(TypeError):
        RunFolder.create(tmp_path / "r", manifest(), config={"x": object()}, data={}, environment=HERE)
    assert list((tmp_path / "r").iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadConfig, match=r"cannot write .*file.*--out"):
        create(tmp_path / "file")
    with pytest.raises(BadConfig, match=r"cannot write .*file/run: .*--out"):
        create(tmp_path, out=tmp_path / "file" / "run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(BadConfig, match="Permission denied"):
        create(tmp_path / "runs")


def test_open_by_path_name_start_and_latest(tmp_path: Path) -> None:
    first = create(tmp_path, model="alpha")
    second = create(tmp_path, model="beta")
    assert RunFolder.open(first.path) == first
    assert RunFolder.open(first.name, root=tmp_path) == first
    assert RunFolder.open("lora-b", root=tmp_path) == second
    assert RunFolder.open(first.name[:-2], root=tmp_path) == first
    assert RunFolder.open("latest", root=tmp_path) == second
    with pytest.raises(BadConfig, match=r"fits 2 runs.*alpha.*beta.*more of the name"):
        RunFolder.open("lora", root=tmp_path)


def test_open_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotAvailable, match="no run in .* yet; start one with budwood train"):
        RunFolder.open("latest", root=tmp_path / "none")
    with pytest.raises(NotAvailable, match="no run 'nope'"):
        RunFolder.open("nope", root=tmp_path)
    run = create(tmp_path)
    with pytest.raises(NotAvailable, match=f"did you mean '{run.name}'"):
        RunFolder.open(run.name.replace("lora", "loar"), root=tmp_path)
    with pytest.raises(NotAvailable, match="holds no run.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "cannot be read as JSON"),
        (lambda text: "[]", "holds a JSON list"),
        (lambda text: text.replace('"version": 1', '"version": 2'), "has version 2"),
        (lambda text: text.replace('"seed"', '"sead"'), "has unknown sead"),
        (lambda text: re.sub(r'"seed": 3,', "", text), "lacks seed"),
        (lambda text: text.replace('"running"', '"flying"'), "status 'flying'"),
    ],
)
def test_a_damaged_manifest(tmp_path: Path, damage: object, words: str) -> None:
    run = create(tmp_path)
    good = create(tmp_path)
    path = run.path / "run.json"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    with pytest.raises(BadCheckpoint, match=words) as caught:
        RunFolder.open(run.path)
    assert str(path) in str(caught.value)
    listing = list_runs(tmp_path)
    assert listing.runs == (good,)
    assert [place for place, _ in listing.broken] == [run.path] and words in listing.broken[0][1]


def test_a_damaged_config(tmp_path: Path) -> None:
    run = create(tmp_path)
    (run.path / "config.yaml").write_text("a: [1")
    with pytest.raises(BadCheckpoint, match=r"config.yaml cannot be read"):
        run.config()


def test_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "none").runs == ()
