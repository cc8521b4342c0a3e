"""Models and tokenizers into memory: safetensors only, complete or refused, and quiet."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from budwood.assets.gguf import read_config, read_model, read_tokenizer
from budwood.assets.padding import ensure_padding
from budwood.assets.quiet import quiet
from budwood.errors import BadCheckpoint, BadConfig, NotAvailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from budwood.assets.resolve import ModelRef

Task = Literal[
    "causal-lm", "classification", "masked-lm", "seq2seq", "cloze", "token-classification", "question-answering"
]
Kind = Literal["decoder", "encoder", "encoder-decoder"]
WITH_LABELS = ("classification", "token-classification")
"""Tasks whose head has an output for each label."""
NEW_HEADS = (*WITH_LABELS, "question-answering")
"""Tasks whose head may be new: it is trained, or useless."""

_log = logging.getLogger(__name__)


def load_model(
    ref: ModelRef,
    *,
    task: Task,
    labels: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Returns the model on the CPU, in evaluation mode, with a head for the task.

    labels: the classes, in the order of their numbers, for a new or retrained head; None keeps the stored head
    dtype:  of the weights; None keeps the stored one (float32 for GGUF)
    trust_remote_code: run the code that the model's folder brings along
    Raises  BadConfig if labels are wanting; BadCheckpoint if weights are missing or do not fit; NotAvailable if the
            model cannot do the task, or needs code or packages that are not there.
    """
    config = _read_config(ref, trust_remote_code)
    _check_task(ref, config, task)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if labels is not None and task in WITH_LABELS:
        settings.update(_label_settings(ref, config, labels))
    if task == "question-answering":
        settings.update(num_labels=2, **_moved_body(config))  # one output for where an answer begins, one for its end
    model, report = _read_weights(ref, _auto_class(task, config), dtype, settings)
    _check_report(ref, model, report, task, labels)
    _set_padding(ref, model, trust_remote_code)
    return model


