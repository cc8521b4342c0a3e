"""AdapterHub's and LLM-Adapters' own files: read with the peers' logits and gradients, written tensor for tensor."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import budwood.core as core
from adapted import anatomy_of, close, logits, perturb
from budwood.anatomy import discover
from budwood.core import Fuse, Plan, Route, Skip, Stack
from budwood.core.store import read_json
from budwood.errors import BadCheckpoint, BadConfig, BudwoodError, NoSuchAdapter
from budwood.interop import adapterhub, describe, load, save
from budwood.interop.adapterhub_names import PRESETS
from budwood.methods import AdapterH, AdapterP, Compacter, Fusion, LinearAdapter, LoRA, Method, Parallel
from families import FAMILIES
from reference.fixtures import SHARED, Fixture

NOT_HERE = {
    "mam_ah_bert": "needs prefix tuning",
    "compose_ah_bert_average": "the library divides the whole hidden state by the number of adapters",
    "compose_ah_bert_lora_average": "the library divides by the number of adapters once more",
    "compose_ah_bert_lora_stack": "the library multiplies stacked LoRAs; here their updates add",
}
PATHS = [p for p in sorted(SHARED.glob("*.pt")) if "_ah_" in p.name or "llmadapters" in p.name]
needs_fixtures = pytest.mark.skipif(not SHARED.is_dir(), reason="no reference fixtures beside this checkout")


def loaded(fixture: Fixture, root: Path) -> tuple[nn.Module, dict[str, Path]]:
    """The fixture's base with every adapter of its folders, under the peers' names."""
    model = fixture.model()
    folders = {("only" if name == "." else name): path for name, path in fixture.folders(root).items()}
    for name, path in sorted(folders.items(), key=lambda item: (item[1] / "adapter_fusion_config.json").exists()):
        load(model, path, name=name, allow_pickle=True)
    return model, folders


def plan_of(fixture: Fixture, names: list[str]) -> Plan:
    """The fixture's setup as a plan of ours."""
    setup = str(fixture.data.get("setup") or names[0]).strip("'\"")
    kind, _, inside = setup.rstrip("]").partition("[")
    parts = tuple(part.strip() for part in inside.split(","))
    plans: dict[str, Plan] = {
        "Stack": Stack(parts), "Fuse": Fuse(parts, by="fusion"),
        "BatchSplit": Route(parts, torch.tensor([0, 1])), "Parallel": Route(parts, torch.tensor([0, 0, 1, 1])),
    } if inside else {}  # fmt: skip
    plan = plans.get(kind, setup if setup in names else names[0])
    skipped = fixture.data.get("skip_layers")
    return Skip(plan, tuple(skipped)) if skipped else plan


@needs_fixtures
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_reads_the_peers_files_with_their_logits_and_gradients(path: Path, tmp_path: Path) -> None:
    if path.stem in NOT_HERE:
        pytest.skip(NOT_HERE[path.stem])
    fixture = Fixture.load(path)
    model, folders = loaded(fixture, tmp_path)
    plan = plan_of(fixture, list(folders))
    core.activate(model, plan)
    inputs = fixture.inputs()
    if isinstance(plan, Route) and "Parallel" in str(fixture.data["setup"]):  # the peer repeats the batch
        inputs = {name: tensor.repeat(2, 1) for name, tensor in inputs.items()}
    out = model(**inputs, **({"use_cache": False} if "Llama" in fixture.data["model_class"] else {})).logits
    assert close(out, fixture.data["logits"], 1e-5)
    fixture.loss(out).backward()
    expected = expected_gradients(fixture, model, folders)
    assert expected
    for name in folders:
        for key, parameter in core.named_parameters(model, name).items():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert near(found, expected[name][key]), (name, key)


def near(found: Tensor, expected: Tensor) -> bool:
    """Equal within 1e-4 of the tensor's largest value; 1e-6 where that is nothing (a key's bias in a softmax)."""
    return bool((found - expected).abs().max() <= max(1e-4 * expected.abs().max().item(), 1e-6))


