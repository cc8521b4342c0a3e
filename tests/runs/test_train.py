"""Whole jobs on tiny models in folders: what is on disk afterwards, and what happens when things go wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import budwood.train
from budwood.core import adapters, named_parameters
from budwood.data import Batch
from budwood.errors import BadCheckpoint, BadConfig, BadData, Diverged, NotAvailable, VerificationFailed, WrongOrder
from budwood.evaluate import classify
from budwood.methods import Full, LoRA
from budwood.records import RunFolder
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.observer import Silent, StepPoint
from budwood.train.run import Run, check_job, resume, run_job, train
from tokens import WORDS, model_folder, tokenizer
from training import StopAt

QUICK = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 1, "learning_rate": 1e-2, "eval_every": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    rows = [{"question": f"what is w{n} ?", "answer": f"it is w{n * 7 % 60} ."} for n in range(40)]
    (tmp_path / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "faq.jsonl"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    words = ["good", "bad"]
    lines = [f"the film w{n % 40} is {words[n % 2]} w{n % 13} .\t{words[n % 2]}" for n in range(60)]
    (tmp_path / "films.tsv").write_text("text\tlabel\n" + "\n".join(lines) + "\n")
    return tmp_path / "films.tsv"


def go(model: object, data: object, out: Path, **settings: object) -> Run:
    config = {**QUICK, **{k: v for k, v in settings.items() if k not in ("method", "observer", "tokenizer", "budget")}}
    others = {k: v for k, v in settings.items() if k in ("method", "observer", "tokenizer")}
    return train(model, data, budget=settings.get("budget", "8steps"), config=config, out=out, **others)


def test_the_whole_job(llama: Path, faq: Path, tmp_path: Path) -> None:
    run = go(llama, faq, tmp_path / "run", budget="40steps", batch=8, eval_every=10, samples=2)
    assert run.manifest.status == "finished"
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        *("run.json", "config.yaml", "environment.json", "data.json", "metrics.jsonl", "samples.jsonl"),
        *("predictions.jsonl", "result.json", "adapter", "state", "log.txt"),
    }
    assert {path.name for path in run.adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "README.md"),
    }
    result = run.result
    assert result is not None
    assert result.parameters is not None
    tensors = load_file(run.adapter / "adapter_model.safetensors").values()
    assert result.parameters.trained_count == sum(tensor.numel() for tensor in tensors)
    stored = [file.stat().st_size for file in run.adapter.iterdir() if file.name != "README.md"]
    assert result.parameters.stored_bytes == sum(stored)
    assert result.memory is not None
    assert result.memory.peak_bytes > 0
    assert result.memory.predicted_bytes
    assert result.memory.how
    assert result.speed is not None
    assert result.speed.steps == 40
    assert result.speed.tokens_per_s > 0
    scores = {entry.metric: entry for entry in result.quality}
    perplexity = scores["perplexity"]
    assert perplexity.base is not None
    assert perplexity.score.value < 0.8 * perplexity.base.value
    assert perplexity.score.low <= perplexity.score.value <= perplexity.score.high
    assert result.inference is not None
    assert result.inference.mergeable
    assert result.inference.merged_timings
    points = run.metrics()
    assert [p["step"] for p in points if "loss" in p] == list(range(1, 41))
    assert [p["step"] for p in points if "validation" in p] == [10, 20, 30, 40]
    proof = next(p["proof"] for p in points if "proof" in p)
    assert proof["movement"]["unmoved"] == {}
    assert proof["reload"]["largest_difference"] == 0.0
    samples = run.samples()
    assert {"step", "prompt", "base", "now", "reference"} == samples[-1].keys()
    assert [sample["step"] for sample in samples] == [10, 20, 30, 40, 40]
    card = (run.adapter / "README.md").read_text()
    assert card.startswith("---\nbase_model:")
    assert "What was proved" in card
    model, words = run.load()
    assert set(adapters(model)) == {"default"}
    assert len(words) == len(WORDS)


def test_the_config_on_disk_runs_the_same_job_again(llama: Path, faq: Path, tmp_path: Path) -> None:
    first = go(llama, faq, tmp_path / "a", method="lora:rank=4")
    said = yaml.safe_load((first.path / "config.yaml").read_text())
    assert said["method"]["lora"]["rank"] == 4
    second = run_job(replace(Job.from_dict(said), out=tmp_path / "b"))
    assert losses(first) == losses(second)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def losses(run: Run) -> list[float]:
    return [point["loss"] for point in run.metrics() if "loss" in point]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "norms", "last-layers:last=1", "ia3", "dora", "head"])
def test_every_method_runs_to_its_end(llama: Path, faq: Path, tmp_path: Path, method: str) -> None:
    run = go(llama, faq, tmp_path / "run", method=method)
    assert run.manifest.status == "finished"
    assert run.result is not None
    assert run.result.inference is not None
    in_place = method in ("full", "norms", "last-layers:last=1")
    assert (run.result.inference.extra_weight_bytes == 0) == in_place


@pytest.mark.parametrize(
    "method",
    ["lora:targets=all", pytest.param("full", marks=pytest.mark.slow), pytest.param("bitfit", marks=pytest.mark.slow)],
)
def test_a_classifier_with_a_new_pooler_and_head(bert: Path, films: Path, tmp_path: Path, method: str) -> None:
    """The checkpoint is a masked LM: pooler and head are drawn at random, so both must be in the adapter."""
    run = go(bert, films, tmp_path / "run", method=method, budget="40steps", batch=8, learning_rate=3e-3)
    names = {key.split("model.", 2)[-1] for key in load_file(run.adapter / "adapter_model.safetensors")}
    assert any("pooler" in name for name in names)
    assert any("classifier" in name for name in names)
    assert run.result is not None
    scores = {entry.metric: entry.score.value for entry in run.result.quality}
    assert scores["loss"] < 0.9
    lines = (run.path / "predictions.jsonl").read_text().splitlines()
    assert {"row", "prediction", "references", "values"} <= json.loads(lines[0]).keys()
    model, _ = run.load()
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_in_bf16(llama: Path, faq: Path, tmp_path: Path) -> None:
    run = go(llama, faq, tmp_path / "run", precision="bf16", budget="20steps")
    proof = next(p["proof"] for p in run.metrics() if "proof" in p)
    assert proof["reload"]["largest_difference"] == 0.0
    assert losses(run)[-1] < losses(run)[0]
    stored = load_file(run.adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}


@pytest.mark.parametrize("method", [LoRA(), Full()], ids=["lora", "full"])
def test_a_model_in_memory_stays_the_users_own(llama: Path, faq: Path, tmp_path: Path, method: LoRA | Full) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    run = go(model, faq, tmp_path / "run", method=method, tokenizer=tokenizer())
    assert run.manifest.status == "finished"
    assert list(adapters(model)) == ["default"]
    named = go(llama, faq, tmp_path / "named", method=method)
    assert losses(run) == losses(named)
    for name, tensor in named_parameters(model, "default").items():
        assert torch.isfinite(tensor).all(), name


def test_plain_text_and_data_that_holds_nothing_out(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "book.jsonl").write_text(
        "".join(json.dumps({"text": f"w{n} w{n + 1} is the name of w3"}) + "\n" for n in range(30))
    )
    run = go(llama, tmp_path / "book.jsonl", tmp_path / "run", samples=2)
    assert [sample["reference"] for sample in run.samples() if "reference" in sample]
    (tmp_path / "same.jsonl").write_text(
        "".join(json.dumps({"prompt": "w1 ?", "completion": f"w{n}"}) + "\n" for n in range(9))
    )
    alone = go(llama, tmp_path / "same.jsonl", tmp_path / "alone")
    assert alone.result is not None
    assert alone.result.quality == ()
    assert alone.samples() == []
    assert any("no validation" in line for line in json.loads((alone.path / "data.json").read_text())["notes"])


def test_a_classifier_in_memory(bert: Path, films: Path, tmp_path: Path) -> None:
    """Its new pooler and head are its own: the adapter need not bring the pooler, as this base has one."""
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2, id2label={0: "bad", 1: "good"})
    run = go(model, films, tmp_path / "run", tokenizer=tokenizer())
    assert run.manifest.status == "finished"
    with pytest.raises(NotAvailable):
        run.load()


def test_a_second_training_of_the_same_model_has_its_own_name(llama: Path, faq: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for name in ("one", "two"):
        train(model, faq, tokenizer=tokenizer(), config=QUICK, budget="4steps", name=name, out=tmp_path / name)
    assert list(adapters(model)) == ["one", "two"]


def test_sentence_pairs_are_judged_with_their_token_types(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"w{n} is w{n + 1}\tw{n + 2} ?\t{('good', 'bad')[n % 2]}" for n in range(40)]
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tlabel\n" + "\n".join(lines) + "\n")
    words = tokenizer()
    words.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
    words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    seen: list[list[int] | None] = []

    def noting(model: object, batches: list[Batch]) -> object:
        batches = list(batches)
        if len(batches) == 1 and len(batches[0].input_ids) == 1:
            types = batches[0].token_type_ids
            seen.append(None if types is None else types[0].tolist())
        return classify(model, batches)

    monkeypatch.setattr("budwood.train.judging.classify", noting)
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2, id2label={0: "bad", 1: "good"})
    go(model, tmp_path / "pairs.tsv", tmp_path / "run", tokenizer=words, budget="2steps")
    assert seen == [[0, 0, 0, 1, 1]] * 2


def test_interrupted_and_resumed_is_the_uninterrupted_run(llama: Path, faq: Path, tmp_path: Path) -> None:
    settings = {"method": LoRA(dropout=0.2), "budget": "2epochs"}
    whole = go(llama, faq, tmp_path / "whole", **settings)
    with pytest.raises(Interrupted) as stopped:
        go(llama, faq, tmp_path / "run", observer=StopAt(7, signal.SIGTERM), **settings)
    assert stopped.value.exit_code == 143
    assert stopped.value.resume_command == f"budwood train --resume {tmp_path / 'run'}"
    folder = RunFolder.open(tmp_path / "run")
    assert folder.manifest().status == "interrupted"
    assert not (folder.path / "result.json").exists()
    torch.manual_seed(99)
    rest = resume(tmp_path / "run")
    assert rest.manifest.status == "finished"
    assert losses(rest) == losses(whole)
    ours, theirs = (load_file(run.adapter / "adapter_model.safetensors") for run in (whole, rest))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert rest.result is not None
    assert whole.result is not None
    assert rest.result.quality == whole.result.quality
    assert rest.result.speed is not None
    assert rest.result.speed.steps == len(losses(whole))


def test_resuming_with_other_data_is_refused(llama: Path, faq: Path, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        go(llama, faq, tmp_path / "run", observer=StopAt(2))
    before = (tmp_path / "run" / "run.json").read_text()
    was = faq.read_text()
    faq.write_text(was.replace("w7 .", "w8 ."))
    with pytest.raises(BadConfig, match="data was .* now"):
        resume(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == before
    faq.write_text(was)
    (tmp_path / "run" / "state" / "state.json").write_text("{}")
    with pytest.raises(BadCheckpoint, match="version None"):
        resume(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == before


def test_a_run_of_relative_paths_is_used_from_another_folder(
    llama: Path, faq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").symlink_to(llama)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted) as stopped:
        go("model", "./faq.jsonl", Path("run"), observer=StopAt(2))
    assert stopped.value.resume_command == f"budwood train --resume {tmp_path / 'run'}"
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = resume(tmp_path / "run")
    for said in (run.folder.config(), vars(run.manifest)):
        assert (said["model"], said["data"]) == (str(tmp_path / "model"), str(faq))
    assert set(adapters(run.load()[0])) == {"default"}


class ResumeAt(Silent):
    """Resumes the run while it is still going, after its first save."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.refusals = folder, 0

    def step(self, point: StepPoint) -> None:
        if (self.folder / "state" / "state.json").exists():
            before = (self.folder / "run.json").read_text()
            with pytest.raises(WrongOrder, match=f"still being trained by process {os.getpid()} .* then resume"):
                resume(self.folder)
            assert (self.folder / "run.json").read_text() == before
            self.refusals += 1


