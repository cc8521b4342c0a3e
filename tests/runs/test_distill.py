"""Whole distillations on tiny models: what each setting does, what is kept on disk, and what is refused."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from budwood.distill import cache, kept, writing
from budwood.distill.config import Distillation
from budwood.distill.recipe import FromTeacher
from budwood.distill.run import distill, resume
from budwood.distill.teacher import LiveTeacher
from budwood.errors import BadConfig, BadData
from budwood.evaluate import Generation
from budwood.methods import LoRA, method_from_dict
from budwood.train.interrupt import Interrupted
from budwood.train.job import Job, as_config
from budwood.train.observer import Silent
from budwood.train.run import Run, check_job, train
from tokens import TEMPLATE, WORDS, model_folder, tokenizer
from training import StopAt

QUICK = {
    "device": "cpu", "precision": "exact", "batch": 4, "samples": 0, "learning_rate": 1e-2, "eval_every": 0,
    "proof_steps": 0, "test_rows": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


def made(folder: Path, *, words: Any = None, vocabulary: int = len(WORDS), seed: int = 5, **sizes: Any) -> Path:
    """Another tiny model, with a tokenizer."""
    torch.manual_seed(seed)
    plain = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    special = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**{**plain, **special, "max_position_embeddings": 64, **sizes}))
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)  # so that it is sure of something
    model.save_pretrained(folder)
    (tokenizer() if words is None else words).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("teacher"))


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


def go(teacher: Any, student: Any, data: Any, out: str = "run", *, budget: str = "6steps", **settings: Any) -> Run:
    own = {key: value for key, value in settings.items() if key in Distillation.names()}
    others = {k: v for k, v in settings.items() if k in ("method", "observer", "tokenizer", "teacher_tokenizer")}
    config = {**QUICK, **{k: v for k, v in settings.items() if k not in own and k not in others}}
    return distill(teacher, student, data, distillation=own, budget=budget, config=config, out=out, **others)


def points(run: Run, name: str) -> list[float]:
    return [point["parts"][name] for point in run.metrics() if name in point.get("parts", {})]


def losses(run: Run) -> list[float]:
    return [point["loss"] for point in run.metrics() if "loss" in point]


def trained(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.adapter / "adapter_model.safetensors")


def dry(teacher: Any, student: Any, data: Any, *, method: str = "full", task: Any = None, **own: Any) -> Any:
    recipe = FromTeacher(teacher, Distillation(**own))
    return check_job(
        Job(
            model=str(student), data=str(data), method=method_from_dict(method),
            config=as_config(QUICK, budget="4steps"), recipe=recipe, task=task,
        )
    )  # fmt: skip


def refused(message: str, *args: Any, error: type[Exception] = BadConfig, **own: Any) -> None:
    with pytest.raises(error, match=message):
        dry(*args, **own)


# ---- a live teacher


def test_a_student_comes_nearer_to_its_teacher(teacher: Path, llama: Path, faq: Path) -> None:
    run = go(teacher, llama, faq, budget="30steps", kd_weight=1.0, ce_weight=0.0)
    kd = points(run, "kd")
    assert kd[-1] < 0.7 * kd[0] and len(kd) == 30
    said = json.loads((run.path / "teacher.json").read_text())
    assert said["teacher"] == str(teacher) and {score["name"] for score in said["scores"]} >= {"loss", "perplexity"}
    student = AutoModelForCausalLM.from_pretrained(run.path / "model")
    assert student.config.num_hidden_layers == 2


def test_a_teacher_of_the_same_weights_has_nothing_to_say(llama: Path, faq: Path) -> None:
    run = go(llama, llama, faq, kd_weight=1.0, ce_weight=0.0)
    assert points(run, "kd")[0] == pytest.approx(0.0, abs=1e-6)


def test_self_distillation_holds_one_copy(llama: Path, faq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter is taught by its own base, which stays as it is."""
    seen: list[Any] = []
    original = LiveTeacher.say

    def say(self: LiveTeacher, batch: Any) -> Any:
        seen.append(self.model)
        return original(self, batch)

    monkeypatch.setattr(LiveTeacher, "say", say)
    model = AutoModelForCausalLM.from_pretrained(llama)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = go(None, model, faq, tokenizer=AutoTokenizer.from_pretrained(llama), method="lora:rank=2")
    assert seen and all(one is model for one in seen)
    assert points(run, "kd")[0] == pytest.approx(0.0, abs=1e-6) and points(run, "kd")[-1] > 0
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert run.folder.config()["teacher"] == "self"