def expected_gradients(fixture: Fixture, model: nn.Module, folders: dict[str, Path]) -> dict[str, dict[str, Tensor]]:
    """The peer's gradients by our names: read as if they were the tensors of its files."""
    gradients, anatomy = fixture.data["adapter_grads"], discover(fixture.model())
    found: dict[str, dict[str, Tensor]] = {}
    for name, folder in folders.items():
        fusion = (folder / "adapter_fusion_config.json").is_file()
        config = read_json(folder, "adapter_fusion_config.json" if fusion else "adapter_config.json")
        infix = f".adapter_fusion_layer.{','.join(config['adapter_names'])}." if fusion else f".{name}."
        if "peft_type" in config:
            own = {k: t for k, t in gradients.items() if "adapter_" in k}
            found[name] = {_llm_adapters(key): tensor for key, tensor in own.items()}
            continue
        own = {k: t for k, t in gradients.items() if infix in k and ("fusion_layer" in k) == fusion}
        found[name] = adapterhub.read(config, own, anatomy, model, is_interface=False).tensors
    return found


def _llm_adapters(key: str) -> str:
    path, _, way = key.removeprefix("base_model.model.").partition(".adapter_")
    return f"{path}.A.W_{way[0]}"


@needs_fixtures
@pytest.mark.parametrize("path", [p for p in PATHS if "_ah_" in p.name], ids=lambda path: path.stem)
def test_writes_what_it_read_tensor_for_tensor(path: Path, tmp_path: Path) -> None:
    if path.stem in NOT_HERE and "compose" not in path.stem:
        pytest.skip(NOT_HERE[path.stem])
    fixture = Fixture.load(path)
    model, folders = loaded(fixture, tmp_path / "peer")
    for name, folder in folders.items():
        save(model, tmp_path / "ours" / name, name=name, to="adapterhub")
        theirs = torch.load(next(folder.glob("*.bin")), weights_only=True)
        ours = load_file(next((tmp_path / "ours" / name).glob("*adapter*.safetensors")))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        config = next(folder.glob("adapter_*config.json")).name
        said = read_json(folder, config)["config"]
        written = read_json(tmp_path / "ours" / name, config)["config"]
        init = {"init_weights", "init_weights_seed", "inv_adapter_reduction_factor", "dtype"}
        assert {k: v for k, v in said.items() if k not in init} == {k: v for k, v in written.items() if k not in init}


WRITABLE: dict[str, Method] = {
    "h": AdapterH(size=5, targets=("attn", "mlp"), learn_scale="channel", ln_after=True),
    "h-cross": AdapterH(size=5, targets=("attn", "mlp", "cross")),
    "p": AdapterP(reduction=8, leave_out=(0,)),
    "p-sizes": AdapterP(size=4, sizes={"mlp": 7}, ln_before=True, gate=True, gate_over="all"),
    "p-alone": AdapterP(size=4, adds_residual=False, residual="input"),
    "par": Parallel(size=6, targets=("attn", "mlp"), learn_scale="scalar"),
    "compacter": Compacter(size=4, n=2, targets=("attn", "mlp")),
    "compacter-own": Compacter(size=8, n=4, targets=("mlp",), shares_rule=False, factorized=False, bias=False),
    "lora": LoRA(targets=("attn.q", "attn.v", "cross.q?", "cross.v?"), rank=3, alpha=5),
    "lora-rs": LoRA(targets=("attn.q", "attn.k", "cross.q?", "cross.k?"), rank=4, rslora=True),
}
HOMES = ["bert-classify", "roberta-classify", "distilbert-classify", "gpt2", "llama", "qwen2", "bart", "t5", "mbart"]


@pytest.mark.parametrize("variant", WRITABLE)
@pytest.mark.parametrize("family", HOMES)
def test_a_written_folder_reads_back_with_equal_logits(family: str, variant: str, tmp_path: Path) -> None:
    method = WRITABLE[variant]
    if "cross" in method.targets and family not in ("bart", "t5", "mbart"):
        pytest.skip("no cross-attention")
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    core.attach(model, method, name="a", anatomy=anatomy_of(family))
    perturb(model, "a")
    with torch.no_grad():
        expected = logits(model, batch)
    save(model, tmp_path / "a", name="a", to="adapterhub")
    again = FAMILIES[family].build()
    load(again, tmp_path / "a", name="b")
    with torch.no_grad():
        assert close(logits(again, batch), expected, 1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "bart", "t5"])
