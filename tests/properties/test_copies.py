"""deepcopy is independent, pickle works, save and load are exact, and any name will do."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch

import budwood.core as core
from adapted import BESIDE, VARIANTS, adapted, anatomy_of, cases, close, logits, perturb, weighted
from budwood.errors import BadConfig
from budwood.interop import load, save
from budwood.methods import AdapterP
from families import FAMILIES, SMALL

NAMES = ("mlp", "q_proj", "train", "type", "deltas", "A", "forward", "2nd", "with-dash")


@pytest.mark.parametrize(("family", "variant"), cases(SMALL, ("llama", "bert", "t5", "roberta-classify")))
def test_deepcopy_is_independent(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    with torch.no_grad():
        expected = logits(model, batch)
        twin = copy.deepcopy(model)
        assert torch.equal(logits(twin, batch), expected)
        perturb(twin, "faq", seed=8)
        assert torch.equal(logits(model, batch), expected)
        assert not torch.equal(logits(twin, batch), expected)
        core.detach(twin, "faq")
        assert torch.equal(logits(twin, batch), logits(FAMILIES[family].build(), batch))
        assert torch.equal(logits(model, batch), expected)


@pytest.mark.parametrize(("family", "variant"), cases(("llama", "gpt2", "t5"), ("gpt2", "bert")))
def test_pickle(family: str, variant: str) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    with torch.no_grad():
        assert torch.equal(logits(twin, batch), logits(model, batch))
    assert core.adapters(twin) == core.adapters(model)


@pytest.mark.parametrize(("family", "variant"), cases(SMALL, ("llama", "bert", "t5", "roberta-classify")))
def test_save_and_load_are_exact(family: str, variant: str, tmp_path: Path) -> None:
    model, batch = adapted(family, variant, perturbed=True)
    save(model, tmp_path / "adapter", name="faq")
    fresh = FAMILIES[family].build()
    adapter = load(fresh, tmp_path / "adapter", name="other", anatomy=anatomy_of(family))
    attached = core.adapters(model)["faq"].method
    assert attached == VARIANTS[variant] or variant in BESIDE  # these decide on a place when they see the model
    assert adapter.method == attached.deployed
    saved, loaded = core.named_parameters(model, "faq"), core.named_parameters(fresh, "other")
    if attached == attached.deployed:
        assert saved.keys() == loaded.keys()
        assert all(torch.equal(saved[key], loaded[key]) for key in saved)
    with torch.no_grad():
        assert torch.equal(logits(fresh, batch), logits(model, batch))


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "bart", "mbart"])
def test_what_does_not_start_as_the_identity(family: str, tmp_path: Path) -> None:
    """A sub-layer without its residual: copied, saved, switched off and detached as any other."""
    method = AdapterP(size=4, adds_residual=False, targets=("attn", "cross?", "mlp"), activation="silu")
    base, model, batch = FAMILIES[family].build(), FAMILIES[family].build(), FAMILIES[family].batch()
    core.attach(model, method, name="a", anatomy=anatomy_of(family))
    perturb(model, "a")
    with torch.no_grad():
        expected, plain = logits(model, batch), logits(base, batch)
        assert not torch.equal(expected, plain)
        save(model, tmp_path, name="a")
        load(base, tmp_path, name="b", anatomy=anatomy_of(family))
        for other in (copy.deepcopy(model), base):
            assert torch.equal(logits(other, batch), expected)
        with core.using(model, None):
            assert torch.equal(logits(model, batch), plain)
        rows = torch.tensor([1, 0])
        with core.using(model, core.Route(("a", None), rows)):
            routed = model(**batch).logits
        with core.using(model, None):
            assert close(routed[0], model(**batch).logits[0], 1e-5)
        assert close(routed[1], model(**batch).logits[1], 1e-5)
    weighted(logits(model.train(), batch)).backward()
    assert all(p.grad is not None and p.grad.any() for p in core.parameters(model, "a"))
    core.detach(model.eval(), "a")
    with torch.no_grad():
        assert torch.equal(logits(model, batch), plain)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", NAMES)
def test_any_name(name: str, tmp_path: Path) -> None:
    model, batch = adapted("llama", "lora-all", name, perturbed=True)
    with torch.no_grad():
        expected = logits(model, batch)
    save(model, tmp_path, name=name)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert name not in config["target_modules"] or name in ("q_proj",)
    fresh = FAMILIES["llama"].build()
    load(fresh, tmp_path, name=name)
    with torch.no_grad():
        assert torch.equal(logits(fresh, batch), expected)
    core.detach(fresh, name)
    assert core.adapters(fresh) == {}


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "../a", " a", ".a"])
def test_names_that_cannot_be_folders_or_children(name: str) -> None:
    with pytest.raises(BadConfig, match="letters, digits"):
        core.attach(FAMILIES["llama"].build(), VARIANTS["lora"], name=name)


def test_the_saved_model_reloads_as_the_plain_base(tmp_path: Path) -> None:
    model, batch = adapted("llama", "lora", perturbed=True)
    model.save_pretrained(tmp_path, state_dict=core.base_state_dict(model))  # type: ignore[operator]
    base = FAMILIES["llama"].build()
    again = type(base).from_pretrained(tmp_path)  # type: ignore[attr-defined]
    with torch.no_grad():
        assert torch.equal(logits(again.eval(), batch), logits(base, batch))