def test_resuming_a_run_that_is_still_going_is_refused(llama: Path, faq: Path, tmp_path: Path) -> None:
    second = ResumeAt(tmp_path / "run")
    run = go(llama, faq, tmp_path / "run", observer=second, save_every=1e-9)
    assert second.refusals > 0
    assert run.manifest.status == "finished"


def test_resuming_what_was_never_saved_is_refused(llama: Path, faq: Path, tmp_path: Path) -> None:
    run = go(llama, faq, tmp_path / "run")
    with pytest.raises(WrongOrder, match="is finished, there is nothing to go on with"):
        resume(run)
    (run.path / "state" / "state.json").unlink()
    with pytest.raises(BadCheckpoint, match="no saved state to go on from"):
        resume(run)


def test_a_dry_run_writes_nothing(llama: Path, faq: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    facts = check_job(Job(model=llama, data=faq, config=as_config(QUICK, budget="2epochs"), out=tmp_path / "run"))
    assert facts.steps == 18
    assert facts.data.rows == 36
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_fails_says_so_in_its_folder(
    llama: Path, faq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise VerificationFailed("logits differ by up to 3")

    monkeypatch.setattr("budwood.train.finish.verify_reload", broken)
    with pytest.raises(VerificationFailed):
        go(llama, faq, tmp_path / "run")
    manifest = RunFolder.open(tmp_path / "run").manifest()
    assert manifest.status == "failed"
    assert manifest.error == "logits differ by up to 3"
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / "run" / "state" / "state.json").exists()


@pytest.mark.parametrize("step", [None, 5])
def test_a_run_that_diverges_says_what_is_left_of_it(
    llama: Path, faq: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None
) -> None:
    def diverging(*words: object, **settings: object) -> None:
        if step is not None:
            (tmp_path / "run" / "state").mkdir()
            (tmp_path / "run" / "state" / "state.json").write_text(json.dumps({"step": step}))
        raise Diverged("the loss of step 6 is nan")

    monkeypatch.setattr("budwood.train.run.fit", diverging)
    left = f"saved after step {step} is kept in {tmp_path}" if step else "No state had been saved yet: start .* again"
    with pytest.raises(Diverged, match=f"step 6 is nan.*{left}"):
        go(llama, faq, tmp_path / "run")


BAD: list[tuple[Callable[[Path, Path, Path], object], type[Exception], str]] = [
    (lambda m, d, o: go(m, d / "nothing.jsonl", o), NotAvailable, "nothing.jsonl"),
    (lambda m, d, o: go("demo-ml", d, o), NotAvailable, "demo-lm"),
    (lambda m, d, o: go(m, d, o, method="lorra"), BadConfig, "did you mean 'lora'"),
    (lambda m, d, o: go(m, d, o, method="lora:rnk=3"), BadConfig, "rank"),
    (lambda m, d, o: go(m, d, o, method="lora:targets=attn.x"), BadConfig, "attn.q"),
    (lambda m, d, o: go(m, d, o, bach=3), BadConfig, "did you mean 'batch'"),
    (lambda m, d, o: go(m, d, o, max_length=5), BadData, "max_length"),
    (lambda m, d, o: go(m, d, o, budget="soon"), BadConfig, "500steps"),
    (lambda m, d, o: go(3, d, o), BadConfig, "give a name"),
]


@pytest.mark.parametrize(("mistake", "error", "way_out"), BAD)
def test_mistakes_are_named_before_anything_is_written(
    llama: Path, faq: Path, tmp_path: Path, mistake: Callable[..., object], error: type[Exception], way_out: str
) -> None:
    with pytest.raises(error, match=way_out):
        mistake(llama, faq if "nothing" not in way_out else tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_needs_its_tokenizer(llama: Path, faq: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    with pytest.raises(BadConfig, match="tokenizer=tokenizer"):
        go(model, faq, tmp_path / "run")


def test_an_unwritable_place(llama: Path, faq: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadConfig, match="cannot write"):
        go(llama, faq, tmp_path / "file" / "run")


@pytest.mark.parametrize("runs", [run_job, check_job], ids=["run", "dry-run"])
def test_an_out_that_cannot_be_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Callable[[Job], object]
) -> None:
    def loading(job: Job, *, say: object = None) -> None:
        raise NotAvailable("loading")

    monkeypatch.setattr("budwood.train.run.start", loading)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text("{}")
    job = Job(model="m", data="d", out=tmp_path / "old")
    with pytest.raises(BadConfig, match="holds a run already; .*--force"):
        runs(job)
    with pytest.raises(BadConfig, match="run.json is a file; choose another --out"):
        runs(replace(job, out=tmp_path / "old" / "run.json" / "deeper"))
    for fine in (replace(job, force=True), replace(job, out=tmp_path / "a" / "b")):
        with pytest.raises(NotAvailable, match="loading"):
            runs(fine)


def test_the_package_is_the_verb() -> None:
    assert callable(budwood.train)
    with pytest.raises(BadConfig, match="did you mean"):
        budwood.train("x", "y", method="lorra")