def test_a_language_adapter_and_a_fusion_are_written(family: str, tmp_path: Path) -> None:
    model, batch = FAMILIES[family].build(), FAMILIES[family].batch()
    for name in ("a", "b"):
        core.attach(model, AdapterP(size=4), name=name, anatomy=anatomy_of(family))
        perturb(model, name, seed=ord(name))
    core.attach(model, AdapterP(size=4, invertible=True), name="lang")
    core.attach(model, Fusion(of=("a", "b")), name="f")
    for name in ("lang", "f"):
        perturb(model, name, seed=ord(name[0]))
    plan = Stack(("lang", Fuse(("a", "b"), by="f")))
    with torch.no_grad(), core.using(model, plan):
        expected = logits(model, batch)
    again = FAMILIES[family].build()
    for name in ("a", "b", "lang", "f"):
        save(model, tmp_path / name, name=name, to="adapterhub")
        load(again, tmp_path / name, name=name)
    with torch.no_grad(), core.using(again, plan):
        assert close(logits(again, batch), expected, 1e-5)


def folder(tmp_path: Path, method: Method | None = None, family: str = "bert-classify") -> Path:
    """A written AdapterHub folder to damage."""
    model = FAMILIES[family].build()
    core.attach(model, method or AdapterP(size=4), name="a", anatomy=anatomy_of(family))
    perturb(model, "a")
    return save(model, tmp_path / "a", name="a", to="adapterhub")


def change(place: Path, **fields: object) -> None:
    """Change fields of the adapter's configuration; None takes one away."""
    file = place / "adapter_config.json"
    config = json.loads(file.read_text())
    for key, value in fields.items():
        inside = config["config"] if key not in ("hidden_size", "model_type", "version", "config") else config
        inside[key] = value
        if value is None:
            del inside[key]
    file.write_text(json.dumps(config))


def refused(place: Path, match: str, family: str = "bert-classify", kind: type[BudwoodError] = BadCheckpoint) -> None:
    model = FAMILIES[family].build()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(kind, match=match):
        load(model, place, name="x", anatomy=anatomy_of(family))
    assert core.adapters(model) == {}
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"reduction_factor": 16}, "another bottleneck: .*W_d"),
        ({"mh_adapter": True}, "no tensors for it"),
        ({"output_adapter": False, "mh_adapter": True}, "no tensors for it"),
        ({"leave_out": [0]}, "does not adapt"),
        ({"non_linearity": "prelu"}, "non-linearity 'prelu'"),
        ({"non_linearity": None}, "lacks non_linearity"),
        ({"inv_adapter": "glow"}, "never worked"),
        ({"residual_before_ln": "post_add", "original_ln_before": False}, "post_add"),
        ({"hidden_size": 64}, "wrong base: .*width of 64"),
        ({"model_type": "roberta"}, "type roberta"),
        ({"config": "some_bn"}, "not known here"),
        ({"architecture": "reft"}, "reft"),
        ({"phm_layer": True, "is_parallel": True}, "parallel Compacter"),
        ({"reduction_factor": "x"}, "malformed"),
        ({"sparsity": 0.5}, "sparsity=0.5, which is not known here"),
        ({"reduction_factor": 0}, "reduction_factor is 0 for layer 0; it must be above 0"),
        ({"is_parallel": "false"}, "is_parallel is 'false' .*it must be true or false"),
        ({"residual_before_ln": "post-add"}, "residual_before_ln is 'post-add'"),
    ],
)
def test_refuses_a_configuration_that_does_not_fit(tmp_path: Path, fields: dict[str, object], match: str) -> None:
    place = folder(tmp_path)
    change(place, **fields)
    refused(place, match)


def test_refuses_tensors_that_do_not_fit(tmp_path: Path) -> None:
    place = folder(tmp_path)
    file = place / "adapter.safetensors"
    tensors = load_file(file)
    first = next(iter(tensors))
    save_file({k: t for k, t in tensors.items() if k != first}, file)
    refused(place, "lacks")
    save_file({**tensors, first.replace("layer.0", "layer.7"): tensors[first].clone()}, file)
    refused(place, "wrong base: .*no such block")
    save_file({**tensors, first.replace(".a.", ".b."): tensors[first].clone()}, file)
    refused(place, r"several adapters \(a, b\)")
    save_file({key: (tensor * 100).long() for key, tensor in tensors.items()}, file)
    refused(place, "stored as torch.int64 .*not as torch.float32")
    save_file({}, file)
    refused(place, "no tensors")
    save_file({**tensors, "strange": tensors[first].clone()}, file)
    refused(place, "no AdapterHub adapter of a known type")
    file.write_bytes(file.read_bytes()[:40])
    refused(place, "damaged or cut short")
    file.unlink()
    refused(place, "has no adapter.safetensors")