def test_a_teacher_may_be_an_adapter_on_the_student_s_own_base(llama: Path, faq: Path) -> None:
    first = train(llama, faq, method="lora:rank=2", budget="10steps", config=QUICK, out="first")
    run = go(first.path, llama, faq, method="ia3", kd_weight=1.0, ce_weight=0.0, budget="10steps")
    assert points(run, "kd")[0] > 1e-3
    assert "on the same weights" in (run.path / "log.txt").read_text()
    assert not (run.path / "model").exists()


# ---- asked once


def test_cached_and_live_teachers_teach_the_same(
    teacher: Path, llama: Path, faq: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = go(teacher, llama, faq, "live")
    models: list[weakref.ref[Any]] = []
    gone: list[bool] = []
    make = kept.Cache.make

    def making(self: Any, one: LiveTeacher, say: Any) -> Any:
        models.append(weakref.ref(one.model))
        return make(self, one, say)

    class Watching(Silent):
        def step(self, point: Any) -> None:
            gc.collect()
            gone.append(models[0]() is None)

    monkeypatch.setattr(kept.Cache, "make", making)
    cached = go(teacher, llama, faq, "cached", top_k=len(WORDS), observer=Watching())
    assert losses(cached) == pytest.approx(losses(live), rel=1e-2)
    assert gone and all(gone)
    assert len(list((here / "runs" / "teachers").iterdir())) == 1
    monkeypatch.setattr(cache, "_asked", None)  # another run finds everything
    assert losses(go(teacher, llama, faq, "again", top_k=len(WORDS))) == losses(cached)


def test_rates_are_tried_against_the_cache(
    teacher: Path, llama: Path, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are scored on held-out rows, which have to be in it."""
    monkeypatch.setattr(LoRA, "rates", (1e-4, 1e-2))
    settings: dict[str, Any] = {"learning_rate": None, "rate_steps": 4, "method": "lora:rank=2"}
    probe = go(teacher, llama, faq, top_k=3, budget="16steps", **settings).manifest.rate_probe
    assert probe is not None and "validation rows" in probe.scored and len(probe.trials) == 2


def test_a_cache_in_bfloat16(teacher: Path, llama: Path, faq: Path) -> None:
    run = go(teacher, llama, faq, top_k=3, budget="2steps", precision="bf16")
    assert points(run, "kd")[0] > 0


def test_a_few_choices_are_kept_with_a_bucket_for_the_rest(teacher: Path, llama: Path, faq: Path, here: Path) -> None:
    full = points(go(teacher, llama, faq, "live"), "kd")[0]
    found = [points(go(teacher, llama, faq, f"top{k}", top_k=k), "kd")[0] for k in (1, 8)]
    assert 0 < found[0] < found[1] < full
    assert len(list((here / "runs" / "teachers").iterdir())) == 2


def test_a_dry_run_tells_the_cost_and_caches_nothing(teacher: Path, llama: Path, faq: Path, here: Path) -> None:
    lines = dry(teacher, llama, faq, top_k=4, answers="teacher", max_new_tokens=8).lines()
    assert any("26 bytes a token" in line and "before the first step" in line for line in lines)
    assert any("answers are to be written by the teacher, at most 8 tokens each" in line for line in lines)
    assert not (here / "runs").exists()


def test_a_cache_that_was_interrupted_is_gone_on_with(
    teacher: Path, llama: Path, faq: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"top_k": 4, "method": "lora:rank=2,dropout=0.1"}
    whole = go(teacher, llama, faq, "whole", **settings)
    make = kept.cache_teacher

    def stopped(*args: Any, say: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    (runs,) = (here / "runs" / "teachers").iterdir()
    for shard in runs.iterdir():
        shard.unlink()
    monkeypatch.setattr(kept, "cache_teacher", stopped)
    with pytest.raises(Interrupted, match="step 0"):
        go(teacher, llama, faq, "stopped", **settings)
    monkeypatch.setattr(kept, "cache_teacher", make)
    again = resume("stopped")
    assert losses(again) == losses(whole)


# ---- a resumed run is the uninterrupted one


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"on_policy": 0.5, "max_new_tokens": 6},
        {"hidden_weight": 1.0, "relation_weight": 1.0},
        {"top_k": 5, "method": "full"},
        {"answers": "teacher", "kd_weight": 0.0, "max_new_tokens": 6},
    ],
    ids=["plain", "on-policy", "projections", "cached", "answers"],
)
def test_resumed_is_uninterrupted(
    teacher: Path, llama: Path, faq: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)
    settings = {"method": "lora:rank=2,dropout=0.1", **settings}
    whole = go(teacher, llama, faq, "whole", **settings)
    with pytest.raises(Interrupted, match="distill --resume"):
        go(teacher, llama, faq, "parts", observer=StopAt(3), **settings)
    parts = resume("parts")
    assert losses(parts) == losses(whole)
    ours, theirs = trained(whole), trained(parts)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- answers by the teacher, and by the student


def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny teachers come to no end: this one answers each prompt with its own word."""

    def complete(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> list[Generation]:
        words = [prompt[-1].content.split()[2] for prompt in prompts]
        return [Generation(text=f"film {word} good", ids=(), stopped=True) for word in words]

    monkeypatch.setattr(writing, "complete", complete)


def test_the_teacher_s_words_are_learned(
    teacher: Path, llama: Path, faq: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(monkeypatch)
    run = go(teacher, llama, faq, answers="teacher", kd_weight=0.0, ce_weight=1.0, budget="20steps", samples=1)
    assert not points(run, "kd") or set(points(run, "kd")) == {0.0}
    assert points(run, "ce")[-1] < 0.6 * points(run, "ce")[0]
    data = run.folder.data()
    assert "train: 36 answers written by the teacher" in data["notes"]
    (written,) = (here / "runs" / "teachers").glob("*/answers.jsonl")
    assert '"film w' in written.read_text()
    model = AutoModelForCausalLM.from_pretrained(run.path / "model")
    words = AutoTokenizer.from_pretrained(llama)
    ids = words("user : what is w3 ? assistant :", return_tensors="pt")["input_ids"]
    assert words.decode(model(ids).logits[0, -1].argmax()) == "film"


def test_the_student_s_own_answers_are_judged(
    teacher: Path, llama: Path, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = go(teacher, llama, faq, on_policy=1.0, max_new_tokens=5, budget="4steps")
    plain = go(teacher, llama, faq, "plain", budget="4steps")
    assert points(run, "kd")[0] != points(plain, "kd")[0]
    assert losses(run) == pytest.approx([0.5 * kd for kd in points(run, "kd")])  # what it says itself is no target


# ---- insides


@pytest.mark.parametrize(
    ("name", "weight", "layer_map"), [("hidden", 1.0, "uniform"), ("hidden", 1.0, "last"), ("relation", 10.0, "last"),
                                      ("attention", 1e4, "uniform")],
)  # fmt: skip
def test_insides_come_nearer(teacher: Path, llama: Path, faq: Path, name: str, weight: float, layer_map: str) -> None:
    own: dict[str, Any] = {f"{name}_weight": weight, "layer_map": layer_map, "kd_weight": 0.0, "ce_weight": 0.1}
    run = go(teacher, llama, faq, budget="20steps", hidden="cosine" if layer_map == "last" else "mse", **own)
    assert 0 < points(run, name)[-1] < points(run, name)[0]
    state = load_file(next((run.path / "state").glob("tensors-*")))
    saved = {part for part in state if part.startswith("parameter/projection")}
    places = {"embeddings", "layers"} if layer_map == "uniform" else {"layers"}
    assert {part.rpartition("/")[2] for part in saved} == (places if name == "hidden" else set())
    assert all(state[part].shape == (24, 32) and state[part].dtype == torch.float32 for part in saved)


def test_the_insides_of_the_same_model_under_another_plan(llama: Path, faq: Path) -> None:
    own: dict[str, Any] = {"hidden_weight": 1.0, "relation_weight": 1.0, "attention_weight": 1.0}
    run = go("self", llama, faq, method="lora:rank=2,targets=all", **own)
    for name in ("hidden", "relation", "attention"):
        assert points(run, name)[0] == pytest.approx(0.0, abs=1e-6) and points(run, name)[-1] > 0, name


def test_prompts_in_front_have_states_and_no_attention(teacher: Path, llama: Path, faq: Path) -> None:
    run = go(teacher, llama, faq, method="prompt-tuning:length=3", hidden_weight=1.0, budget="2steps")
    assert points(run, "hidden")[0] > 0
    refused("prefixes stand in front", teacher, llama, faq, method="prefix-tuning:length=3", attention_weight=1.0)


# ---- two vocabularies


def other_words() -> PreTrainedTokenizerFast:
    """The same words under other ids, two of them at a time told apart by nothing else."""
    listed = [*WORDS[:4], *reversed(WORDS[4:]), "more"]
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(listed)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=64, chat_template=TEMPLATE,
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": []})
    return made


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("foreign"), words=other_words(), vocabulary=len(WORDS) + 1)


def test_two_vocabularies_are_compared_where_they_meet(foreign: Path, llama: Path, faq: Path) -> None:
    run = go(foreign, llama, faq, kd_weight=1.0, ce_weight=0.0, budget="30steps")
    assert points(run, "kd")[-1] < 0.8 * points(run, "kd")[0]
    log = (run.path / "log.txt").read_text()
    assert "two vocabularies" in log and "positions in 40 rows have a counterpart" in log
    scores = json.loads((run.path / "teacher.json").read_text())["scores"]
    assert {score["name"] for score in scores} >= {"loss"}


def test_a_padded_vocabulary_is_cut_not_compared(llama: Path, faq: Path, here: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama)
    model.resize_token_embeddings(len(WORDS) + 9, mean_resizing=False)
    with torch.no_grad():
        model.lm_head.weight[len(WORDS) :] = 3.0
    model.save_pretrained(here / "padded")
    tokenizer().save_pretrained(here / "padded")
    run = go(here / "padded", llama, faq, kd_weight=1.0, ce_weight=0.0, budget="2steps")
    assert points(run, "kd")[0] == pytest.approx(0.0, abs=1e-6)
    cached = go(here / "padded", llama, faq, "cached", top_k=9, kd_weight=1.0, ce_weight=0.0, budget="2steps")
    assert points(cached, "kd")[0] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"loss": "reverse-kl"}, "reverse-kl compares token by token: leave loss out"),
        ({"top_k": 4}, "top_k needs the same tokens: leave top_k out"),
        ({"hidden_weight": 1.0}, "hidden_weight needs the same tokens: leave it at 0"),
        ({"on_policy": 0.5}, "on_policy needs the same tokens: leave on_policy out"),
    ],
)
def test_what_needs_a_common_vocabulary(
    foreign: Path, llama: Path, faq: Path, own: dict[str, Any], message: str
) -> None:
    refused(message, foreign, llama, faq, **own)


