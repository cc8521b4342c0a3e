"""What a cut does to configurations, tensors and flags, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

import budwood.core as core
from budwood.errors import BadConfig, WrongOrder
from budwood.methods import LoRA
from budwood.prune.cut import cut
from budwood.prune.gates import closed
from budwood.prune.kept import Kept
from budwood.prune.structure import structure_of
from families import FAMILIES, GPT2, GQA, T5, VOCABULARY

IDS = torch.tensor([[4, 9, 17, 33, 6]])


def decoder(kind: str, **settings: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = AutoConfig.for_model(kind, vocab_size=VOCABULARY, pad_token_id=1, **settings)
        task = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model: PreTrainedModel = task.from_config(config, dtype=torch.float32).eval()
    return model


def logits(model: nn.Module, **more: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, **more).logits
        return found


def downs(model: PreTrainedModel, dimension: str = "ffn") -> list[str]:
    return [units.path for units in structure_of(model).units if units.dimension == dimension]


def test_blocks_are_numbered_anew() -> None:
    model = decoder("llama", **{**GQA, "num_hidden_layers": 4})
    kept = Kept(layers={"decoder": (0, 1, 3)})
    smaller = cut(model, kept)
    assert smaller.config.num_hidden_layers == 3
    for new, old in enumerate((0, 1, 3)):
        own = smaller.get_parameter(f"model.layers.{new}.mlp.up_proj.weight")
        assert torch.equal(own, model.get_parameter(f"model.layers.{old}.mlp.up_proj.weight"))
        assert smaller.model.layers[new].self_attn.layer_idx == new
    with closed(model, kept):
        assert torch.allclose(logits(model), logits(smaller), atol=1e-6)


def test_lists_of_the_configuration_follow_the_blocks() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = decoder("gemma2", **{**GQA, "num_hidden_layers": 4}, head_dim=8, sliding_window=2, layer_types=kinds)
    smaller = cut(model, Kept(layers={"decoder": (0, 2, 3)}))
    assert smaller.config.layer_types == [kinds[i] for i in (0, 2, 3)]
    assert [layer.self_attn.sliding_window for layer in smaller.model.layers] == [2, 2, None]

    neo = decoder(
        "gpt_neo", hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48, max_position_embeddings=64,
        window_size=2, attention_types=[[["global", "local"], 2]],
    )  # fmt: skip
    smaller = cut(neo, Kept(layers={"decoder": (0, 3)}))
    assert smaller.config.attention_layers == ["global", "local"]
    smaller = cut(neo, Kept(layers={"decoder": (0, 2, 3)}))
    assert smaller.config.attention_layers == ["global", "global", "local"]

    moe = decoder("qwen3_moe", **{**GQA, "num_hidden_layers": 3}, head_dim=8, num_experts=4, num_experts_per_tok=2,
                  moe_intermediate_size=24, mlp_only_layers=[1])  # fmt: skip
    assert cut(moe, Kept(layers={"decoder": (1, 2)})).config.mlp_only_layers == [0]

    qwen = decoder("qwen2", **{**GQA, "num_hidden_layers": 4}, use_sliding_window=True, max_window_layers=2,
                   sliding_window=2)  # fmt: skip
    smaller = cut(qwen, Kept(layers={"decoder": (0, 2, 3)}))
    assert smaller.config.max_window_layers == 1
    assert smaller.config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]


def test_stacks_of_an_encoder_decoder_have_depths_of_their_own() -> None:
    model = decoder("t5", **{**T5, "num_layers": 3}, decoder_start_token_id=0)
    smaller = cut(model, Kept(layers={"decoder": (0,), "encoder": (0, 2)}))
    assert (smaller.config.num_layers, smaller.config.num_decoder_layers) == (2, 1)
    with pytest.raises(
        BadConfig, match=r"t5 cannot be cut so in layers: .*relative_attention_bias.*can be cut in: ffn"
    ):
        cut(model, Kept(layers={"encoder": (1, 2)}))
    bart = FAMILIES["bart"].build()
    smaller = cut(bart, Kept(layers={"decoder": (1,)}))
    assert (smaller.config.encoder_layers, smaller.config.decoder_layers) == (2, 1)


def test_heads_that_share_a_table_are_kept_alike() -> None:
    model = FAMILIES["t5"].build()
    encoder = next(paths for paths in structure_of(model).together if paths[0].startswith("encoder"))
    units = dict.fromkeys(downs(model, "heads"), (0, 2))
    free = next(path for path in units if "EncDecAttention" in path)
    assert cut(model, Kept(units={**units, free: (1, 3)})).config.num_heads == 2
    with pytest.raises(BadConfig, match="share one table of positions"):
        cut(model, Kept(units={**units, encoder[1]: (0, 1)}))


def test_the_size_of_a_head_is_said() -> None:
    model = decoder("qwen2", **GQA)
    smaller = cut(model, Kept(units=dict.fromkeys(downs(model, "heads"), (1,))))
    config = smaller.config
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (2, 1, 8)
    assert smaller.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)
    assert torch.equal(smaller.model.layers[0].self_attn.q_proj.bias, model.model.layers[0].self_attn.q_proj.bias[16:])
    assert not hasattr(cut(model, Kept(layers={"decoder": (0,)})).config, "head_dim")


def test_width_and_heads_together_where_a_class_divides_one_by_the_other() -> None:
    model = decoder("gpt2", **GPT2)
    heads, channels = dict.fromkeys(downs(model, "heads"), (0, 1, 3)), tuple(range(8, 32))
    smaller = cut(model, Kept(units=heads, channels=channels))
    assert (smaller.config.n_embd, smaller.config.n_head, smaller.config.n_inner) == (24, 3, 128)
    with pytest.raises(BadConfig, match="takes width / heads for the size of a head .*cut both by one share"):
        cut(model, Kept(units=heads))
    with pytest.raises(BadConfig, match=r"gpt2 cannot be cut so in hidden: .* it can be cut in: layers, ffn$"):
        cut(model, Kept(channels=channels))


def test_channels_that_carry_nothing_change_nothing() -> None:
    for kind, more in (("llama", {}), ("gemma", {"head_dim": 8})):
        model = decoder(kind, **GQA, **more)
        dead = [3, 7, 20, 31]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    axis = 0 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                    parameter.index_fill_(axis, torch.tensor(dead), 0.0)
        kept = tuple(i for i in range(32) if i not in dead)
        if (
            kind == "gemma"
        ):  # embeddings times the root of the width; the first norm takes no notice of it, later ones do
            model.get_input_embeddings().register_forward_hook(lambda _, __, y: y * (28 / 32) ** 0.5)
        assert torch.allclose(logits(cut(model, Kept(channels=kept))), logits(model), atol=1e-4), kind


def test_what_a_model_is_beside_its_weights_stays() -> None:
    model = decoder("llama", **GQA).to(torch.bfloat16)
    model.train()
    model.generation_config.max_length = 77
    model.config.architectures = ["LlamaForCausalLM"]
    model.model.norm.weight.requires_grad_(False)
    state = torch.get_rng_state()
    smaller = cut(model, Kept(layers={"decoder": (0,)}))
    assert torch.equal(state, torch.get_rng_state())
    assert smaller.training and smaller.dtype == torch.bfloat16 and smaller.generation_config.max_length == 77
    assert smaller.config.architectures == ["LlamaForCausalLM"]
    assert [n for n, p in smaller.named_parameters() if not p.requires_grad] == ["model.norm.weight"]
    assert model.config.num_hidden_layers == 2
    own = {value.data_ptr() for value in model.state_dict().values()}
    assert not own & {value.data_ptr() for value in smaller.state_dict().values()}


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    model = decoder("llama", **GQA, tie_word_embeddings=True)
    smaller = cut(model, Kept(channels=tuple(range(24))))
    assert smaller.lm_head.weight is smaller.model.embed_tokens.weight
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() + 1)
    with pytest.raises(BadConfig, match="are two weights, and the configuration says that they are one"):
        cut(model, Kept(layers={"decoder": (0,)}))


def test_weights_replace_those_of_the_model_before_the_cut() -> None:
    model = decoder("llama", **GQA)
    name = "model.layers.1.mlp.down_proj.weight"
    new = torch.arange(32 * 48.0).reshape(32, 48)
    chosen = tuple(range(0, 48, 2))
    kept = Kept(units=dict.fromkeys(downs(model), chosen))
    smaller = cut(model, kept, weights={name: new})
    assert torch.equal(smaller.get_parameter(name), new[:, list(chosen)])
    with pytest.raises(BadConfig, match=r"weights has nowhere \(3,\); give a name of the uncut model"):
        cut(model, kept, weights={"nowhere": torch.zeros(3)})
    with pytest.raises(BadConfig, match=r"give the whole \(32, 48\)"):
        cut(model, kept, weights={name: new[:, :24]})


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (Kept(layers={"tower": (0,)}), "no stack is called 'tower'; there are: decoder"),
        (Kept(layers={"decoder": ()}), "no blocks of decoder are kept; keep one at least"),
        (Kept(layers={"decoder": (1, 0)}), r"blocks of decoder kept: \[1, 0\]; give different numbers from 0 to 1"),
        (Kept(units={"model.norm": (0,)}), "'model.norm' reads no units that can be cut"),
        (Kept(units={"model.layers.0.mlp.down_proj": (0, 48)}), "give different numbers from 0 to 47"),
        (Kept(units={"model.layers.0.mlp.down_proj": (0, 1)}), "keep as many in each"),
        (Kept(channels=(0, 0)), "channels kept"),
    ],
)
def test_what_a_model_does_not_have(kept: Kept, words: str) -> None:
    with pytest.raises(BadConfig, match=words):
        cut(decoder("llama", **GQA), kept)


def test_refused_models() -> None:
    with pytest.raises(BadConfig, match="is no transformers model"):
        structure_of(nn.Linear(2, 2))  # type: ignore[arg-type]
    model = decoder("llama", **GQA)
    core.attach(model, LoRA(rank=2), name="faq")
    for act in (structure_of, lambda m: cut(m, Kept())):
        with pytest.raises(WrongOrder, match="adapter 'faq' is attached; merge or detach it, then cut"):
            act(model)
    core.detach(model, "faq")
    with pytest.raises(BadConfig, match="channels cannot be shut off by gates"), closed(model, Kept(channels=(0,))):
        pass
    mixture = FAMILIES["mixtral"].build()
    assert structure_of(mixture).refused == {"ffn": "its feed-forwards are experts, which are not cut"}


def test_blocks_must_stay_of_their_kind() -> None:
    model = decoder("jamba", **{**GQA, "num_hidden_layers": 4}, num_experts=2, expert_layer_period=2,
                    expert_layer_offset=1, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False,
                    mamba_d_state=4, mamba_dt_rank=4)  # fmt: skip
    assert cut(model, Kept(layers={"decoder": (2, 3)})).config.num_hidden_layers == 2
    with pytest.raises(BadConfig, match="jamba cannot be cut so in layers"):
        cut(model, Kept(layers={"decoder": (1, 2)}))


def test_a_size_that_the_class_does_not_take() -> None:
    with pytest.raises(BadConfig, match=r"llama cannot be cut so in hidden: .*\(30\).* hidden \(to other sizes\)$"):
        cut(decoder("llama", **GQA), Kept(channels=tuple(range(30))))


def test_nothing_kept_is_a_copy() -> None:
    model = decoder("llama", **GQA)
    same = cut(model, Kept())
    assert same is not model and torch.equal(logits(same), logits(model))
    assert same.config.to_dict() == copy.deepcopy(model.config).to_dict()
