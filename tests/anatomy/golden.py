"""What each family is made of, written down from the model's own source, not from what discovery answers.

One line per kind of place: `path=role`, with `N` for a layer number. Everything that discovery has to name is here:
every linear, norm, embedding and expert parameter.
"""

from __future__ import annotations

BERT_BLOCK = """
attention.self.query=attn.q attention.self.key=attn.k attention.self.value=attn.v attention.output.dense=attn.o
attention.output.LayerNorm=norm.attn intermediate.dense=mlp.up output.dense=mlp.down output.LayerNorm=norm.mlp
"""
BERT_EMBEDDINGS = """
word_embeddings=embed position_embeddings=embed.position token_type_embeddings=embed.type LayerNorm=norm.embed
"""
LLAMA_ATTENTION = "self_attn.q_proj=attn.q self_attn.k_proj=attn.k self_attn.v_proj=attn.v self_attn.o_proj=attn.o"
GATED_MLP = "mlp.gate_proj=mlp.gate mlp.up_proj=mlp.up mlp.down_proj=mlp.down"
LLAMA_BLOCK = f"{LLAMA_ATTENTION} {GATED_MLP} input_layernorm=norm.attn post_attention_layernorm=norm.mlp"
QK_NORMS = "self_attn.q_norm=norm.q self_attn.k_norm=norm.k"
SANDWICH = """
input_layernorm=norm.attn post_attention_layernorm=norm.attn
pre_feedforward_layernorm=norm.mlp post_feedforward_layernorm=norm.mlp
"""
EXPERTS = "mlp.gate.weight=mlp.router mlp.experts.gate_up_proj=experts.gate_up mlp.experts.down_proj=experts.down"
GPT2_BLOCK = """
ln_1=norm.attn attn.c_attn=attn.qkv attn.c_proj=attn.o ln_2=norm.mlp mlp.c_fc=mlp.up mlp.c_proj=mlp.down
"""
BART_ATTENTION = """
self_attn.q_proj=attn.q self_attn.k_proj=attn.k self_attn.v_proj=attn.v self_attn.out_proj=attn.o
self_attn_layer_norm=norm.attn
"""
BART_CROSS = """
encoder_attn.q_proj=cross.q encoder_attn.k_proj=cross.k encoder_attn.v_proj=cross.v encoder_attn.out_proj=cross.o
encoder_attn_layer_norm=norm.cross
"""
BART_MLP = "fc1=mlp.up fc2=mlp.down final_layer_norm=norm.mlp"
NEOX_MLP = "mlp.dense_h_to_4h=mlp.up mlp.dense_4h_to_h=mlp.down"
DISTILBERT_BLOCK = """
attention.q_lin=attn.q attention.k_lin=attn.k attention.v_lin=attn.v attention.out_lin=attn.o sa_layer_norm=norm.attn
ffn.lin1=mlp.up ffn.lin2=mlp.down output_layer_norm=norm.mlp
"""
DISTILBERT_EMBEDDINGS = "word_embeddings=embed position_embeddings=embed.position LayerNorm=norm.embed"


def under(prefix: str, lines: str) -> dict[str, str]:
    """The lines with `prefix` in front of each path."""
    pairs = (line.split("=") for line in lines.split())
    return {f"{prefix}{path}": role for path, role in pairs}


def llama(block: str = LLAMA_BLOCK, norm: str = "norm") -> dict[str, str]:
    outside = under("", f"model.embed_tokens=embed model.{norm}=norm.final lm_head=head.lm")
    return under("model.layers.N.", block) | outside


def gpt(block: str, *, positions: bool = True) -> dict[str, str]:
    outside = "wte=embed ln_f=norm.final" + (" wpe=embed.position" if positions else "")
    return under("transformer.h.N.", block) | under("transformer.", outside)


def bert(name: str) -> dict[str, str]:
    return under(f"{name}.embeddings.", BERT_EMBEDDINGS) | under(f"{name}.encoder.layer.N.", BERT_BLOCK)


