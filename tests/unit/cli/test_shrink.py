"""`budwood shrink` on a tiny model: what lies ahead, what came out, and every bad input with its exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from budwood.records import Manifest, RunFolder, machine
from shrinking import made_up_times
from world import World

from .conftest import Run

QUICK = (
    "--batch", "4", "--precision", "exact", "--device", "cpu", "--proof-steps", "0", "--samples", "1",
    "--rows", "8", "--tune", "0steps", "--recover", "2steps",
)  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    made_up_times(monkeypatch)
    return tmp_path


def test_dry_run_says_what_lies_ahead_and_writes_nothing(budwood: Run, world: World, here: Path) -> None:
    words = ("shrink", world.model, world.chat, "--to", "0.9", "--cut", "ffn+vocabulary", *QUICK, "--dry-run")
    ran = budwood(*words)
    assert ran.code == 0, ran.err
    for said in ("14,736 parameters (layers 2, ffn 32", "the least that can be left", "stages of", "nothing was cut"):
        assert said in ran.err
    assert list(here.iterdir()) == []
    found = budwood(*words, "--json").json["outlook"]
    assert found["parameters"] == 14736 and found["fewest"] < found["target"] == 13262
    assert found["stages"][0] == found["trimmed"] and found["tokens"][0] > found["tokens"][1]


def test_stages_are_told_and_the_model_is_named(budwood: Run, world: World) -> None:
    ran = budwood("shrink", world.model, world.chat, "--to", "0.9", "--cut", "ffn", *QUICK, "--out", "run")
    assert ran.code == 0, ran.err
    assert Path(ran.out.strip()) == Path("run/model") and Path("run/model/config.json").is_file()
    for said in (
        "as it was given",
        "ffn 32 -> ",
        "step 2/2",
        "ended: ",
        "parameters are left, as asked",
        "report.html",
    ):
        assert said in ran.err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["shrink"]["to"] == 0.9 and list(config["method"]) == ["full"]
    again = budwood("shrink", "--config", "run/config.yaml", "--out", "again", "--json")
    assert again.code == 0, again.err
    assert [stage["parameters"] for stage in again.json["stages"]] == [14736, again.json["stages"][-1]["parameters"]]
    assert again.json["stages"][-1]["share"] <= 0.9 and again.json["model"] == "again/model"
    assert (Path("run/model/model.safetensors").read_bytes()) == Path("again/model/model.safetensors").read_bytes()
    finished = budwood("shrink", "--resume", "run")
    assert finished.code == 2 and "is finished; start a new shrinking" in finished.err


@pytest.mark.parametrize(
    "verb", [("eval",), ("try",), ("merge", "--out", "x"), ("export", "--to", "peft", "--out", "x")]
)
def test_other_verbs_say_what_a_shrinking_has(budwood: Run, world: World, here: Path, verb: Sequence[str]) -> None:
    manifest = Manifest(
        command=("budwood", "shrink"), model="m", method={"shrink": {"to": 0.5}}, data="d", seed=0,
    )  # fmt: skip
    run = RunFolder.create(here, manifest, config={"shrink": {}}, data={}, environment=machine(), out=here / "run")
    run.fail("no room")
    ran = budwood(verb[0], "run", *verb[1:])
    assert ran.code == 4 and "is a shrinking, and it is failed; go on with: budwood shrink --resume " in ran.err
    run.finish()
    ran = budwood(verb[0], "run", *verb[1:])
    assert ran.code == 4 and "name the folder run/model as MODEL" in ran.err, ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "say how far: to: 0.5, to_params: 80M"),
        (("--to", "1.5"), "to is 1.5; it is a share, above 0 and at most 1"),
        (("--to", "0.5", "--to-params", "10k"), "keep one of them"),
        (("--to-params", "many"), "write a number of parameters, as 80M or 1.2B"),
        (("--to", "0.5", "--cut", "ffn+layer"), "did you mean 'layers'?"),
        (("--to", "0.5", "--score", "magnitude"), "score is 'magnitude'"),
        (("--to", "0.5", "--recover", "soon"), "0steps leaves it out"),
        (("--to", "0.5", "--rows", "3"), "calibrate on at least 8 rows"),
        (("--to", "0.01", "--cut", "ffn"), "comes to no fewer than"),
        (("--to", "0.9", "--method", "prefix-tuning"), "cannot be folded into weights"),
        (("--to", "0.9", "--budget", "100steps"), "a shrinking has a time (30m)"),
    ],
)
def test_mistakes(budwood: Run, world: World, here: Path, words: Sequence[str], said: str) -> None:
    ran = budwood("shrink", world.model, world.chat, *words)
    assert ran.code == 2 and said in ran.err, ran.err
    assert list(here.iterdir()) == []


def test_resume_takes_nothing_beside_it(budwood: Run) -> None:
    ran = budwood("shrink", "--resume", "run", "--to", "0.5")
    assert ran.code == 2 and "so --to would not be used" in ran.err


def test_what_is_no_shrinking_is_not_resumed_as_one(budwood: Run, world: World) -> None:
    ran = budwood("shrink", "--resume", world.run)
    assert ran.code == 2 and "this run is no shrinking" in ran.err
