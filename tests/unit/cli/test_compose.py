"""`budwood compose` on runs and adapter folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import budwood as bw
from budwood.interop import describe
from world import World

from .conftest import Run


@pytest.fixture
def two(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A copy of the run, and a bare adapter `facts` for the same base."""
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(world.run, tmp_path / "runs" / world.run.name))
    model = AutoModelForCausalLM.from_pretrained(world.model)
    _write(model, Path("facts"), bw.LoRA(rank=3, targets=("attn.q", "mlp.*")), seed=1)
    return run, Path("facts")


def _write(model: torch.nn.Module, folder: Path, method: bw.Method, seed: int) -> None:
    """An adapter with an effect."""
    torch.manual_seed(seed)
    bw.attach(model, method, name="x")
    with torch.no_grad():
        for parameter in bw.parameters(model, "x"):
            parameter.add_(0.2 * torch.randn_like(parameter))
    bw.save(model, folder, name="x")
    bw.detach(model, "x")


def test_compose_writes_the_weighted_sum(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    ran = budwood("compose", *two, "--weights", "-.5,2", "--out", "both")
    assert ran.code == 0, ran.err
    assert ran.out == "both\n"
    assert "attn.q" in ran.err and "mlp.down" in ran.err and "budwood eval both" in ran.err and "0.00%" in ran.err
    model = AutoModelForCausalLM.from_pretrained(world.model)
    ids = torch.tensor([[5, 6, 7]])
    for name, folder in (("a", two[0] / "adapter"), ("b", two[1]), ("both", Path("both"))):
        bw.load(model, folder, name=name)
    with torch.no_grad():
        with bw.using(model, bw.Sum(("a", "b"), (-0.5, 2.0))):
            expected = model(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)


def test_what_is_composed_is_an_adapter_like_any_other(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    assert budwood("compose", "latest", "facts", "--how", "svd", "--rank", 2, "--out", "both", "-q").code == 0
    assert budwood("try", "both", "--prompt", "Who?", "--max-new-tokens", 2).code == 0
    assert budwood("eval", "both", world.chat).code == 0
    assert budwood("merge", "both", "--out", "merged").code == 0
    assert budwood("compose", "both", "facts", "--out", "more").code == 0


def test_compose_in_json(budwood: Run, two: tuple[Path, Path]) -> None:
    words = ("compose", *two, "--how", "dare-ties", "--density", 0.4, "--sign", "frequency", "--rank", 4, "--json")
    found = budwood(*words, "--seed", 3, "--out", "a").json
    assert found["out"] == "a" and found["how"] == "dare-ties" and found["weights"] == [1, 1] and found["heads"] == []
    assert 0 < found["mean_error"] < found["worst_error"] == found["errors"][found["worst_site"]] < 1
    assert sum(role["parameters"] for role in found["roles"]) == found["parameters"]
    assert set(found["ranks"].values()) == {4}
    assert budwood(*words, "--seed", 3, "--out", "b").json["errors"] == found["errors"]
    turned = budwood("compose", *reversed(two), *words[3:], "--seed", 3, "--out", "c").json
    assert turned["errors"] == pytest.approx(found["errors"], abs=1e-5)
    assert budwood(*words, "--seed", 4, "--out", "d").json["errors"] != found["errors"]


def test_a_rank_that_loses_much_is_said(budwood: Run, two: tuple[Path, Path]) -> None:
    ran = budwood("compose", *two, "--how", "ties", "--rank", 1, "--out", "both", "-q")
    assert ran.code == 0 and "a larger --rank loses less" in ran.err


def test_classifiers_need_one_head(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    other = AutoModelForSequenceClassification.from_pretrained(
        world.encoder, num_labels=2, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1}
    )
    _write(other, Path("second"), bw.LoRA(rank=2), seed=5)
    ran = budwood("compose", world.adapter, "second", "--out", "both")
    assert ran.code == 2 and "trained classifier to different values" in ran.err and not Path("both").exists()
    ran = budwood("compose", world.adapter, "second", "--head", "secnd", "--out", "both")
    assert ran.code == 2 and "--head is 'secnd'" in ran.err
    ran = budwood("compose", world.adapter, "second", "--head", "second", "--out", "both")
    assert ran.code == 0 and "trained in full beside it: classifier" in ran.err
    assert budwood("eval", "both", world.labelled).code == 0


def test_other_bases_tasks_and_classes_are_refused(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    ran = budwood("compose", two[1], world.adapter, "--out", "both")
    assert ran.code == 2 and "only adapters of one base" in ran.err
    other = AutoModelForSequenceClassification.from_pretrained(
        world.encoder, num_labels=2, id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}
    )
    _write(other, Path("second"), bw.LoRA(rank=2), seed=5)
    ran = budwood("compose", world.adapter, "second", "--out", "both")
    assert ran.code == 2 and "the classes 0, 1" in ran.err and "the classes no, yes" in ran.err


def test_a_base_that_moved_is_named_and_a_changed_one_is_found_out(
    budwood: Run, world: World, two: tuple[Path, Path]
) -> None:
    shutil.copytree(world.model, "moved")
    config = json.loads(Path("facts/adapter_config.json").read_text())
    _set_base(Path("facts"), str(Path("moved").resolve()), config)
    assert budwood("compose", *two, "--out", "both").code == 2
    assert budwood("compose", *two, "--out", "both", "--model", "moved").code == 0
    model = AutoModelForCausalLM.from_pretrained("moved")
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    model.save_pretrained("moved")
    ran = budwood("compose", *two, "--out", "again", "--model", "moved")
    assert ran.code == 4 and "wrong base" in ran.err and not Path("again").exists()


def _set_base(folder: Path, base: str, config: dict[str, object]) -> None:
    """The folder as if its adapter was trained on a base in another place."""
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    own = json.loads(metadata["budwood"]) | {"base": base}
    save_file(load_file(path), path, {**metadata, "budwood": json.dumps(own)})
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))


