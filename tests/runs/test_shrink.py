"""Whole shrinkings of tiny models in folders: what is on disk afterwards, what stops them, and going on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

import budwood as bw
from budwood.errors import BadConfig, BadData, NotAvailable, WrongOrder
from budwood.interop import save
from budwood.shrink.run import Shrunk, resume
from budwood.train.interrupt import Interrupted
from budwood.train.observer import StepPoint
from shrinking import chat_at, films_at, made_up_times, model_at, small
from training import Recorded
from world import World, make_world

STOCK = """
import json, sys
sys.modules["budwood"] = None
import torch, transformers
from peft import LoraConfig, get_peft_model
folder, auto = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model, report = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
ids = tokenizer("name : Zizzi", return_tensors="pt")["input_ids"]
written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False).shape[1] if model.can_generate() else 0
count = sum(p.numel() for p in model.parameters())
get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))(input_ids=ids, **(
    {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
print(json.dumps({"parameters": count, "written": written, "config": model.config.to_dict(), "words": len(tokenizer)}))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up_times(monkeypatch)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_at(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_at(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return films_at(tmp_path_factory.mktemp("films"))


def stock(folder: Path, auto: str) -> dict[str, Any]:
    """What transformers alone makes of a folder, where Budwood cannot be imported."""
    ran = subprocess.run(
        [sys.executable, "-c", STOCK, str(folder), auto], capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def tensors(shrunk: Shrunk) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(shrunk.model / "model.safetensors")
    return found


def same(one: Shrunk, other: Shrunk) -> bool:
    ours, theirs = tensors(one), tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


KINDS = {
    "llama": ("causal", "AutoModelForCausalLM", "ffn+heads+layers+vocabulary+hidden"),
    "qwen2": ("causal", "AutoModelForCausalLM", "heads+hidden"),
    "gemma2": ("causal", "AutoModelForCausalLM", "layers+heads+ffn"),
    "gpt2": ("causal", "AutoModelForCausalLM", "hidden+heads+ffn"),
    "t5": ("seq2seq", "AutoModelForSeq2SeqLM", "heads+layers+vocabulary"),
    "bert": ("masked", "AutoModelForSequenceClassification", "hidden+heads"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_an_ordinary_model(kind: str, tmp_path: Path, chat: Path, films: Path) -> None:
    task, auto, cut = KINDS[kind]
    data = films if kind == "bert" else chat
    shrunk = small(model_at(tmp_path / kind, kind, task), data, tmp_path / "run", to=0.5, cut=cut)
    stages, found = shrunk.stages, stock(shrunk.model, auto)
    assert shrunk.folder.manifest().status == "finished"
    assert found["parameters"] == stages[-1].parameters <= 0.5 * stages[0].parameters
    assert (found["written"] > 0) == (kind != "bert")
    sizes, config = stages[-1].sizes, found["config"]
    assert sizes["vocabulary"] == config["vocab_size"] and (kind not in ("llama", "t5") or found["words"] < 314)
    assert sizes["layers"] in (config.get("num_hidden_layers"), config.get("n_layer"), config.get("num_layers"))
    assert sizes["hidden"] in (config.get("hidden_size"), config.get("n_embd"), config.get("d_model"))
    for stage in stages[1:]:
        assert stage.accepted and stage.folder is not None
        assert (shrunk.path / stage.folder / "model.safetensors").is_file()
    assert not (shrunk.path / "work").exists() and shrunk.report.is_file()
    assert [stage.quality.value for stage in stages if stage.kind == "tuned" and stage.quality] in ([], [1.0])
    assert all(stage.quality is not None for stage in stages if stage.kind == "cut")
    assert {line["step"] for line in shrunk.folder.samples()} == {stage.number for stage in stages}


@pytest.mark.slow
def test_the_same_twice_is_equal_and_is_resumed_as_if_it_had_never_stopped(
    llama: Path, chat: Path, tmp_path: Path
) -> None:
    cut = "ffn+layers+vocabulary"
    whole = small(llama, chat, tmp_path / "whole", to=0.6, cut=cut)
    places: dict[str, Callable[[Stopping], bool]] = {
        "tuning": lambda seen: len(seen.points) == 3,
        "begun": lambda seen: len(seen.notes) == 1,
        "cutting": lambda seen: seen.said("loss", 2),
        "recovery": lambda seen: seen.trained == 2 and seen.points[-1].step == 2,
        "later": lambda seen: seen.trained == 3 and seen.points[-1].step == 3,
        "the end": lambda seen: seen.said("ended", 1),
    }
    for place, when in places.items():
        observer = Stopping(when)
        with pytest.raises(KeyboardInterrupt):
            small(llama, chat, tmp_path / place, to=0.6, cut=cut, observer=observer)
        stopped = Shrunk(bw.records.RunFolder(tmp_path / place)) if (tmp_path / place).exists() else None
        if place == "begun":  # what lies ahead is said before anything is written
            assert stopped is None
            continue
        assert stopped is not None and stopped.folder.manifest().status == "interrupted"
        done = resume(stopped)
        assert same(whole, done), place
        assert [s.what for s in done.stages] == [s.what for s in whole.stages]
        assert [s.scores for s in done.stages] == [s.scores for s in whole.stages]
        assert {line["step"] for line in done.folder.samples()} == {s.number for s in done.stages}, place
        assert len(done.folder.samples()) == len(whole.folder.samples()), place
    with pytest.raises(WrongOrder, match="is finished; start a new shrinking"):
        resume(whole)


@dataclass
class Stopping(Recorded):
    """Ctrl-C once something was seen: in a step as a signal, which is noted; elsewhere as it comes."""

    when: Callable[[Stopping], bool] = lambda seen: False
    trained: int = 0
    is_done: bool = False
    points: list[StepPoint] = field(default_factory=list)

    def __init__(self, when: Callable[[Stopping], bool]) -> None:
        self.points, self.notes, self.when, self.trained, self.is_done = [], [], when, 0, False

    def said(self, words: str, times: int) -> bool:
        return sum(words in note for note in self.notes) == times

    def step(self, point: StepPoint) -> None:
        self.trained += point.step == 1
        super().step(point)
        if not self.is_done and self.when(self):
            self.is_done = True
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        super().note(text)
        if not self.is_done and self.when(self):
            self.is_done = True
            raise KeyboardInterrupt


@pytest.mark.slow
def test_an_observer_that_raises_in_a_step_loses_that_stage_alone(llama: Path, chat: Path, tmp_path: Path) -> None:
    class Broken(Recorded):
        def step(self, point: StepPoint) -> None:
            raise KeyboardInterrupt

    plan: dict[str, Any] = {"to": 0.8, "tune": "0steps", "cut": "ffn"}
    whole = small(llama, chat, tmp_path / "whole", **plan)
    with pytest.raises(Interrupted, match="budwood shrink --resume"):
        small(llama, chat, tmp_path / "run", **plan, observer=Broken())
    assert (tmp_path / "run" / "work" / "01" / "cut.json").is_file()
    assert same(whole, resume(tmp_path / "run"))


@pytest.mark.slow
def test_what_is_left_of_a_stage_that_is_done_is_not_taken_for_the_next(
    llama: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan: dict[str, Any] = {"to": 0.6, "tune": "0steps", "cut": "ffn+layers"}
    whole = small(llama, chat, tmp_path / "whole", **plan)
    from budwood.shrink import folder

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(folder.Shelf, "add", _added_then_stopped)
        small(llama, chat, tmp_path / "run", **plan)
    assert (tmp_path / "run" / "work" / "01" / "cut.json").is_file()
    assert len(Shrunk(bw.records.RunFolder(tmp_path / "run")).stages) == 2
    assert same(whole, resume(tmp_path / "run"))


def _added_then_stopped(shelf: Any, stage: Any) -> None:
    """As if the process died between writing a stage down and clearing up behind it."""
    from budwood.records.files import append_line

    append_line(shelf.root / "stages.jsonl", stage.to_dict())
    if stage.kind == "cut":
        raise KeyboardInterrupt


@pytest.mark.slow
def test_a_stage_that_does_not_hold_is_undone(llama: Path, chat: Path, tmp_path: Path) -> None:
    observer = Recorded()
    plan: dict[str, Any] = {"to": 0.6, "cut": "layers+ffn", "recover": "0steps", "ridge": -1, "score": "random"}
    shrunk = small(llama, chat, tmp_path / "run", min_quality=1, observer=observer, **plan)
    stages = shrunk.stages
    assert [stage.accepted for stage in stages] == [True, True, False]
    assert stages[-1].folder is None and stages[-1].quality is not None and stages[-1].quality.low < 1
    assert [path.name for path in (shrunk.path / "stages").iterdir()] == ["01-tuned"]
    assert (shrunk.model / "model.safetensors").is_file()
    assert sum(t.numel() for t in tensors(shrunk).values()) >= stages[1].parameters
    assert any("less than 1" in note for note in observer.notes)
    assert "undone" in shrunk.report.read_text()


def test_where_nothing_holds_the_model_is_what_it_was(llama: Path, chat: Path, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"cut": "layers+ffn", "recover": "0steps", "ridge": -1, "score": "random", "tune": "0steps"}
    shrunk = small(llama, chat, tmp_path / "run", min_quality=1, **plan)
    assert [stage.accepted for stage in shrunk.stages] == [True, False]
    before = load_file(llama / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(shrunk).items())


@pytest.mark.slow
def test_other_ends(llama: Path, chat: Path, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"tune": "0steps", "recover": "0steps", "cut": "ffn+layers"}
    quick = small(llama, chat, tmp_path / "latency", latency=0.8, **plan)
    assert quick.stages[-1].speedup >= 1 / 0.8 > quick.stages[-2].speedup
    few = small(llama, chat, tmp_path / "count", to_params="40k", **plan)
    assert few.stages[-1].parameters <= 40_000
    timed = small(llama, chat, tmp_path / "time", to=0.6, budget="0.001s", **plan)
    assert [stage.kind for stage in timed.stages] == ["original"] and (timed.model / "config.json").is_file()
    until = small(llama, chat, tmp_path / "quality", min_quality=0.01, **plan)
    assert until.stages[-1].sizes["layers"] == 2  # on to where nothing is left


def test_one_cut_to_what_takes_several_ways(llama: Path, chat: Path, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"tune": "0steps", "recover": "0steps", "step": 1}
    shrunk = small(llama, chat, tmp_path / "run", to=0.47, **plan)
    assert len(shrunk.stages) == 2 and shrunk.stages[-1].share <= 0.47


@pytest.mark.slow
def test_a_full_disk_loses_nothing(llama: Path, chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan: dict[str, Any] = {"to": 0.6, "cut": "ffn+layers", "tune": "2steps"}
    whole = small(llama, chat, tmp_path / "whole", **plan)
    saved: list[Path] = []
    written = PreTrainedModel.save_pretrained

    def full(model: Any, place: Any, **settings: Any) -> None:
        saved.append(Path(place))
        if len(saved) == 3:
            Path(place).mkdir(parents=True)
            (Path(place) / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written(model, place, **settings)

    with monkeypatch.context() as patched, pytest.raises(BadConfig, match="No space left on device; make room"):
        patched.setattr(PreTrainedModel, "save_pretrained", full)
        small(llama, chat, tmp_path / "run", **plan)
    assert not saved[-1].exists()
    assert Shrunk(bw.records.RunFolder(tmp_path / "run")).folder.manifest().status == "failed"
    assert same(whole, resume(tmp_path / "run"))


@pytest.mark.slow
def test_sigterm_of_the_command(llama: Path, chat: Path, tmp_path: Path) -> None:
    words = ["shrink", llama, chat, "--to", "0.8", "--cut", "ffn", "--tune", "0steps", "--recover", "400steps"]
    words += ["--batch", "4", "--precision", "exact", "--device", "cpu", "--rows", "16", "--out", tmp_path / "run"]
    command = [sys.executable, "-c", "import sys; from budwood.cli.app import main; sys.exit(main(sys.argv[1:]))"]
    ran = subprocess.Popen([*command, *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "work" / "01" / "cut.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        ran.send_signal(signal.SIGTERM)
        _, told = ran.communicate(timeout=60)
    finally:
        ran.kill()
    assert ran.returncode == 143, told
    assert f"budwood shrink --resume {tmp_path / 'run'}" in told
    stopped = Shrunk(bw.records.RunFolder(tmp_path / "run"))
    assert stopped.folder.manifest().status == "interrupted"
    assert resume(stopped).stages[-1].share <= 0.8


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_a_run_is_folded_in(world: World, tmp_path: Path) -> None:
    plan: dict[str, Any] = {"to": 0.9, "cut": "ffn", "tune": "0steps", "recover": "0steps"}
    shrunk = small(world.run, world.chat, tmp_path / "run", **plan)
    start = load_file(shrunk.path / "stages" / "start" / "model.safetensors")
    base = load_file(world.model / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(start[name], base[name]) and start.keys() == base.keys()
    with pytest.raises(NotAvailable, match=r"is a shrinking, so it has no adapter but a whole model.*model"):
        small(shrunk.path, world.chat, tmp_path / "again", **plan)
    again = small(shrunk.model, world.chat, tmp_path / "again", **{**plan, "to": 0.95})
    assert again.stages[0].parameters == shrunk.stages[-1].parameters


def test_an_adapter_that_cannot_be_folded_is_refused(world: World, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(world.model)
    model.name_or_path = str(world.model)
    bw.attach(model, bw.PrefixTuning(length=3), name="x")
    save(model, tmp_path / "prefix", name="x")
    with pytest.raises(BadConfig, match=r"prefix.*cannot be folded into the weights.*shrink .* then train"):
        small(tmp_path / "prefix", world.chat, tmp_path / "run", to=0.9)
    assert not (tmp_path / "run").exists()


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too small": (
        {"to": 0.01, "cut": "ffn"},
        BadConfig,
        r"572 parameters are to stay, and cutting ffn .*no fewer than",
    ),
    "as large": (
        {"to_params": "1M"},
        BadConfig,
        "the model has 57,248 parameters, and 1,000,000 are to stay; say fewer",
    ),
    "prefix": ({"to": 0.9, "method": "prefix-tuning"}, BadConfig, "prefix-tuning cannot be folded into weights, so"),
    "memory": ({"to": 0.9, "model": object()}, BadConfig, "model is a object in memory; save it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_written(case: str, llama: Path, chat: Path, tmp_path: Path) -> None:
    said, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        small(said.pop("model", llama), chat, tmp_path / "run", **said)
    assert not (tmp_path / "run").exists()


def test_too_few_rows(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"7 training rows are too few.*at least 8"):
        small(llama, chat_at(tmp_path, 8), tmp_path / "run", to=0.9)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_head_that_was_never_trained(tmp_path: Path, films: Path) -> None:
    bert = model_at(tmp_path / "bert", "bert", "masked")
    with pytest.raises(BadConfig, match="never trained for classification: .*classifier is new, so what it says is"):
        small(bert, films, tmp_path / "run", to=0.9, tune="0steps", cut="ffn")
    assert not (tmp_path / "run").exists()
    shrunk = small(bert, films, tmp_path / "run", to=0.9, cut="ffn", method="lora:targets=all", recover="2steps")
    head = load_file(shrunk.path / "stages" / "01-tuned" / "model.safetensors")["classifier.bias"]
    assert head.abs().max() > 0  # it was drawn as zeros, and learned beside the adapter


def test_nothing_of_what_may_be_cut_can_be(tmp_path: Path, films: Path) -> None:
    bert = model_at(tmp_path / "bert", "bert", "masked")
    with pytest.raises(BadConfig, match="nothing can be cut in heads; heads cannot be cut: .*cut both by one share"):
        small(bert, films, tmp_path / "run", to=0.9, cut="heads")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_stored_in_sixteen_bits(dtype: torch.dtype, tmp_path: Path, chat: Path) -> None:
    stored = model_at(tmp_path / "half", dtype=dtype)
    shrunk = small(stored, chat, tmp_path / "run", to=0.8, cut="ffn", tune="2steps", recover="2steps")
    assert {tensor.dtype for tensor in tensors(shrunk).values()} == {torch.float32}
    assert json.loads((shrunk.model / "config.json").read_text())["dtype"] == "float32"
