"""Reading a model from a GGUF file: dequantised, and then as free of it as if it had never been one."""

from __future__ import annotations

import json
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from budwood.assets.quiet import quiet
from budwood.errors import BadCheckpoint, NotAvailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path


def require_gguf(path: Path) -> None:
    """Raises NotAvailable, with the install line, if the optional package that reads GGUF files is absent."""
    if find_spec("gguf") is None:
        raise NotAvailable(f"reading {path.name} needs the optional package gguf; type: pip install 'budwood[demo]'")


def read_config(path: Path) -> Any:
    """Returns the configuration that a GGUF file carries.  Raises BadCheckpoint if it cannot be read."""
    from transformers import AutoConfig

    with _explained(path, "configuration"):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)


def read_model(auto_class: Any, path: Path, settings: Mapping[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
    """Returns (model in float32, transformers' loading report) from a GGUF file, read by one of the Auto classes.

    settings: named arguments for that class's from_pretrained
    Raises BadCheckpoint if the file is no GGUF model that transformers can read.
    """
    import torch

    with _explained(path, "model"):
        model, report = auto_class.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True, **(settings or {})
        )
    _forget_quantisation(model)
    return model, report


def read_tokenizer(path: Path) -> Any:
    """Returns the tokenizer that a GGUF file carries.  Raises BadCheckpoint if it carries none that can be read."""
    from transformers import AutoTokenizer

    with _explained(path, "tokenizer"):
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    """A parser of a foreign file may fail in any way; whichever it is, the file cannot be read."""
    require_gguf(path)
    try:
        with quiet():
            yield
    except MemoryError:
        raise
    except Exception as problem:
        said = f"{type(problem).__name__}: {problem}"
        raise BadCheckpoint(f"no {what} can be read from {path} ({said}); fetch the file again") from problem


def convert(path: Path, out: Path, *, context: int) -> int:
    """Writes a GGUF model and its tokenizer to the folder `out`, as bfloat16 safetensors; returns its parameter count.

    context: longest input in tokens that the tokenizer is to announce
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = read_tokenizer(path)
    model, _ = read_model(AutoModelForCausalLM, path)
    model = model.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    with quiet():
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    (out / "tokenizer.model").unlink(missing_ok=True)  # some versions of transformers put the whole GGUF there
    _mend(
        out / "tokenizer_config.json",
        drop=("is_local", "local_files_only", "backend"),
        # any class that reads tokenizer.json as it stands; the architecture's own would rebuild it, and differently
        put={"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context},
    )
    # GGUF keeps 1e-5 as a float32, which prints as 9.999999747378752e-06
    _mend(
        out / "config.json",
        drop=("_name_or_path", "_model_name_or_path"),
        put={"rms_norm_eps": round(model.config.rms_norm_eps, 12)},
    )
    return int(model.num_parameters())


def _forget_quantisation(model: Any) -> None:
    """The weights are plain tensors by now; transformers refuses to save them as long as it remembers the file."""
    model.hf_quantizer = None
    for holder in (model, model.config):
        for name in ("quantization_config", "quantization_method", "is_quantized", "_is_quantized"):
            vars(holder).pop(name, None)


def _mend(path: Path, *, drop: tuple[str, ...], put: dict[str, str | int | float]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in content.items() if name not in drop}
    path.write_text(json.dumps({**kept, **put}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
