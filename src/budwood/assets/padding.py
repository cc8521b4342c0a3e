"""Which token fills up short rows: one that the tokenizer already has, so that no embedding has to be added."""

from __future__ import annotations

from typing import Any

from budwood.errors import BadCheckpoint


def ensure_padding(tokenizer: Any, name: str) -> str | None:
    """Gives a tokenizer without a padding token one of its own tokens for it.

    Returns what was chosen, as a sentence; None if it had one.
    Raises  BadCheckpoint if it has no token that could serve.
    """
    if tokenizer.pad_token is not None:
        return None
    specials = [entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special]
    for token, why in (
        (_first_with(specials, "pad"), "made for it"),
        (_first_with(specials, "reserved", "unused"), "otherwise unused"),
        (tokenizer.eos_token, "the end-of-text token; padding is masked, so the two are not confused"),
        (tokenizer.unk_token, "the unknown token"),
    ):
        if token is not None:
            tokenizer.pad_token = token
            return f"{name}: the tokenizer has no padding token; short rows are filled with {token!r} ({why})"
    raise BadCheckpoint(
        f"{name}: the tokenizer has no padding token, and none that could serve; set pad_token in tokenizer_config.json"
    )


def _first_with(tokens: list[str], *words: str) -> str | None:
    return next((token for token in tokens if any(word in token.lower() for word in words)), None)