def t5(mlp: str) -> dict[str, str]:
    own = "q=attn.q k=attn.k v=attn.v o=attn.o relative_attention_bias=embed.position"
    cross = "q=cross.q k=cross.k v=cross.v o=cross.o"
    found = {"lm_head": "head.lm"}
    for stack, last in (("encoder", 1), ("decoder", 2)):
        block = f"{stack}.block.N.layer"
        found |= under(f"{block}.0.SelfAttention.", own) | {f"{block}.0.layer_norm": "norm.attn"}
        found |= under(f"{block}.{last}.DenseReluDense.", mlp) | {f"{block}.{last}.layer_norm": "norm.mlp"}
        found |= under(f"{stack}.", "embed_tokens=embed final_layer_norm=norm.final")
    found |= under("decoder.block.N.layer.1.EncDecAttention.", cross)
    return found | {"decoder.block.N.layer.1.layer_norm": "norm.cross"}


def bart(*, final_norm: bool) -> dict[str, str]:
    outside = "embed_tokens=embed embed_positions=embed.position layernorm_embedding=norm.embed"
    outside += " layer_norm=norm.final" if final_norm else ""
    return (
        under("model.encoder.layers.N.", BART_ATTENTION + BART_MLP)
        | under("model.decoder.layers.N.", BART_ATTENTION + BART_CROSS + BART_MLP)
        | under("model.encoder.", outside)
        | under("model.decoder.", outside)
        | {"lm_head": "head.lm"}
    )


HEAD = {"lm_head": "head.lm"}
MLM = under("cls.predictions.", "transform.dense=head.transform transform.LayerNorm=norm.head decoder=head.lm")

