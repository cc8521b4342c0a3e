"""Token ids in a model's configurations: which there are, and the same configurations with new ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from budwood.errors import BadConfig

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

ENDINGS = ("_token_id", "_token_ids", "_tokens_ids")
"""How fields that hold token ids are called,"""
LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
"""and those that are called otherwise."""
UNREADABLE = ("sequence_bias", "forced_decoder_ids")
"""Fields in which ids stand among other numbers."""


def ids_in(model: PreTrainedModel, rows: int) -> set[int]:
    """Every token id below `rows` that the model's configuration, or that of its generation, names.

    Raises BadConfig for a setting in which ids cannot be told from other numbers.
    """
    found: set[int] = set()
    for owner in _configs(model):
        for name, value in _fields(owner):
            if name in UNREADABLE:
                raise BadConfig(
                    f"the generation config sets {name}, whose token ids would all change; set it to None before the "
                    "vocabulary is cut"
                )
            found |= {number for number in _flat(value) if 0 <= number < rows}
    return found


def configured(model: PreTrainedModel, new: Mapping[int, int]) -> tuple[PreTrainedConfig, GenerationConfig | None]:
    """Copies of the model's configuration and of that of its generation, with new ids and as many tokens as stay."""
    config = deepcopy(model.config)
    for owner in _parts(config):
        _renumber(owner, new)
    config.get_text_config().vocab_size = len(new)
    if not model.can_generate():
        return config, None
    generation = deepcopy(model.generation_config)
    _renumber(generation, new)
    return config, generation


def _renumber(owner: PreTrainedConfig | GenerationConfig, new: Mapping[int, int]) -> None:
    for name, value in _fields(owner):
        setattr(owner, name, _renumbered(value, new))


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_renumbered(entry, new) for entry in value)
    return new.get(value, value)


def _configs(model: PreTrainedModel) -> Iterator[PreTrainedConfig | GenerationConfig]:
    yield from _parts(model.config)
    if model.can_generate():
        yield model.generation_config


def _parts(config: PreTrainedConfig) -> Iterator[PreTrainedConfig]:
    """The configuration and those inside it, of text and other things."""
    yield config
    for name in config.sub_configs:
        if (inner := vars(config).get(name)) is not None:
            yield from _parts(inner)


def _fields(owner: PreTrainedConfig | GenerationConfig) -> list[tuple[str, Any]]:
    """The settings of one configuration that hold token ids, and are set."""
    return [
        (name, value)
        for name, value in vars(owner).items()
        if (name.endswith(ENDINGS) or name in LISTS or name in UNREADABLE) and value is not None
    ]


def _flat(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _flat(entry)
    elif isinstance(value, int):
        yield value