def test_methods_that_do_not_merge(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    _write(AutoModelForCausalLM.from_pretrained(world.model), Path("scaled"), bw.IA3(), seed=2)
    ran = budwood("compose", "facts", "scaled", "--out", "both")
    assert ran.code == 2 and "'scaled' is ia3" in ran.err and "Sum" in ran.err and not Path("both").exists()


def test_adapters_on_top_of_others_keep_what_they_stand_on(budwood: Run, world: World, two: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(world.model)
    below = (str(two[1].resolve()),)
    for name, on in (("one", below), ("other", below), ("bare", ())):
        bw.attach(model, bw.LoRA(rank=2), name=name)
        bw.save(model, name, name=name, on=on)
    ran = budwood("compose", "one", "bare", "--out", "both")
    assert ran.code == 2 and f"one, on {below[0]} and bare were not trained on top of the same" in ran.err
    assert budwood("compose", "one", "other", "--out", "both").code == 0
    assert describe("both").on == below


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["facts"], "1 adapter is given"),
        ([], "no adapters are given"),
        (["facts", "facts"], "facts is given twice"),
        (["latest", "facts", "--how", "tie"], "did you mean 'ties'"),
        (["latest", "facts", "--weights", "1,x"], "--weights is '1,x'"),
        (["latest", "facts", "--weights", "1"], "2 adapters and 1 weights"),
        (["latest", "facts", "--how", "ties", "--density", "0"], "density is 0"),
        (["latest", "facts", "--density", "0.5"], "linear keeps every value"),
        (["latest", "facts", "--rank", "99"], "rank of at most"),
        (["latest", "facts", "--out", "full"], "--force"),
    ],
)
def test_what_makes_no_sense(budwood: Run, two: tuple[Path, Path], words: list[str], message: str) -> None:
    Path("full").mkdir()
    Path("full/keep").write_text("x")
    ran = budwood("compose", *words, *([] if "--out" in words else ["--out", "both"]))
    assert ran.code == 2 and message in ran.err
    assert not Path("both").exists() and Path("full/keep").is_file()


def test_no_such_adapter(budwood: Run, two: tuple[Path, Path]) -> None:
    assert budwood("compose", "facts", "./nothing", "--out", "both").code == 4
