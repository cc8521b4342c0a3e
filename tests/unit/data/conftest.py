"""Tokenizers and a file writer for the data tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiny_tokenizers import CHATML, make_tokenizer


@pytest.fixture(scope="session")
def chatml() -> Any:
    return make_tokenizer(CHATML, eos="<|im_end|>")


@pytest.fixture(scope="session")
def base() -> Any:
    return make_tokenizer()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """write("faq.jsonl", [row, ...]) or write("a.txt", "text" or b"bytes") -> the path."""

    def write_file(name: str, content: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_bytes(content.encode())
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path

    return write_file
