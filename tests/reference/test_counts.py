"""Numbers of trainable parameters on published models (weightless, on the meta device) against known integers.

Sources: LoRA tables 2, 3 and 15; the released roberta_base_lora_mnli.bin; DoRA table 1; BitFit; Houlsby table 1 and
section 3.4; AdapterHub's defaults; MAD-X; He et al. tables 4 to 6, who count weights without biases, and their MAM;
LLM-Adapters.
"""

from __future__ import annotations

from typing import Any

import pytest

import budwood.core as core
from budwood.core import Method
from budwood.methods import (
    IA3,
    MAM,
    AdapterH,
    AdapterP,
    Fusion,
    LinearAdapter,
    LoRA,
    Parallel,
    Selective,
    UniPELT,
    parse_method,
)
from reference.published import SLOW, attached, read

QV = ("attn.q", "attn.v")
QKVO = ("attn.q", "attn.k", "attn.v", "attn.o")
QKVUD = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")

COUNTS: list[tuple[str, Method, int]] = [
    ("roberta-base", LoRA(rank=8, targets=QV), 294_912),
    ("roberta-base-mnli", LoRA(rank=8, targets=QV), 887_811),
    ("roberta-base-mnli", LoRA(rank=8, targets=QV, trained=()), 294_912),
    ("roberta-large", LoRA(rank=8, targets=QV), 786_432),
    ("roberta-base-mnli", AdapterP(size=16), 304_320 + 592_899),
    ("deberta-xxl", LoRA(rank=16, targets=QV), 4_718_592),
    ("deberta-xxl", LoRA(rank=8, targets=QV), 2_359_296),
    ("gpt2-medium", LoRA(rank=4, targets=QV), 393_216),
    ("gpt2-medium", LoRA(rank=4, targets=("attn.qkv",)), 393_216),
    ("gpt2-large", LoRA(rank=4, targets=QV), 737_280),
    ("gpt3", LoRA(rank=1, targets=QV), 4_718_592),
    ("gpt3", LoRA(rank=2, targets=QV), 9_437_184),
    ("gpt3", LoRA(rank=4, targets=QV), 18_874_368),
    ("gpt3", LoRA(rank=8, targets=QV), 37_748_736),
    ("gpt3", LoRA(rank=64, targets=QV), 301_989_888),
    ("gpt3", LoRA(rank=2, targets=("attn.v",)), 4_718_592),
    ("gpt3", LoRA(rank=1, targets=QKVO), 9_437_184),
    ("gpt3", LoRA(rank=2, targets=QKVO), 18_874_368),
    ("gpt3", LoRA(rank=4, targets=QKVO), 37_748_736),
    ("gpt3", LoRA(rank=64, targets=QKVO), 603_979_776),
    ("llama-7b", LoRA(rank=8, targets=QV), 4_194_304),
    ("llama-7b", LoRA(rank=32, targets=QKVUD), 56_098_816),
    ("llama-7b", LoRA(rank=32, targets=QKVUD, dora=True), 56_975_360),
    ("llama-13b", LoRA(rank=32, targets=QKVUD), 87_818_240),
    ("llama3-8b", LoRA(rank=32, targets=QKVUD), 56_623_104),
    ("llama3-8b", LoRA(rank=32, targets=QKVUD, dora=True), 57_409_536),
    ("bert-base", LoRA(targets=QV), 294_912),
    ("bert-base", Selective(part="norms"), 38_400),
    ("roberta-base", Selective(part="bitfit"), 102_912),  # the published 102,144 leave the pooler's 768 out
    ("gpt2-medium", Selective(part="last-layers"), 25_194_496),
    ("llama-7b", IA3(), 32 * (4096 + 4096 + 11008)),
    # Adapter^L: one a layer, with a LayerNorm of its own
    ("gpt2-medium", AdapterP(size=6, ln_before=True), 368_784),
    ("gpt2-medium", AdapterP(size=224, ln_before=True), 11_089_152),
    ("gpt2-large", AdapterP(size=8, ln_after=True), 875_808),
    ("gpt2-large", AdapterH(size=248, targets=("mlp",), ln_before=True), 23_002_848),
    ("gpt2-medium", AdapterH(size=112), 11_064_576),
    ("gpt2-medium", AdapterH(size=112, trained=("norm.mlp",)), 11_113_728),  # with one LayerNorm a layer
    ("roberta-base", AdapterP(size=16), 304_320),
    ("roberta-base", AdapterP(), 894_528),
    ("roberta-large", AdapterP(size=64), 3_171_840),
    ("roberta-large", AdapterP(size=16), 811_392),
    ("roberta-large", AdapterH(), 6_343_680),
    ("roberta-large", AdapterH(size=8), 835_968),
    ("gpt3", AdapterH(size=1), 7_078_080),
    ("gpt3", AdapterH(size=4), 21_234_432),
    ("gpt3", AdapterH(size=8), 40_109_568),
    ("gpt3", AdapterH(size=16), 77_859_840),
    ("gpt3", AdapterH(size=64), 304_361_472),
    ("bert-large", AdapterH(size=8), 835_968),
    ("bert-large", AdapterH(size=64), 6_343_680),
    ("bert-large", AdapterH(size=256), 25_227_264),
    ("bert-large", AdapterH(size=64, trained=("norm.*",)), 6_444_032),
    ("bert-base", AdapterH(size=64), 2_379_264),
    ("bert-base", parse_method("adapterhub-h"), 1_789_056),
    ("bert-base", Parallel(), 7_091_712),
    ("xlm-roberta-base", AdapterP(reduction=2), 7_091_712),
    ("xlm-roberta-base", parse_method("language-adapter"), 7_387_776),
    ("bart-large", Parallel(size=512), 25_202_688),
    ("bart-large", MAM(width=None), 27_414_528),  # 2,211,840 rows and 25,202,688 of the adapter
    ("roberta-base", MAM(length=16, width=None, size=16), 599_232),
    ("bert-base", MAM(reduction=2), 22_493_984),  # AdapterHub's default
    ("bert-base", UniPELT(), 11_083_376),  # AdapterHub's: 9,857,024 + 894,528 + 294,912 and 48 gates of 769
    ("bert-base", UniPELT(width=None), 184_320 + 894_528 + 294_912 + 36_912),
    ("bert-base", UniPELT(width=None, gate="separate"), 184_320 + 894_528 + 294_912 + 46_140),
    ("llama-7b", LinearAdapter(), 201_326_592),
    ("llama-7b", LinearAdapter(form="adapter-p"), 67_108_864),
    ("llama-7b", LinearAdapter(form="parallel", targets=("mlp.up", "mlp.down")), 247_463_936),
    ("llama-13b", LinearAdapter(form="adapter-p"), 104_857_600),
    ("llama-13b", LinearAdapter(form="parallel", targets=("mlp.up", "mlp.down")), 387_973_120),
]
WEIGHTS: list[tuple[str, Method, int]] = [
    ("bart-large", AdapterH(size=200, targets=("attn", "cross")), 14_745_600),
    ("bart-large", Parallel(size=200, targets=("attn", "cross"), bias=False), 14_745_600),
    ("bart-large", Parallel(size=200), 9_830_400),
    ("bart-large", Parallel(size=512), 25_165_824),
    ("bart-large", Parallel(size=1024), 50_331_648),
    ("bart-large", AdapterP(size=600), 29_491_200),
    ("bart-large", LoRA(rank=102, targets=("mlp.up", "mlp.down")), 25_067_520),
    ("bart-large", Parallel(size=30, targets=("attn", "cross"), attention="multihead"), 2_211_840),
    ("bart-large", Parallel(size=30), 1_474_560),
]
"""Counted without biases and norms."""