def test_rows_that_nobody_can_align(foreign: Path, llama: Path, here: Path) -> None:
    """Everything is unknown to the one and known to the other."""
    rows = [{"question": f"what is w{n} ?", "answer": "more more"} for n in range(30)]
    (here / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refused("none of 30 rows reads the same", foreign, llama, here / "odd.jsonl", error=BadData)


# ---- classes


def classifier(folder: Path, labels: tuple[str, ...], words: Any = None, seed: int = 7) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=len(WORDS) + 1,
        pad_token_id=0, eos_token_id=2, id2label=dict(enumerate(labels)), label2id={x: n for n, x in enumerate(labels)},
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    model.score.weight.data.mul_(20)
    model.save_pretrained(folder)
    (tokenizer() if words is None else words).save_pretrained(folder)
    return folder


def test_classes_in_another_order(here: Path, films: Path) -> None:
    """The same head, its two rows exchanged: as students see it, the same teacher."""
    first = classifier(here / "a", ("bad", "good"))
    second = classifier(here / "b", ("good", "bad"))
    model = AutoModelForSequenceClassification.from_pretrained(second)
    model.score.weight.data = model.score.weight.data.flip(0)
    model.save_pretrained(second)
    student = classifier(here / "s", ("bad", "good"), seed=9)
    one, other = (go(place, student, films, place.name + "run", temperature=3.0) for place in (first, second))
    assert losses(one) == losses(other)
    assert "another order" in (other.path / "log.txt").read_text()
    scores = [json.loads((run.path / "teacher.json").read_text())["scores"] for run in (one, other)]
    assert scores[0] == scores[1]


def test_classes_of_two_vocabularies(here: Path, films: Path) -> None:
    first = classifier(here / "a", ("bad", "good"))
    second = classifier(here / "b", ("bad", "good"), words=other_words())
    model = AutoModelForSequenceClassification.from_pretrained(second)
    order = [tokenizer().convert_tokens_to_ids(word) for word in other_words().convert_ids_to_tokens(range(79))]
    model.load_state_dict(AutoModelForSequenceClassification.from_pretrained(first).state_dict())
    table = model.model.embed_tokens.weight
    table.data[: len(order)] = table.data[order]
    model.save_pretrained(second)
    student = classifier(here / "s", ("bad", "good"), seed=9)
    one, other = (go(place, student, films, place.name + "run", loss="reverse-kl") for place in (first, second))
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)


