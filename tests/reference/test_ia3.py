"""(IA)^3 against its formula, and selective methods against the parameters they name."""

from __future__ import annotations

import torch

import budwood.core as core
from budwood.methods import IA3, Full, Selective
from families import FAMILIES


def test_ia3_scales_keys_values_and_what_the_last_linear_reads() -> None:
    model, base, batch = FAMILIES["llama"].build(), FAMILIES["llama"].build(), FAMILIES["llama"].batch()
    core.attach(model, IA3(), name="a")
    own = core.named_parameters(model, "a")
    assert {name.split(".", 3)[3] for name in own} == {"self_attn.k_proj.l", "self_attn.v_proj.l", "mlp.down_proj.l"}
    with torch.no_grad():
        for name, scale in own.items():
            scale.add_(torch.randn_like(scale) * 0.3)
            weight = base.get_parameter(name.removesuffix(".l") + ".weight")
            weight.mul_(scale if "down_proj" in name else scale.unsqueeze(1))
        torch.testing.assert_close(model(**batch).logits, base(**batch).logits, rtol=1e-4, atol=1e-5)


def names(method: Full | Selective, family: str) -> set[str]:
    model = FAMILIES[family].build()
    core.attach(model, method, name="a")
    return set(core.named_parameters(model, "a"))


def test_full_trains_everything() -> None:
    assert names(Full(), "bert") == {name for name, _ in FAMILIES["bert"].build().named_parameters()}


def test_norms_are_all_norms() -> None:
    expected = {n for n, _ in FAMILIES["bert"].build().named_parameters() if "LayerNorm" in n}
    assert names(Selective(part="norms"), "bert") == expected


def test_last_layers_are_the_last_blocks_and_the_final_norm() -> None:
    found = names(Selective(part="last-layers", last=1), "gpt2")
    base = FAMILIES["gpt2"].build()
    assert found == {n for n, _ in base.named_parameters() if n.startswith(("transformer.h.1.", "transformer.ln_f."))}


def test_bitfit_moves_every_bias_outside_the_head() -> None:
    found = names(Selective(part="bitfit"), "roberta-classify")
    base = FAMILIES["roberta-classify"].build()
    expected = {n.removesuffix("bias") + "b" for n, _ in base.named_parameters() if n.endswith(".bias")}
    heads = {n for n in expected if n.startswith("classifier.")}
    assert {n for n in found if not n.startswith("classifier.")} == expected - heads
    assert {n for n in found if n.startswith("classifier.")} == {
        n for n, _ in base.named_parameters() if n.startswith("classifier.")
    }