def cases(counts: list[tuple[str, Method, int]]) -> list[Any]:
    return [
        pytest.param(
            *case, marks=[pytest.mark.slow] if case[0] in SLOW else [], id=f"{case[0]}-{case[1].name}-{case[2]}"
        )
        for case in counts
    ]


@pytest.mark.parametrize(("name", "method", "count"), cases(COUNTS))
def test_count(name: str, method: Method, count: int) -> None:
    assert sum(attached(name, method).values()) == count


@pytest.mark.parametrize(("name", "method", "count"), cases(WEIGHTS))
def test_count_of_weights(name: str, method: Method, count: int) -> None:
    sizes = attached(name, method)
    assert sum(n for key, n in sizes.items() if key.rpartition(".")[2] not in ("b_d", "b_u")) == count


def test_language_and_task_adapter_of_madx() -> None:
    language, task = (
        attached("xlm-roberta-base", parse_method(text)) for text in ("language-adapter", "adapter-p:reduction=16")
    )
    sizes = [*language.items(), *task.items()]
    assert sum(n for _, n in sizes) == 8_282_304
    assert sum(n for key, n in sizes if not key.endswith(("b_d", "b_u"))) == 8_257_536
    nice = {k: n for k, n in language.items() if ".F." in k or ".G." in k}
    assert sum(nice.values()) == 296_064


def test_fusion_of_two() -> None:
    model, anatomy = read("bert-base")
    for name in "ab":
        core.attach(model, AdapterP(), name=name, anatomy=anatomy)
    core.attach(model, Fusion(of=("a", "b")), name="f", anatomy=anatomy)
    found = sum(p.numel() for p in core.parameters(model, "f"))
    for name in "fba":
        core.detach(model, name)
    assert found == 21_252_096
