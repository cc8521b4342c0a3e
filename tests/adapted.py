"""Every method in every variant, attached to tiny models: what the property suite runs over."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import budwood.core as core
from budwood.anatomy import Anatomy, discover
from budwood.core import Method
from budwood.errors import BudwoodError
from budwood.methods import (
    IA3,
    MAM,
    METHODS,
    AdapterH,
    AdapterP,
    Compacter,
    LinearAdapter,
    LoRA,
    MultitaskPrompt,
    Parallel,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    Selective,
    UniPELT,
)
from budwood.methods.bottleneck import Bottleneck
from budwood.methods.words import FromWords
from families import FAMILIES

QV = ("attn.q", "attn.v", "cross.q?", "cross.v?")
VARIANTS: dict[str, Method] = {method.name: method() for method in METHODS if method.name != "fusion"} | {
    "lora-all": LoRA(targets=("all",), rslora=True),
    "lora-dora": LoRA(targets=("attn.o?", "attn.qkv?", "mlp.down?", "mixer.out?"), dora=True, rank=4),
    "lora-qv": LoRA(targets=QV),
    "lora-pissa": LoRA(init="pissa", rank=3, targets=QV),
    "lora-gaussian": LoRA(init="gaussian", targets=QV, ranks={"attn.q": 2, "cross.*?": 3}, alphas={"attn.v": 5.0}),
    "lora-bias": LoRA(targets=("mlp.down?", "attn.o?", "mixer.out?"), bias=True),
    "lora-embed": LoRA(targets=("embed",)),
    "lora-fused": LoRA(targets=("attn.qkv",)),
    "ia3-all": IA3(targets=("all",)),
    "adapter-h": AdapterH(size=5, targets=("attn?", "cross?", "mlp?")),
    "adapter-h-ln": AdapterH(size=4, ln_before=True, ln_after=True, learn_scale="channel", activation="silu"),
    "adapter-h-norms": AdapterH(size=4, trained=("norm.*",)),
    "adapter-p": AdapterP(reduction=4),
    "adapter-p-all": AdapterP(size=4, targets=("all",), learn_scale="scalar", activation="silu"),
    "language": AdapterP(size=4, invertible=True),
    "parallel": Parallel(reduction=4),
    "parallel-all": Parallel(size=4, targets=("all",), learn_scale="channel", ln_after=True),
    "parallel-before": Parallel(size=4, targets=("attn", "cross?"), attention="before"),
    "parallel-heads": Parallel(size=3, targets=("attn",), attention="multihead", ln_before=True),
    "parallel-queries": Parallel(size=3, targets=("attn",), attention="multihead"),
    "compacter": Compacter(size=4, n=2),
    "linear-adapter": LinearAdapter(size=6),
    "linear-adapter-p": LinearAdapter(form="adapter-p", size=6),
    "linear-adapter-parallel": LinearAdapter(form="parallel", size=6, targets=("all",)),
    "bitfit": Selective(part="bitfit"),
    "last-layers": Selective(part="last-layers", last=1),
    "head": Selective(part="head"),
    "prefix-tuning": PrefixTuning(length=3, width=8),
    "prefix-rows": PrefixTuning(length=3, width=None, init="random", positions="shifted"),
    "p-tuning-v2": PTuningV2(length=4),
    "p-tuning-v2-attn": PTuningV2(length=2, targets=("attn",)),
    "prompt-tuning": PromptTuning(length=3),
    "prompt-front": PromptTuning(length=3, place="front", init="random"),
    "p-tuning": PTuning(length=3, width=6),
    "p-tuning-mlp": PTuning(length=3, encoder="mlp", place="after-first"),
    "multitask-prompt": MultitaskPrompt(length=3, tasks=2, rank=2),
    "mam": MAM(length=3, width=6, size=4),
    "unipelt": UniPELT(length=3, width=6, size=4),
}
IN_PLACE = ("full", "selective", "last-layers")
"""Variants that train the base's own weights."""
ADDED = tuple(
    v for v, m in VARIANTS.items() if isinstance(m, Bottleneck | LinearAdapter)
)  # fmt: skip
"""Variants that put small networks beside the base's weights, and so cannot be merged."""
BESIDE = tuple(v for v, m in VARIANTS.items() if isinstance(m, FromWords))
"""Variants that stand beside the text, and so are never the identity and cannot be merged."""
AT_SUBLAYERS = tuple(v for v in ADDED if isinstance(VARIANTS[v], Bottleneck))
"""Those of them that read residuals and norms."""
PLACES = ("llama", "gpt2", "bert", "gpt_neox", "falcon", "bart", "t5", "mixtral", "gemma2", "granite", "albert")
"""Families that between them place residuals and norms in every way: pre-LN, post-LN, parallel (in place, too), with
cross-attention, experts, norms and factors before the sum, and layers that share their weights."""


def cases(older: Iterable[str], added: Iterable[str]) -> list[tuple[str, str]]:
    """(family, variant) for a property: `added` are the families for what reads residuals and norms."""
    return [
        (family, variant)
        for variant in VARIANTS
        for family in (added if variant in ADDED else older)
    ]  # fmt: skip


@cache
def _anatomy(family: str) -> Anatomy:
    return discover(FAMILIES[family].build())


def adapted(
    family: str,
    variant: str,
    name: str = "faq",
    *,
    perturbed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny model with the variant attached, and a batch. Skips where the method refuses the family by name;
    which pairs those are is frozen in test_refusals.py."""
    model = FAMILIES[family].build().to(dtype)
    try:
        core.attach(model, VARIANTS[variant], name=name, anatomy=_anatomy(family))
    except BudwoodError as refusal:
        pytest.skip(str(refusal))
    if perturbed:
        perturb(model, name)
    return model, FAMILIES[family].batch()


def anatomy_of(family: str) -> Anatomy:
    """The family's anatomy, found once."""
    return _anatomy(family)


def perturb(model: nn.Module, name: str, scale: float = 0.3, seed: int = 7) -> None:
    """Move every parameter of the adapter away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in core.parameters(model, name):
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * scale)


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The model's logits at positions that are not padding."""
    out = model(**batch).logits
    mask = batch["attention_mask"].bool()
    return out[mask] if out.dim() == 3 and out.shape[:2] == mask.shape else out.reshape(-1, out.shape[-1])


def weighted(out: Tensor) -> Tensor:
    """A scalar that depends on every logit."""
    generator = torch.Generator().manual_seed(9)
    return (out * torch.randn(out.shape, generator=generator).to(out)).sum()


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Equal within `tolerance` of the largest value."""
    return bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))