def test_other_classes(here: Path, films: Path, llama: Path) -> None:
    student = classifier(here / "s", ("bad", "good"), seed=9)
    refused("knows the classes up, down", classifier(here / "a", ("up", "down")), student, films)
    refused("was never trained for classification", llama, student, films)
    cached = go(classifier(here / "b", ("bad", "good")), student, films, top_k=2)
    assert points(cached, "kd")[0] > 0


# ---- what is refused


def test_settings_that_contradict_each_other() -> None:
    for own, message in (
        ({"kd_weight": 0.0}, "nothing is learned from the teacher"),
        ({"kd_weight": 0.0, "ce_weight": 0.0, "answers": "teacher"}, "nothing is learned"),
        ({"kd_weight": 0.0, "answers": "teacher", "on_policy": 0.5}, "judged by kd"),
        ({"kd_weight": 0.0, "answers": "teacher", "top_k": 4}, "top_k keeps what kd compares"),
        ({"loss": "squared-error", "top_k": 4}, "not outputs to square"),
        ({"max_new_tokens": 0}, "at least 1"),
    ):
        with pytest.raises(BadConfig, match=message):
            Distillation(**own)  # type: ignore[arg-type]
    assert Distillation(kd_weight=0.0, answers="teacher").ce_weight == 0.5