GOLDEN: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "gemma", "granite", "stablelm"), llama()),
    "qwen3": llama(f"{LLAMA_BLOCK} {QK_NORMS}"),
    "gemma2": llama(f"{LLAMA_ATTENTION} {GATED_MLP} {SANDWICH}"),
    "gemma3": llama(f"{LLAMA_ATTENTION} {GATED_MLP} {SANDWICH} {QK_NORMS}"),
    "phi": llama(
        """self_attn.q_proj=attn.q self_attn.k_proj=attn.k self_attn.v_proj=attn.v self_attn.dense=attn.o
        mlp.fc1=mlp.up mlp.fc2=mlp.down input_layernorm=norm.attn""",
        norm="final_layernorm",
    ),
    "phi3": llama(
        """self_attn.qkv_proj=attn.qkv self_attn.o_proj=attn.o mlp.gate_up_proj=mlp.gate_up mlp.down_proj=mlp.down
        input_layernorm=norm.attn post_attention_layernorm=norm.mlp"""
    ),
    "mixtral": llama(f"{LLAMA_ATTENTION} {EXPERTS} input_layernorm=norm.attn post_attention_layernorm=norm.mlp"),
    "olmo2": llama(
        f"""{LLAMA_ATTENTION} {GATED_MLP} {QK_NORMS}
        post_attention_layernorm=norm.attn post_feedforward_layernorm=norm.mlp"""
    ),
    "cohere": llama(f"{LLAMA_ATTENTION} {GATED_MLP} input_layernorm=norm.attn"),
    "gpt2": gpt(GPT2_BLOCK) | HEAD,
    "gpt_bigcode": gpt(GPT2_BLOCK) | HEAD,
    "gpt2-classify": gpt(GPT2_BLOCK) | {"score": "head"},
    "gpt_neox": under(
        "gpt_neox.layers.N.",
        f"""attention.query_key_value=attn.qkv attention.dense=attn.o {NEOX_MLP}
        input_layernorm=norm.attn post_attention_layernorm=norm.mlp""",
    )
    | under("gpt_neox.", "embed_in=embed final_layer_norm=norm.final")
    | HEAD,
    "gptj": gpt(
        """ln_1=norm.attn attn.q_proj=attn.q attn.k_proj=attn.k attn.v_proj=attn.v attn.out_proj=attn.o
        mlp.fc_in=mlp.up mlp.fc_out=mlp.down""",
        positions=False,
    )
    | HEAD,
    "gpt_neo": gpt(
        """ln_1=norm.attn attn.attention.q_proj=attn.q attn.attention.k_proj=attn.k attn.attention.v_proj=attn.v
        attn.attention.out_proj=attn.o ln_2=norm.mlp mlp.c_fc=mlp.up mlp.c_proj=mlp.down"""
    )
    | HEAD,
    "opt": under("model.decoder.layers.N.", BART_ATTENTION + BART_MLP)
    | under("model.decoder.", "embed_tokens=embed embed_positions=embed.position final_layer_norm=norm.final")
    | HEAD,
    "bloom": under(
        "transformer.h.N.",
        f"""self_attention.query_key_value=attn.qkv self_attention.dense=attn.o {NEOX_MLP}
        input_layernorm=norm.attn post_attention_layernorm=norm.mlp""",
    )
    | under("transformer.", "word_embeddings=embed word_embeddings_layernorm=norm.embed ln_f=norm.final")
    | HEAD,
    "falcon": under(
        "transformer.h.N.",
        f"""self_attention.query_key_value=attn.qkv self_attention.dense=attn.o {NEOX_MLP}
        ln_attn=norm.attn ln_mlp=norm.mlp""",
    )
    | under("transformer.", "word_embeddings=embed ln_f=norm.final")
    | HEAD,
    "mpt": under(
        "transformer.blocks.N.",
        """norm_1=norm.attn attn.Wqkv=attn.qkv attn.out_proj=attn.o norm_2=norm.mlp
        ffn.up_proj=mlp.up ffn.down_proj=mlp.down""",
    )
    | under("transformer.", "wte=embed norm_f=norm.final")
    | HEAD,
    "codegen": gpt(
        "ln_1=norm.attn attn.qkv_proj=attn.qkv attn.out_proj=attn.o mlp.fc_in=mlp.up mlp.fc_out=mlp.down",
        positions=False,
    )
    | HEAD,
    "bert": bert("bert") | MLM,
    "bert-classify": bert("bert") | {"bert.pooler.dense": "pooler", "classifier": "head"},
    "roberta": bert("roberta") | under("lm_head.", "dense=head.transform layer_norm=norm.head decoder=head.lm"),
    "roberta-classify": bert("roberta") | under("classifier.", "dense=head out_proj=head"),
    "electra": bert("electra")
    | {"electra.embeddings_project": "embed.project", "generator_lm_head": "head.lm"}
    | under("generator_predictions.", "dense=head.transform LayerNorm=norm.head"),
    "distilbert": under("distilbert.transformer.layer.N.", DISTILBERT_BLOCK)
    | under("distilbert.embeddings.", DISTILBERT_EMBEDDINGS)
    | under("vocab_", "transform=head.transform layer_norm=norm.head projector=head.lm"),
    "distilbert-classify": under("distilbert.transformer.layer.N.", DISTILBERT_BLOCK)
    | under("distilbert.embeddings.", DISTILBERT_EMBEDDINGS)
    | under("", "pre_classifier=head classifier=head"),
    "deberta-v2": under(
        "deberta.encoder.layer.N.",
        """attention.self.query_proj=attn.q attention.self.key_proj=attn.k attention.self.value_proj=attn.v
        attention.self.pos_query_proj=attn.pos_q attention.self.pos_key_proj=attn.pos_k attention.output.dense=attn.o
        attention.output.LayerNorm=norm.attn intermediate.dense=mlp.up output.dense=mlp.down
        output.LayerNorm=norm.mlp""",
    )
    | under("deberta.embeddings.", "word_embeddings=embed position_embeddings=embed.position LayerNorm=norm.embed")
    | {"deberta.encoder.LayerNorm": "norm.embed"}
    | MLM,
    "modernbert": under(
        "model.layers.N.",
        "attn.Wqkv=attn.qkv attn.Wo=attn.o attn_norm=norm.attn mlp.Wi=mlp.gate_up mlp.Wo=mlp.down mlp_norm=norm.mlp",
    )
    | under("model.", "embeddings.tok_embeddings=embed embeddings.norm=norm.embed final_norm=norm.final")
    | under("", "head.dense=head.transform head.norm=norm.head decoder=head.lm"),
    "albert": under(
        "albert.encoder.albert_layer_groups.N.albert_layers.N.",
        """attention.query=attn.q attention.key=attn.k attention.value=attn.v attention.dense=attn.o
        attention.LayerNorm=norm.attn ffn=mlp.up ffn_output=mlp.down full_layer_layer_norm=norm.mlp""",
    )
    | under("albert.embeddings.", BERT_EMBEDDINGS)
    | {"albert.encoder.embedding_hidden_mapping_in": "embed.project"}
    | under("predictions.", "dense=head.transform LayerNorm=norm.head decoder=head.lm"),
    "t5": t5("wi=mlp.up wo=mlp.down"),
    "flan-t5": t5("wi_0=mlp.gate wi_1=mlp.up wo=mlp.down"),
    "bart": bart(final_norm=False),
    "mbart": bart(final_norm=True),
    "mamba": under(
        "backbone.layers.N.",
        "norm=norm.mixer mixer.in_proj=mixer.in mixer.x_proj=mixer.x mixer.dt_proj=mixer.dt mixer.out_proj=mixer.out",
    )
    | under("backbone.", "embeddings=embed norm_f=norm.final")
    | HEAD,
    "rwkv": under(
        "rwkv.blocks.N.",
        """pre_ln=norm.embed ln1=norm.mixer ln2=norm.mlp attention.key=mixer.k attention.value=mixer.v
        attention.receptance=mixer.r attention.output=mixer.out
        feed_forward.key=mlp.up feed_forward.value=mlp.down feed_forward.receptance=mixer.r""",
    )
    | under("", "rwkv.embeddings=embed rwkv.ln_out=norm.final head=head.lm"),
    "qwen3_moe": llama(f"{LLAMA_BLOCK} {QK_NORMS} {EXPERTS}"),
    "deepseek_v2": llama(
        f"""self_attn.q_a_proj=attn.q_a self_attn.q_a_layernorm=norm.q self_attn.q_b_proj=attn.q_b
        self_attn.kv_a_proj_with_mqa=attn.kv_a self_attn.kv_a_layernorm=norm.kv self_attn.kv_b_proj=attn.kv_b
        self_attn.o_proj=attn.o {GATED_MLP} {EXPERTS} mlp.shared_experts.gate_proj=mlp.gate
        mlp.shared_experts.up_proj=mlp.up mlp.shared_experts.down_proj=mlp.down
        input_layernorm=norm.attn post_attention_layernorm=norm.mlp"""
    ),
    "jamba": llama(
        f"""{LLAMA_ATTENTION} mamba.in_proj=mixer.in mamba.x_proj=mixer.x mamba.dt_proj=mixer.dt
        mamba.out_proj=mixer.out mamba.dt_layernorm=norm.mixer mamba.b_layernorm=norm.mixer
        mamba.c_layernorm=norm.mixer feed_forward.gate_proj=mlp.gate feed_forward.up_proj=mlp.up
        feed_forward.down_proj=mlp.down feed_forward.router.weight=mlp.router
        feed_forward.experts.gate_up_proj=experts.gate_up feed_forward.experts.down_proj=experts.down
        pre_ff_layernorm=norm.mlp""",
        norm="final_layernorm",
    )
    | {"model.layers.0.input_layernorm": "norm.mixer", "model.layers.1.input_layernorm": "norm.attn"},
    "llama-classify": llama() | {"score": "head"},
}
del GOLDEN["llama-classify"]["lm_head"]
