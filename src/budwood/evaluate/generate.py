"""Answers to prompts, in batches: left padded, greedy or sampled, the same whatever the batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from transformers import GenerationConfig, LogitsProcessorList

from budwood.core import positions_taken
from budwood.data import Example, Turn, collate, encode_prompts, encode_sources
from budwood.data.encode import ENDLESS
from budwood.data.templates import style_for
from budwood.errors import BadConfig, BadData
from budwood.evaluate.ensemble import Ensemble
from budwood.evaluate.mode import evaluating
from budwood.evaluate.sampling import Draw, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from budwood.data.templates import Template

Prompt: TypeAlias = str | Sequence[Turn] | Sequence[Mapping[str, str]]
"""Text that goes to the model as it is; or turns, or messages with role and content, written as in training."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer."""

    text: str
    """Without special tokens."""
    ids: tuple[int, ...]
    """The new tokens, without the stop token."""
    stopped: bool
    """Whether the model ended it with a stop token; False if `max_new_tokens` did."""


def generate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    sampling: Sampling | None = None,
    batch_size: int = 8,
    template: Template = "auto",
    stop_ids: Collection[int] = (),
) -> list[str]:
    """The texts of `complete`."""
    answers = complete(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        batch_size=batch_size,
        template=template,
        stop_ids=stop_ids,
    )
    return [answer.text for answer in answers]


def complete(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 128,
    max_source: int | None = None,
    sampling: Sampling | None = None,
    batch_size: int = 8,
    template: Template = "auto",
    stop_ids: Collection[int] = (),
    ensemble: Ensemble | None = None,
) -> list[Generation]:
    """Answers in the order of the prompts, by the model with the adapters as they are; greedy without `sampling`.

    Prompts of like length share a batch.  The model's own repetition penalty and the like are not used.
    max_source: tokens of its beginning that an encoder-decoder reads, as in training; None cuts nothing
    template: how turns are written: 'chat', 'plain', or 'auto' for chat where the tokenizer has a template
    stop_ids: stop tokens besides the tokenizer's, the template's and the model's generation config's
    ensemble: the adapters that vote on each answer; without it, the model as it is
    Raises   BadConfig for a model that does not generate; BadData, with its number, for a prompt that is empty or does
             not fit the model's context.
    """
    if not model.can_generate():
        raise BadConfig(f"{type(model).__name__} does not generate text; load the model as a causal language model")
    if max_new_tokens < 1 or batch_size < 1:
        raise BadConfig(f"max_new_tokens is {max_new_tokens}, batch_size {batch_size}; both must be at least 1")
    if model.config.is_encoder_decoder:
        sources = ["\n".join(turn.content for turn in _turns(prompt)) for prompt in prompts]
        examples = encode_sources(sources, tokenizer, max_length=max_source)
        _check_lengths(examples, 0, room_of(model))
        max_new_tokens = min(max_new_tokens, (context_of(model) or ENDLESS) - 1)  # behind the start token
    else:
        examples = _encoded(prompts, tokenizer, template)
        _check_lengths(examples, max_new_tokens, room_of(model))
    stops = stop_tokens(model, tokenizer, template, stop_ids)
    order = sorted(range(len(examples)), key=lambda place: -len(examples[place].ids))
    found: dict[int, Generation] = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            rows = continued(model, [examples[i] for i in chosen], chosen, stops, max_new_tokens, sampling, ensemble)
            answers = [_cut(row, stops, tokenizer) for row in rows]
            for place, number in enumerate(chosen):
                of_each = answers[place :: len(chosen)]
                found[number] = of_each[ensemble.vote([one.text.strip() for one in of_each]) if ensemble else 0]
    return [found[place] for place in range(len(examples))]


def stop_tokens(
    model: Any, tokenizer: PreTrainedTokenizerBase, template: Template = "auto", more: Collection[int] = ()
) -> tuple[int, ...]:
    """Every token that ends an answer: of the generation config, of the tokenizer, of the template, and `more`.

    Raises BadConfig if there is none.
    """
    own = model.generation_config.eos_token_id
    stops = {*more, *(own if isinstance(own, list | tuple) else [own])} - {None}
    if tokenizer.eos_token_id is not None:
        stops.update(style_for(tokenizer, template, sorted(stops)).stops.values())
    if not stops:
        raise BadConfig("nothing ends an answer: neither tokenizer nor generation config has an eos token; set one")
    return tuple(sorted(int(stop) for stop in stops))