def load_tokenizer(ref: ModelRef, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Returns the tokenizer, with a padding token that it already had in its vocabulary; never adds one.

    What was chosen for padding is logged.  Raises BadCheckpoint if there is no usable tokenizer; NotAvailable if it
    needs code of its own.
    """
    from transformers import AutoTokenizer

    if ref.kind == "gguf":
        tokenizer = read_tokenizer(ref.path)
    else:
        with _explained(ref, "tokenizer"), quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                ref.path, local_files_only=True, trust_remote_code=trust_remote_code
            )
    # transformers makes up an empty vocabulary where a folder has no tokenizer files
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise BadCheckpoint(f"{ref.name} has no tokenizer (tokenizer.json); copy the tokenizer's files into {ref.path}")
    chosen = ensure_padding(tokenizer, ref.name)
    if chosen is not None:
        _log.info(chosen)
    return tokenizer


def stored_labels(ref: ModelRef, *, trust_remote_code: bool = False) -> tuple[str, ...] | None:
    """Returns the labels that the checkpoint's own head was trained for, in order; None if it names none."""
    return _labels_of(_read_config(ref, trust_remote_code))


def stored_context(ref: ModelRef, *, trust_remote_code: bool = False) -> int | None:
    """Returns how many tokens fit the model's positions, as its configuration says; None if it names no limit."""
    config = _read_config(ref, trust_remote_code).get_text_config().to_dict()
    limits = [config[name] for name in ("max_position_embeddings", "n_positions") if config.get(name)]
    return int(limits[0]) if limits and limits[0] > 0 else None


def stored_kind(ref: ModelRef, *, trust_remote_code: bool = False) -> Kind:
    """Returns how the model reads and writes text, as its configuration says."""
    return _kind(_read_config(ref, trust_remote_code))


def _kind(config: Any) -> Kind:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if config.is_encoder_decoder:
        return "encoder-decoder"
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.to_dict().get("is_decoder", False)
    return "encoder" if is_encoder else "decoder"


def _labels_of(config: Any) -> tuple[str, ...] | None:
    named = config.to_diff_dict().get("id2label")
    if not named:
        return None
    return tuple(str(named[number]) for number in sorted(named, key=int))


def _read_config(ref: ModelRef, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if ref.kind == "gguf":
        return read_config(ref.path)
    _check_architecture(ref, trust_remote_code)
    with _explained(ref, "configuration"), quiet():
        return AutoConfig.from_pretrained(ref.path, local_files_only=True, trust_remote_code=trust_remote_code)


def _check_architecture(ref: ModelRef, trust_remote_code: bool) -> None:
    import transformers
    from transformers import CONFIG_MAPPING

    try:
        config = json.loads((ref.path / "config.json").read_text(encoding="utf-8"))
        kind, own_code = config.get("model_type"), config.get("auto_map")
    except (OSError, ValueError, AttributeError) as problem:
        raise BadCheckpoint(f"{ref.path / 'config.json'} cannot be read: {problem}; copy the file again") from problem
    if kind is None and own_code is None:
        raise BadCheckpoint(f"{ref.path / 'config.json'} names no model_type, so nobody can tell what model it is")
    if kind in CONFIG_MAPPING or (own_code and trust_remote_code):
        return
    if own_code:
        raise NotAvailable(
            f"{ref.name} brings Python code of its own ({kind}) and cannot be loaded without running it. "
            f"Read the .py files in {ref.path}; if you trust them, add --trust-remote-code to this run"
        )
    raise NotAvailable(
        f"{ref.name} is of the kind {kind!r}, which transformers {transformers.__version__} does not know; "
        f"a newer one may: pip install -U transformers"
    )


def _check_task(ref: ModelRef, config: Any, task: Task) -> None:
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_QUESTION_ANSWERING_MAPPING,
        MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    )

    kind, own_code = type(config), config.to_dict().get("auto_map") or {}
    heads = {
        "classification": (
            MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
            "SequenceClassification",
            "a classification head",
        ),
        "token-classification": (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING, "TokenClassification", "a head for tags"),
        "question-answering": (MODEL_FOR_QUESTION_ANSWERING_MAPPING, "QuestionAnswering", "a head for answers"),
    }
    if task in heads:
        mapping, form, words = heads[task]
        if kind not in mapping and f"AutoModelFor{form}" not in own_code:
            raise NotAvailable(f"{ref.name} ({config.model_type}) has no form with {words} in transformers")
        return
    if task == "masked-lm":
        if config.is_encoder_decoder or (
            kind not in MODEL_FOR_MASKED_LM_MAPPING and "AutoModelForMaskedLM" not in own_code
        ):
            raise NotAvailable(
                f"{ref.name} ({config.model_type}) is no masked LM: it cannot fill in hidden words. A decoder learns "
                f"plain text with --task causal-lm"
            )
        return
    if task == "seq2seq":
        if not config.is_encoder_decoder or (
            kind not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING and "AutoModelForSeq2SeqLM" not in own_code
        ):
            raise NotAvailable(
                f"{ref.name} ({config.model_type}) is no encoder-decoder, as T5 and BART are, which --task seq2seq "
                "needs. A decoder learns to answer with --task causal-lm"
            )
        return
    if config.is_encoder_decoder:
        raise NotAvailable(
            f"{ref.name} ({config.model_type}) is an encoder-decoder, and {task} needs a decoder"
            f"{' or an encoder' if task == 'cloze' else ''}; let it learn pairs of texts (source and target, prompt "
            "and completion, ...) with --task seq2seq, or name a causal LM such as demo-lm"
        )
    if task == "cloze" and _kind(config) == "encoder":
        return
    is_encoder = _kind(config) == "encoder"
    no_form = kind not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code
    if is_encoder or no_form:
        raise NotAvailable(
            f"{ref.name} ({config.model_type}) is no causal LM: it cannot continue a text. Use it with labelled data "
            f"(text and label), {'let it learn plain text with --task masked-lm, ' if is_encoder else ''}"
            f"or name a causal LM such as demo-lm"
        )


def _moved_body(config: Any) -> dict[str, Any]:
    """Some classes that find answers call the body by another name than all others of their family do."""
    from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, MODEL_MAPPING

    kind = type(config)
    if kind not in MODEL_FOR_QUESTION_ANSWERING_MAPPING or kind not in MODEL_MAPPING:
        return {}
    names = [mapping[kind].base_model_prefix for mapping in (MODEL_MAPPING, MODEL_FOR_QUESTION_ANSWERING_MAPPING)]
    return {} if names[0] == names[1] else {"key_mapping": {rf"^{names[0]}\.": f"{names[1]}."}}


def _label_settings(ref: ModelRef, config: Any, labels: Sequence[str]) -> dict[str, Any]:
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise BadConfig(f"labels are {list(labels)}; expected at least two, all different")
    stored = _labels_of(config)
    if stored is not None and set(stored) == set(labels) and stored != tuple(labels):
        raise BadConfig(
            f"{ref.name} has a head for these labels in another order, {list(stored)}; give them in that order"
        )
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }


