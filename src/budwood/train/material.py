"""The model, tokenizer and encoded rows of a job."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_QUESTION_ANSWERING_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedModel,
)

from budwood.assets import (
    ModelRef,
    load_model,
    load_tokenizer,
    resolve_data,
    resolve_model,
    stored_context,
    stored_kind,
    stored_labels,
)
from budwood.core import base_state_dict
from budwood.data import (
    Corpus,
    Encoded,
    Example,
    encode,
    for_encoder_decoder,
    read,
    with_cloze,
    with_validation,
)
from budwood.data.spans import LENGTH
from budwood.errors import BadConfig
from budwood.evaluate.generate import context_of
from budwood.train.job import Job
from budwood.train.randomness import same_randomness, seed_everything

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 1024
"""Tokens a row keeps where nobody says, unless the model can read fewer."""
LEAST = 8
"""Positions that a prompt has to leave for text."""


@dataclass(frozen=True)
class Source:
    """Where the base comes from, so that it can be had afresh."""

    ref: ModelRef | None
    """A model on this disk."""
    given: PreTrainedModel | None
    """The user's own object."""
    task: str
    labels: tuple[str, ...] | None
    trust_remote_code: bool = False

    def load(self, dtype: torch.dtype | None, *, seed: int) -> PreTrainedModel:
        """The model to train: from disk, a new head drawn from `seed`, or the user's own object as it is."""
        if self.given is not None:
            return self.given
        return self.fresh(dtype, seed=seed)

    def fresh(self, dtype: torch.dtype | None, *, seed: int) -> PreTrainedModel:
        """Another copy of the base with nothing attached; the generators are left alone."""
        with same_randomness():
            seed_everything(seed)
            if self.ref is not None:
                return load_model(
                    self.ref,
                    task=self.task,  # type: ignore[arg-type]
                    labels=self.labels,
                    dtype=dtype,
                    trust_remote_code=self.trust_remote_code,
                )
            assert self.given is not None
            return base_copy(self.given)


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a job works on."""

    corpus: Corpus
    """All rows, with a validation split."""
    tokenizer: Any
    train: Encoded
    """What is learned."""
    valid: tuple[Example, ...]
    """Rows scored while training; empty if there are none."""
    held_split: str | None
    """The split of the final scores: test, else validation."""
    max_length: int
    """Tokens a row keeps."""
    source: Source
    pad_id: int

    @property
    def identity(self) -> dict[str, str]:
        """What a resumed run must find unchanged."""
        return {"data": self.corpus.hash()[:16], "encoded rows": digest_of(self.train.examples)}

    def held(self, most: int) -> Corpus:
        """The corpus with at most `most` rows, evenly spread, in the split of the final scores."""
        assert self.held_split is not None
        rows = self.corpus.rows(self.held_split)
        return self.corpus.replace_splits({**self.corpus.splits, self.held_split: tuple(spread(rows, most))})


def gather(job: Job, *, say: Callable[[str], None] | None = None) -> Material:
    """Resolve, read and encode; the model's weights are not loaded yet.

    say: called with a line for people where a recipe works on the rows; None leaves them as they are
    Raises NotAvailable, BadData, BadConfig as assets and data do.
    """
    given = job.model if isinstance(job.model, PreTrainedModel) else None
    if given is not None and job.tokenizer is None:
        raise BadConfig("a loaded model needs its tokenizer: train(model, data, tokenizer=tokenizer)")
    if given is None and not isinstance(job.model, str | Path):
        raise BadConfig(f"model is a {type(job.model).__name__}; give a name, a folder, or a transformers model")
    ref = None if given is not None else resolve_model(job.model, offline=job.offline)
    tokenizer = job.tokenizer or load_tokenizer(_needed(ref), trust_remote_code=job.trust_remote_code)
    corpus = _corpus(job, ref, given)
    if given is not None:
        check_kind(given, corpus.task)
    limit = _max_length(job, corpus.task, tokenizer, given, ref)
    if job.recipe is not None:
        corpus = job.recipe.rewrite(job, corpus, limit, say)
    train, valid = encode_rows(job, corpus, tokenizer, max_length=limit, stop_ids=_stops(given))
    return Material(
        corpus=corpus,
        tokenizer=tokenizer,
        train=train,
        valid=valid,
        held_split=next((split for split in ("test", "validation") if split in corpus.splits), None),
        max_length=limit,
        source=Source(ref, given, corpus.task, corpus.labels, job.trust_remote_code),
        pad_id=pad_id(tokenizer),
    )


def digest_of(examples: Sequence[Example]) -> str:
    """16 hex digits of what is read and learned."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example.ids, example.labels, example.label, example.span)).encode())
        if example.target is not None or example.blank is not None:
            digest.update(repr((example.target, example.blank)).encode())
    return digest.hexdigest()[:16]


def encode_rows(
    job: Job, corpus: Corpus, tokenizer: Any, *, max_length: int | None, stop_ids: Collection[int] = ()
) -> tuple[Encoded, tuple[Example, ...]]:
    """(what is learned, the rows scored while training) of a job, as a tokenizer reads them."""
    settings: dict[str, Any] = {"template": job.template, "max_length": max_length, "stop_ids": stop_ids}
    train = encode(corpus, "train", tokenizer, **settings)
    if "validation" not in corpus.splits:
        return train, ()
    rows = corpus.replace_splits({"validation": tuple(spread(corpus.rows("validation"), job.config.eval_rows))})
    return train, tuple(encode(rows, "validation", tokenizer, **settings).examples)