def context_of(model: Any) -> int | None:
    """Tokens that fit the model's positions, as its configuration says; None where it names no limit."""
    config = model.config.get_text_config().to_dict()
    limits = [config[name] for name in ("max_position_embeddings", "n_positions") if config.get(name)]
    return int(limits[0]) if limits and limits[0] > 0 else None


def room_of(model: Any) -> int | None:
    """The positions that a text has beside the prompts in force; None where the model names no limit."""
    context = context_of(model)
    return None if context is None else context - positions_taken(model)


def longest_of(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that a text may have for this model and tokenizer; None where neither names a limit."""
    limits = [tokenizer.model_max_length, room_of(model) or ENDLESS]
    return int(min(limits)) if min(limits) < ENDLESS else None


def _encoded(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, template: Template) -> list[Example]:
    """Prompts as token ids, in their order; all get the special tokens that stand in front in training."""
    examples: dict[int, Example] = {}
    ways: tuple[tuple[bool, Template], ...] = ((True, "plain"), (False, template))
    for is_text, written in ways:
        places = [place for place, prompt in enumerate(prompts) if isinstance(prompt, str) == is_text]
        turns = [_turns(prompts[place]) for place in places]
        if places:
            examples.update(zip(places, encode_prompts(turns, tokenizer, template=written), strict=True))
    return [examples[place] for place in range(len(prompts))]


def _turns(prompt: Prompt) -> list[Turn]:
    if isinstance(prompt, str):
        return [Turn("user", prompt)]
    turns = []
    for turn in prompt:
        if isinstance(turn, Turn):
            turns.append(turn)
        elif turn.get("role") in ("system", "user", "assistant") and isinstance(turn.get("content"), str):
            turns.append(Turn(turn["role"], turn["content"]))  # type: ignore[arg-type]
        else:
            raise BadData(f"a message is {dict(turn)}; it needs a role (system, user or assistant) and a content")
    return turns


def _check_lengths(examples: Sequence[Example], max_new_tokens: int, context: int | None) -> None:
    for number, example in enumerate(examples, start=1):
        length = len(example.ids)
        if not length:
            raise BadData(f"prompt {number} is empty; give at least one word to go on from")
        if context is not None and length + max_new_tokens > context:
            raise BadData(
                f"prompt {number} has {length} tokens and {max_new_tokens} more do not fit the model's {context}; "
                f"shorten it, or ask for at most {context - length} new tokens"
                if length < context
                else f"prompt {number} has {length} tokens and the model takes {context}; shorten it"
            )


def continued(
    model: Any,
    examples: Sequence[Example],
    numbers: Sequence[int],
    stops: tuple[int, ...],
    max_new_tokens: int,
    sampling: Sampling | None,
    ensemble: Ensemble | None = None,
) -> list[list[int]]:
    """The new tokens of each row, a stop token and padding after it included; of an ensemble, adapter by adapter.

    numbers: of the rows, which their random streams go by
    """
    reads_apart = model.config.is_encoder_decoder
    batch = collate(examples, stops[0], "right" if reads_apart else "left").to(model.device)
    acting, times = (ensemble.acting(model, len(batch)), len(ensemble.parts)) if ensemble else (nullcontext(), 1)
    begun = model.generation_config
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(stops),
        pad_token_id=stops[0],
        bos_token_id=begun.bos_token_id,
        decoder_start_token_id=begun.decoder_start_token_id,
        forced_bos_token_id=begun.forced_bos_token_id,
    )
    processors = LogitsProcessorList([] if sampling is None else [Draw(sampling, [*numbers] * times)])
    batch = batch.repeated(times)
    with acting:
        ids = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=settings,
            logits_processor=processors,
        )
    new: list[list[int]] = ids[:, 1 if reads_apart else batch.input_ids.shape[1] :].tolist()
    return new


def _cut(ids: list[int], stops: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> Generation:
    """The answer up to its stop token."""
    end = next((place for place, token in enumerate(ids) if token in stops), None)
    kept = ids[:end]
    text = str(tokenizer.decode(kept, skip_special_tokens=True))
    return Generation(text=text, ids=tuple(kept), stopped=end is not None)
