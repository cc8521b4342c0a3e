"""Tiny models with random weights, saved as a hub would serve them, and a hub on this machine that serves them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from tiny_tokenizers import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 420,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def save_llama(folder: Path, *, tokenizer: bool = True, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 1, **settings}))
    return _save(model, folder, tokenizer)


def save_bert(folder: Path, *, tokenizer: bool = True, labels: tuple[str, ...] = ()) -> Any:
    torch.manual_seed(2)
    named = (
        {"id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)}}
        if labels
        else {}
    )
    config = BertConfig(**SIZES, **named)
    return _save(BertForSequenceClassification(config) if labels else BertForMaskedLM(config), folder, tokenizer)


def save_t5(folder: Path) -> Any:
    torch.manual_seed(3)
    sizes = {"vocab_size": 420, "d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    return _save(T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)), folder, True)


def _save(model: Any, folder: Path, tokenizer: bool) -> Any:
    model.eval().save_pretrained(folder)
    if tokenizer:
        make_tokenizer().save_pretrained(folder)
    return model


@contextmanager
def small_hub(repositories: dict[str, Path], *, gated: tuple[str, ...] = ()) -> Iterator[tuple[str, list[str]]]:
    """Serves folders as repositories on the loopback address; yields (its address, the list of paths asked for)."""
    asked: list[str] = []

    def tree(repo: str) -> list[dict[str, Any]]:
        files = sorted(repositories[repo].iterdir())
        return [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0" * 40} for path in files]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            if "/tree/" in path:
                return self.answer(200, json.dumps(tree("/".join(path.split("/")[3:5]))).encode(), {})
            if path.startswith(("/api/models/", "/api/datasets/")):
                return self.list_files("/".join(path.split("/")[3:5]))
            if "/resolve/" not in path:
                return self.answer(404, b"", {})
            repo, _, file = path.lstrip("/").partition("/resolve/")
            return self.send_file(repositories[repo] / file.partition("/")[2])

        def list_files(self, repo: str) -> None:
            if repo in gated:
                return self.answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask first"})
            if repo not in repositories:
                return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            files = [
                {"rfilename": path.name, "size": path.stat().st_size} for path in sorted(repositories[repo].iterdir())
            ]
            return self.answer(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": files}).encode(), {})

        def send_file(self, path: Path) -> None:
            if not path.exists():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            content = path.read_bytes()
            return self.answer(200, content, {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


def save_gguf(path: Path) -> LlamaForCausalLM:
    """A tiny Llama as a GGUF file in float32, its tokenizer inside; returns the model that it must give."""
    import gguf
    from gguf.constants import MODEL_ARCH, MODEL_TENSOR, TENSOR_NAMES

    torch.manual_seed(4)
    tokenizer = make_tokenizer()
    words = [word for word, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])]
    config = LlamaConfig(**{**SIZES, "vocab_size": len(words)}, max_position_embeddings=64)
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[MODEL_ARCH.LLAMA])
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3 if word in tokenizer.all_special_tokens else 1 for word in words])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = gguf.get_tensor_name_map(MODEL_ARCH.LLAMA, config.num_hidden_layers)
    assert TENSOR_NAMES[MODEL_TENSOR.TOKEN_EMBD] == "token_embd"
    for name, value in model.state_dict().items():
        stored = names.get_name(name, try_suffixes=(".weight",))
        heads = config.num_attention_heads
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # GGUF keeps the halves of a rotary pair side by side
            value = value.view(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(stored, value.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
