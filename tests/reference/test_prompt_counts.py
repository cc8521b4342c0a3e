"""Numbers of parameters of prompts and prefixes on published models, while they are trained and as they are saved.

Sources: Lester et al. table 4; Li & Liang's 250K, 500K and 0.1 to 2 %; He et al. section 4; the released scripts of
P-Tuning v2, and the comment in its code; LoRA table 2 (PreEmbed); the encoders of P-Tuning's LAMA code and of PEFT.
"""

from __future__ import annotations

from typing import Any

import pytest

from budwood.core import Method
from budwood.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning, PTuningV2
from reference.published import SLOW, attached, read

TOTALS: list[tuple[str, int]] = [
    ("gpt2-medium", 354_823_168),
    ("gpt2-large", 774_030_080),
    ("gpt3", 174_604_259_328),
    ("bart-large", 406_291_456),
    ("bert-large-cased", 333_579_264),
    ("roberta-large", 355_359_744),
    ("smollm2-135m", 134_515_008),
    # without the output embedding of 32,128 x d, which transformers ties to the input's and the released ones are not
    ("t5-small", 76_961_152 - 32_128 * 512),
    ("t5-base", 247_577_856 - 32_128 * 768),
    ("t5-large", 783_150_080 - 32_128 * 1024),
    ("t5-xl", 2_849_757_184 - 32_128 * 2048),
    ("t5-xxl", 11_003_736_064),
]
"""What percentages are of."""


def deployed(name: str, method: Method, count: int) -> tuple[str, Method, int, int]:
    """Saved as it is trained."""
    return (name, method, count, count)


def prompts(name: str, d: int) -> list[tuple[str, Method, int, int]]:
    """Lester et al. table 4."""
    return [deployed(name, PromptTuning(length=length), length * d) for length in (1, 20, 100, 150)]


def deep(name: str, counts: dict[int, int]) -> list[tuple[str, Method, int, int]]:
    """P-Tuning v2 without its network."""
    return [deployed(name, PTuningV2(length=length), count) for length, count in counts.items()]


def within(name: str, d: int, trained: int) -> tuple[str, Method, int, int]:
    """P-Tuning's nine pseudo tokens of LAMA, out of LSTM(d, d/2)."""
    return (name, PTuning(length=9, place="inside"), trained, 9 * d)


def words(length: int, infix: int, count: int) -> tuple[str, Method, int, int]:
    """LoRA's PreEmbed at the width of GPT-3: pseudo tokens without a network, some in front, some inside."""
    return deployed("as-wide-as-gpt3", PTuning(length=length + infix, place="inside", encoder=None), count)


COUNTS: list[tuple[str, Method, int, int]] = [
    # prompt tuning
    *prompts("t5-base", 768),
    *prompts("t5-large", 1024),
    *prompts("t5-xl", 2048),
    *prompts("t5-xxl", 4096),
    deployed("t5-base", PromptTuning(length=100), 76_800),
    deployed("t5-large", PromptTuning(length=150), 153_600),
    deployed("t5-xl", PromptTuning(length=20), 40_960),
    deployed("t5-xxl", PromptTuning(length=50), 204_800),
    deployed("t5-xxl", PromptTuning(length=150), 614_400),
    deployed("smollm2-135m", PromptTuning(length=20), 11_520),
    deployed("bert-base", PromptTuning(length=20, level="states"), 15_360),
    # prefix tuning
    ("gpt2-medium", PrefixTuning(length=5), 25_744_896, 245_760),
    deployed("gpt2-medium", PrefixTuning(length=10, width=None), 491_520),
    deployed("gpt2-medium", PrefixTuning(length=7, width=None), 344_064),
    deployed("gpt2-large", PrefixTuning(length=10, width=None), 921_600),
    ("bart-large", PrefixTuning(length=200, width=800), 62_130_528, 14_745_600),
    deployed("bart-large", PrefixTuning(length=100, width=None), 7_372_800),
    deployed("bart-large", PrefixTuning(length=5, width=None), 368_640),
    deployed("bart-large", PrefixTuning(length=30, width=None), 2_211_840),
    deployed("bart-large", PrefixTuning(length=30, width=None, stacks=("decoder",)), 2 * 737_280),
    deployed("bart-large", PrefixTuning(length=30, width=None, targets=("cross",)), 737_280),
    ("bert-base", PrefixTuning(length=10), 9_857_024, 184_320),
    deployed("smollm2-135m", PrefixTuning(length=20, width=None), 230_400),
    deployed("llama3-8b", PrefixTuning(length=30, width=None), 1_966_080),  # 8 heads of keys and values
    deployed("llama3-8b", PrefixTuning(length=30, width=None, positions="shifted"), 1_966_080),
    deployed("gpt3", PrefixTuning(length=16, width=None), 37_748_736),
    deployed("deepseek-two-layers", PrefixTuning(length=5, width=None), 5 * 2 * 128 * (192 + 128)),  # keys are wider
    # P-Tuning v2
    *deep("bert-large-cased", {16: 786_432, 20: 983_040, 40: 1_966_080, 128: 6_291_456}),
    ("bert-large-cased", PTuningV2(length=20, width=512), 25_760_256, 983_040),
    *deep("roberta-large", {8: 393_216, 11: 540_672, 16: 786_432, 48: 2_359_296, 64: 3_145_728}),
    *deep("roberta-large", {128: 6_291_456, 144: 7_077_888, 224: 11_010_048}),
    ("bert-base-9-labels", PTuningV2(length=5, width=512), 9_860_105, 92_160 + 6_921),  # 9 classes: 769 x 9
    deployed("bert-large-squad", PTuningV2(length=8), 393_216 + 2_050),
    deployed("roberta-base-mnli", PTuningV2(length=8), 147_456 + 592_899),
    # P-Tuning
    within("gpt2", 768, 8_278_272),
    within("gpt2-medium", 1024, 14_707_712),
    within("gpt2-xl", 1600, 35_883_200),
    within("as-wide-as-megatron-11b", 3072, 132_203_520),
    ("bert-large", PTuning(length=9, encoder="mlp", width=1024), 3_158_016, 9_216),
    ("bert-large", PTuning(length=9, width=1024), 48_279_552, 9_216),
    # of several tasks: P of all, U and V of each
    deployed("t5-base", MultitaskPrompt(length=100), 76_800 + (100 + 768)),
    deployed("t5-base", MultitaskPrompt(length=100, tasks=8, rank=4), 76_800 + 8 * 4 * (100 + 768)),
    # PreEmbed
    words(32, 8, 491_520),
    words(64, 8, 884_736),
    words(128, 8, 1_671_168),
    words(256, 8, 3_244_032),
    words(512, 8, 6_389_760),
]
"""(model, method, trained, saved)."""
BIG = (*SLOW, "as-wide-as-megatron-11b", "gpt2-xl", "llama3-8b", "t5-xl", "t5-xxl")


def cases(counts: list[Any]) -> list[Any]:
    return [pytest.param(*case, marks=[pytest.mark.slow] if case[0] in BIG else []) for case in counts]


@pytest.mark.parametrize(("name", "count"), cases(TOTALS))
def test_total(name: str, count: int) -> None:
    assert sum(p.numel() for p in read(name)[0].parameters()) == count


@pytest.mark.parametrize(("name", "method", "trained", "saved"), cases(COUNTS))
def test_count(name: str, method: Method, trained: int, saved: int) -> None:
    assert sum(attached(name, method).values()) == trained
    if method.deployed is not method:
        assert sum(attached(name, method.deployed).values()) == saved
    else:
        assert saved == trained