def _auto_class(task: Task, config: Any) -> Any:
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForQuestionAnswering,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    classes = {
        "causal-lm": AutoModelForCausalLM,
        "classification": AutoModelForSequenceClassification,
        "masked-lm": AutoModelForMaskedLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "cloze": AutoModelForMaskedLM if _kind(config) == "encoder" else AutoModelForCausalLM,
        "token-classification": AutoModelForTokenClassification,
        "question-answering": AutoModelForQuestionAnswering,
    }
    return classes[task]


def _read_weights(
    ref: ModelRef, auto_class: Any, dtype: torch.dtype | None, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    if ref.kind == "gguf":
        model, report = read_model(auto_class, ref.path, settings)
        return (model if dtype is None else model.to(dtype)), report
    with _explained(ref, "weights"), quiet():
        model, report = auto_class.from_pretrained(
            ref.path,
            dtype="auto" if dtype is None else dtype,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # reported, and refused by us unless it is the head
            output_loading_info=True,
            **settings,
        )
    return model, report


def _check_report(ref: ModelRef, model: Any, report: dict[str, Any], task: Task, labels: Sequence[str] | None) -> None:
    """Every weight of the body must have come from the file; only a head of an encoder may be new."""
    misfits = {entry[0]: entry[1:] for entry in report["mismatched_keys"]}
    absent = set(report["missing_keys"]) | set(misfits)
    unnamed = set(report["missing_keys"]) - set(misfits) if _kind(model.config) == "encoder" else set()
    renewable = {**dict.fromkeys(NEW_HEADS, absent), "masked-lm": unnamed, "cloze": unnamed}
    new = {key for key in renewable.get(task, ()) if _is_head(model, key)}
    if lost := sorted(absent - new):
        shapes = (
            f" (stored {tuple(misfits[lost[0]][0])}, needed {tuple(misfits[lost[0]][1])})" if lost[0] in misfits else ""
        )
        raise BadCheckpoint(
            f"{ref.name}: {len(lost)} weights of {type(model).__name__} are missing or do not fit, "
            f"{lost[0]}{shapes} among them; the weights belong to another model than config.json says, or are cut off"
        )
    if new and labels is None and task in WITH_LABELS:
        raise BadConfig(f"{ref.name} has no {task} head yet; say which labels a new one is to have")
    if new:
        _log.info("%s: new, not yet trained: %s", ref.name, ", ".join(sorted(new)))


def _is_head(model: Any, key: str) -> bool:
    """True for weights outside the body, and for the pooler, which a masked LM comes without."""
    body = f"{model.base_model_prefix}."
    return not key.startswith(body) or key.startswith(f"{body}pooler.")


def _set_padding(ref: ModelRef, model: Any, trust_remote_code: bool) -> None:
    """A decoder's classification head reads at the last token that is no padding: it must know which that is."""
    if model.config.get_text_config().pad_token_id is not None:
        return
    number = load_tokenizer(ref, trust_remote_code=trust_remote_code).pad_token_id
    for config in {id(found): found for found in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = number
    if model.can_generate() and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = number


@contextmanager
def _explained(ref: ModelRef, what: str) -> Iterator[None]:
    """Turns transformers' and safetensors' refusals into ours."""
    from safetensors import SafetensorError

    try:
        yield
    except ImportError as problem:
        raise NotAvailable(f"the {what} of {ref.name} needs a package that is not here: {problem}") from problem
    except SafetensorError as problem:
        raise BadCheckpoint(f"{ref.name}: a weight file is damaged or cut off ({problem}); copy it again") from problem
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as problem:
        if isinstance(problem, RuntimeError) and "memory" in str(problem):
            raise
        raise BadCheckpoint(f"the {what} of {ref.name} cannot be read: {problem}") from problem