def base_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same class and base weights, built anew: nothing attached, nothing shared."""
    fresh = type(model)(copy.deepcopy(model.config))
    fresh.load_state_dict({k: v.detach().clone() for k, v in base_state_dict(model).items()}, assign=True)
    fresh.tie_weights()
    if model.can_generate():
        fresh.generation_config = copy.deepcopy(model.generation_config)
    for parameter in fresh.parameters():
        parameter.requires_grad_(True)
    return fresh.to(model.device).eval()


def spread(rows: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the rows, evenly spaced, in their order."""
    count = min(most, len(rows))
    return [rows[len(rows) * place // count] for place in range(count)]


def _corpus(job: Job, ref: ModelRef | None, given: PreTrainedModel | None) -> Corpus:
    """The rows, with classes in the order of the model's own head where it has one for them."""
    source = job.data
    if isinstance(source, str | Path):
        source = resolve_data(source, offline=job.offline)
    corpus = read(source, columns=job.columns, task=job.task)
    kind = _kind_of(given) if given is not None else stored_kind(_needed(ref), trust_remote_code=job.trust_remote_code)
    if job.task is None and kind == "encoder-decoder":
        corpus = for_encoder_decoder(corpus)
    if job.cloze is not None:
        corpus = with_cloze(corpus, job.cloze.for_model(is_masked=kind == "encoder"))
    if corpus.task in ("classification", "token-classification"):
        stored = stored_labels(ref, trust_remote_code=job.trust_remote_code) if ref is not None else _labels_of(given)
        if stored is not None and corpus.labels != stored and set(corpus.labels or ()) <= set(stored):
            corpus = read(source, columns=job.columns, task=job.task, labels=stored)
        if given is not None and len(corpus.labels or ()) != given.config.num_labels:
            raise BadConfig(
                f"the data has {len(corpus.labels or ())} classes and the model's head {given.config.num_labels}; "
                f"load the model with num_labels={len(corpus.labels or ())}"
            )
    config = job.config
    return with_validation(corpus, seed=config.seed if config.split_seed is None else config.split_seed)


def _labels_of(model: PreTrainedModel | None) -> tuple[str, ...] | None:
    if model is None:
        return None
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    return None if names == tuple(f"LABEL_{number}" for number in range(len(names))) else names


def _kind_of(model: PreTrainedModel) -> Literal["decoder", "encoder", "encoder-decoder"]:
    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    kind = type(model.config)
    is_masked = kind in MODEL_FOR_MASKED_LM_MAPPING and type(model) is MODEL_FOR_MASKED_LM_MAPPING[kind]
    return "encoder" if is_masked else "decoder"


def check_kind(model: PreTrainedModel, task: str) -> None:
    """Raise BadConfig for a user's own model of a class that is made for something else."""
    name, kind = type(model).__name__, _kind_of(model)
    if task == "masked-lm" and kind != "encoder":
        raise BadConfig(
            f"model is a {name}, which cannot fill in hidden words; load it with transformers.AutoModelForMaskedLM"
        )
    if task == "seq2seq" and (kind != "encoder-decoder" or model.get_output_embeddings() is None):
        raise BadConfig(
            f"model is a {name}, which does not turn one text into another; load an encoder-decoder with "
            "transformers.AutoModelForSeq2SeqLM, or let a decoder learn with task causal-lm"
        )
    if task == "causal-lm" and kind == "encoder-decoder":
        raise BadConfig(f"model is a {name}, an encoder-decoder; give rows of source and target, and task seq2seq")
    if task == "cloze" and (kind == "encoder-decoder" or model.get_output_embeddings() is None):
        raise BadConfig(
            f"model is a {name}, which names no words; load it with transformers.AutoModelForMaskedLM or "
            "AutoModelForCausalLM"
        )
    _check_form(model, task)


FORMS: Mapping[str, tuple[Mapping[Any, Any], str, str]] = {
    "token-classification": (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, "tag words", "TokenClassification"),
    "question-answering": (MODEL_FOR_QUESTION_ANSWERING_MAPPING, "find answers", "QuestionAnswering"),
}
"""The classes that can do a task, what that is, and the end of the name that loads them."""


def _check_form(model: PreTrainedModel, task: str) -> None:
    """Raises BadConfig for a loaded model of another form than its task needs."""
    if task not in FORMS:
        return
    classes, what, form = FORMS[task]
    kind = type(model.config)
    if kind not in classes or type(model) is not classes[kind]:
        raise BadConfig(
            f"model is a {type(model).__name__}, which cannot {what}; load it with transformers.AutoModelFor{form}"
        )


def _max_length(
    job: Job, task: str, tokenizer: PreTrainedTokenizerBase, given: PreTrainedModel | None, ref: ModelRef | None
) -> int:
    if job.config.max_length is not None:
        return job.config.max_length
    limits = [LENGTH if task == "question-answering" else LONGEST, tokenizer.model_max_length]
    taken = job.method.positions_taken
    if given is not None:
        context = context_of(given)
    else:
        context = stored_context(_needed(ref), trust_remote_code=job.trust_remote_code)
    if context is not None:
        limits.append(context)
    if taken and taken + LEAST > min(limits[1:]):
        raise BadConfig(
            f"{job.method.name} takes {taken} positions and the model reads {min(limits[1:])}, which leaves fewer than "
            f"{LEAST} for text; choose a smaller length"
        )
    return min(limits[0], min(limits[1:]) - taken)


def _stops(given: PreTrainedModel | None) -> tuple[int, ...]:
    if given is None or not given.can_generate() or given.generation_config is None:
        return ()
    own = given.generation_config.eos_token_id
    return () if own is None else tuple(own) if isinstance(own, list) else (int(own),)


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills short rows. Raises BadConfig where there is none."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if pad is None:
        raise BadConfig("this tokenizer has neither a pad nor an eos token to fill rows with; set tokenizer.pad_token")
    return int(pad)


def _needed(ref: ModelRef | None) -> ModelRef:
    assert ref is not None
    return ref