def test_tasks_without_answers(here: Path, films: Path, teacher: Path, llama: Path) -> None:
    one, student = classifier(here / "a", ("bad", "good")), classifier(here / "s", ("bad", "good"), seed=9)
    for own in ({"answers": "teacher"}, {"on_policy": 0.5}):
        refused("needs rows with prompts and answers", one, student, films, **own)
    (here / "text.txt").write_text("".join(f"w{n} w{n + 1} is good .\n" for n in range(30)))
    refused("needs rows with prompts and answers", teacher, llama, here / "text.txt", on_policy=0.5)


def test_a_cached_teacher_is_not_softened(teacher: Path, llama: Path, faq: Path) -> None:
    refused("temperature is 2.0, and of the teacher only 4", teacher, llama, faq, top_k=4, temperature=2.0)
    assert dry(teacher, llama, faq, top_k=4, temperature=2.0, tail="renormalise").lesson


def test_a_masked_language_model_cannot_be_cached(tmp_path_factory: pytest.TempPathFactory, here: Path) -> None:
    bert = model_folder(tmp_path_factory.mktemp("bert"), "bert")
    words = AutoTokenizer.from_pretrained(bert)
    words.mask_token = "<unk>"
    words.save_pretrained(bert)
    (here / "text.txt").write_text("".join(f"w{n} w{n + 1} is good .\n" for n in range(30)))
    refused("hides other words in each epoch", bert, bert, here / "text.txt", task="masked-lm", top_k=4)


def test_teachers_for_something_else(teacher: Path, llama: Path, films: Path, faq: Path, here: Path) -> None:
    student = classifier(here / "s", ("bad", "good"))
    run = train(student, films, method="lora:rank=2", budget="2steps", config=QUICK, out="classes")
    refused("was trained for classification, and the student is to learn causal-lm", run.path, llama, faq)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    with pytest.raises(BadConfig, match="says no tokens"):
        go(model, llama, faq)
    with pytest.raises(BadConfig, match="does not classify texts"):
        go(AutoModelForCausalLM.from_pretrained(teacher), student, films)
    with pytest.raises(BadConfig, match="teacher is a int"):
        go(3, llama, faq)


def test_a_teacher_in_memory_has_to_be_given_again(teacher: Path, llama: Path, faq: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.bfloat16)
    with pytest.raises(Interrupted):
        go(model, llama, faq, observer=StopAt(2))
    with pytest.raises(BadConfig, match="the teacher was a LlamaForCausalLM in memory; give it again"):
        resume("run")
    assert resume("run", teacher=model).manifest.status == "finished"