def test_a_pickle_is_read_only_when_allowed(tmp_path: Path) -> None:
    place = folder(tmp_path)
    torch.save(load_file(place / "adapter.safetensors"), place / "pytorch_adapter.bin")
    (place / "adapter.safetensors").unlink()
    refused(place, "--allow-pickle")
    model = FAMILIES["bert-classify"].build()
    method = load(model, place, name="a", allow_pickle=True).method
    assert isinstance(method, AdapterP) and (method.size, method.trained) == (4, ("classifier",))
    for content in (b"not a pickle", b"", b"hello" * 50, pickle.dumps(Touch(str(tmp_path / "touched")), protocol=2)):
        (place / "pytorch_adapter.bin").write_bytes(content)
        with pytest.raises(BadCheckpoint, match="damaged, cut short, or holds more than tensors"):
            load(FAMILIES["bert-classify"].build(), place, name="a", allow_pickle=True)
    assert not (tmp_path / "touched").exists()
    for content in ({"x": torch.eye(2).to_sparse()}, {1: torch.ones(1)}, [torch.ones(1)]):
        torch.save(content, place / "pytorch_adapter.bin")
        with pytest.raises(BadCheckpoint, match="dense tensors by name"):
            load(FAMILIES["bert-classify"].build(), place, name="a", allow_pickle=True)


class Touch:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("rank", [0, -1, float("inf")])
def test_refuses_a_lora_of_no_rank(rank: float, tmp_path: Path) -> None:
    place = folder(tmp_path, LoRA(targets=("attn.q", "attn.v"), rank=4))
    change(place, r=rank)
    refused(place, "r is|malformed")


@pytest.mark.parametrize("numbers", [{"a": 0, "b": 0}, {"a": 1, "b": 2}, {"a": "x"}, 3, ["a"]])
def test_classes_that_are_not_numbered_are_refused(numbers: object, tmp_path: Path) -> None:
    place = folder(tmp_path)
    file = place / "head_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "label2id": numbers}))
    with pytest.raises(BadCheckpoint, match="number the classes from 0"):
        describe(place)
    names = {f"l{number}": str(number) for number in reversed(range(12))}  # as text, 10 comes before 2
    file.write_text(json.dumps({**json.loads(file.read_text()), "label2id": names}))
    assert describe(place).labels == tuple(f"l{number}" for number in range(12))


def test_old_files_keep_their_rules(tmp_path: Path) -> None:
    place = folder(tmp_path)
    change(place, version=None, non_linearity="gelu")
    assert load(FAMILIES["bert-classify"].build(), place, name="a").method.activation == "gelu_tanh"
    change(place, version="adapters.1.0.1", non_linearity="gelu")
    assert load(FAMILIES["bert-classify"].build(), place, name="a").method.activation == "gelu"
    old = folder(tmp_path / "lora", LoRA(targets=("attn.q", "attn.v"), rank=4, alpha=16))
    change(old, version="adapters.1.0.0")
    assert load(FAMILIES["bert-classify"].build(), old, name="a").method.alpha == 4
    tensors = load_file(place / "adapter.safetensors")
    legacy = {k.replace("output.adapters.", "output.layer_text_task_adapters."): t for k, t in tensors.items()}
    save_file(legacy, place / "adapter.safetensors")
    load(FAMILIES["bert-classify"].build(), place, name="a")


@pytest.mark.parametrize("preset", PRESETS)
def test_named_configurations_mean_what_they_say(preset: str, tmp_path: Path) -> None:
    method: Method = AdapterH(reduction=16, activation="silu") if PRESETS[preset]["mh_adapter"] else AdapterP()
    if PRESETS[preset].get("phm_layer"):
        pytest.skip("its bottleneck is narrower than these tiny models")
    if PRESETS[preset].get("is_parallel"):
        method = Parallel(learn_scale="scalar" if "scaled" in preset else "no")
    place = folder(tmp_path, method)
    tensors = load_file(place / "adapter.safetensors")
    change(place, config=preset)
    if "inv_adapter" in PRESETS[preset]:
        refused(place, "lacks")
        return
    again = load(FAMILIES["bert-classify"].build(), place, name="a").method
    assert type(again) is type(method)
    assert again.start == method.start
    assert tensors


@pytest.mark.parametrize(
    ("family", "method", "match"),
    [
        ("gemma2", AdapterH(size=4), "puts adapters before"),
        ("gptj", AdapterP(size=4), "adds the attention"),
        ("gptj", Parallel(size=4), "adds the attention"),
        ("llama", Parallel(size=4, targets=("attn",), attention="before"), "attention=before"),
        ("llama", LoRA(), "no LoRA at"),
        ("gpt2", LoRA(targets=("attn.qkv",)), "fused projections"),
        ("bert", LoRA(targets=("attn.q",), dora=True), "DoRA and gates are others"),
        ("bart", LoRA(targets=("attn.q",)), "cross-attention as it does"),
        ("bert", AdapterP(size=4, trained=("norm.*",)), "holds heads"),
        ("llama", LinearAdapter(size=4), "no adapter of the method linear-adapter; use it"),
        ("bert", AdapterH(size=4, sizes={"attn": 5}), "one bottleneck size a layer"),
    ],
)
def test_refuses_to_write_what_the_format_cannot_hold(family: str, method: Method, match: str, tmp_path: Path) -> None:
    model = FAMILIES[family].build()
    core.attach(model, method, name="a", anatomy=anatomy_of(family))
    with pytest.raises(BadConfig, match=match):
        save(model, tmp_path / "a", name="a", to="adapterhub")
    assert not (tmp_path / "a").exists()


def test_a_fusion_needs_its_adapters(tmp_path: Path) -> None:
    model = FAMILIES["bert"].build()
    for name in ("a", "b"):
        core.attach(model, AdapterP(size=4), name=name, anatomy=anatomy_of("bert"))
    core.attach(model, Fusion(of=("a", "b")), name="f")
    place = save(model, tmp_path / "f", name="f", to="adapterhub")
    with pytest.raises(NoSuchAdapter, match="'a'"):
        load(FAMILIES["bert"].build(), place, name="f")


def test_refuses_to_write_a_fusion_that_the_library_feeds_otherwise(tmp_path: Path) -> None:
    model = FAMILIES["bert"].build()
    for name, method in (("a", AdapterP(size=4)), ("b", AdapterH(size=4, targets=("mlp",)))):
        core.attach(model, method, name=name, anatomy=anatomy_of("bert"))
    core.attach(model, Fusion(of=("a", "b")), name="f")
    with pytest.raises(BadConfig, match=r"differs for 'b' \(adapter-h\)"):
        save(model, tmp_path / "f", name="f", to="adapterhub")
    assert not (tmp_path / "f").exists()


def test_a_compacter_without_its_shared_weights_is_told_apart(tmp_path: Path) -> None:
    place = folder(tmp_path, Compacter(size=4, n=2))
    tensors = load_file(place / "adapter.safetensors")
    save_file({k: t for k, t in tensors.items() if "shared_parameters" not in k}, place / "adapter.safetensors")
    refused(place, "left them out of the file")


def test_a_head_that_the_model_lacks_can_be_left_out(tmp_path: Path) -> None:
    place = folder(tmp_path)
    model = FAMILIES["bert"].build()
    with pytest.raises(BadCheckpoint, match=r"remove head_config\.json"):
        load(model, place, name="a")
    assert load(model, place, name="a", without_heads=True).method.trained == ()


def test_values_that_no_method_takes_are_a_damaged_folder(tmp_path: Path) -> None:
    place = folder(tmp_path)
    change(place, dropout=1.5)
    refused(place, "dropout is 1.5")
    change(place, dropout=0.0, scaling=float("inf"))
    refused(place, "scale is inf")


def test_a_folder_says_what_it_is_for_without_a_model(tmp_path: Path) -> None:
    found = describe(folder(tmp_path))
    model = FAMILIES["bert-classify"].build()
    assert found.labels == tuple(model.config.id2label[i] for i in range(model.config.num_labels))
    assert (found.kind, found.method, found.base) == ("ADAPTERHUB", None, model.config.name_or_path)
    language = tmp_path / "lm"
    model = FAMILIES["bert"].build()
    core.attach(model, AdapterP(size=4), name="a", anatomy=anatomy_of("bert"))
    save(model, language, name="a", to="adapterhub")
    assert (describe(language).task, describe(language).labels) == ("masked-lm", None)


def test_a_setup_folder_says_what_to_load(tmp_path: Path) -> None:
    place = folder(tmp_path)
    (tmp_path / "adapter_setup.json").write_text("{}")
    with pytest.raises(BadConfig, match=r"several adapters \(a\)"):
        load(FAMILIES["bert-classify"].build(), tmp_path, name="x")
    assert place.is_dir()
