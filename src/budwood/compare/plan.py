"""Which runs a comparison consists of: methods by name, their learning rates, seeds, and the folder of each run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from budwood.core import Method
from budwood.errors import BadConfig
from budwood.methods import METHODS, method_from_dict, method_to_dict
from budwood.records import BASE, Contender, Item
from budwood.records.files import Json, plain
from budwood.train.job import Job

LEFT_OUT = ("fusion", "multitask-prompt")
"""Methods that are nothing on their own: one joins trained adapters, one wants several tasks."""
PARTS = ("bitfit", "last-layers")
"""What `selective` is compared as."""
BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def default_methods() -> tuple[str, ...]:
    """Every method that works alone, full fine-tuning among them."""
    names = [method.name for method in METHODS if method.name not in LEFT_OUT]
    return tuple(part for name in names for part in (PARTS if name == "selective" else (name,)))


def contenders_of(methods: Sequence[str | Method | Mapping[str, Any]]) -> tuple[Contender, ...]:
    """The untuned base and each method, once. Raises BadConfig for unknown ones and for one that is there twice."""
    found = {BASE: Contender(label=BASE, method={BASE: {}})}
    for said in methods or default_methods():
        if said == BASE:
            continue
        label, method = _labelled(said)
        if label in found:
            raise BadConfig(f"method {label} is there twice; name each once, or give them different fields")
        found[label] = Contender(label=label, method=method_to_dict(method))
    if len(found) == 1:
        raise BadConfig("there is no method to compare; name some, as --method lora, or none for all of them")
    return tuple(found.values())


def _labelled(said: Any) -> tuple[str, Method]:
    """(what people call it, the method) of a word, a mapping, a value, or of a label with its mapping."""
    if isinstance(said, tuple):
        return str(said[0]), method_from_dict(said[1])
    method = said if isinstance(said, Method) else method_from_dict(said)
    return (said if isinstance(said, str) else label_of(method)), method


def label_of(method: Method) -> str:
    """NAME:field=value,... with the fields that are not as nobody said them."""
    usual = type(method)().to_dict()
    said = [f"{name}={_word(value)}" for name, value in method.to_dict().items() if usual.get(name) != value]
    return ":".join([method.name, *([",".join(said)] if said else [])])


@dataclass(frozen=True)
class Planned:
    """How the runs of a comparison are made from one job."""

    job: Job
    """With the settings that all runs share."""
    search: bool
    """Whether each method's learning rate is searched first."""

    def of(self, contender: Contender, seed: int, *, budget: str, rate: float | None) -> Job:
        """The job of one run.

        rate: what was found with the first seed; None searches, or takes the method's own where nobody wants a search
        """
        method, config = method_from_dict(contender.method), replace(self.job.config, seed=seed, budget=budget)
        if config.learning_rate is None and rate is not None:
            config = replace(config, learning_rate=rate, rates=None)
        elif config.learning_rate is None and self.search:
            config = replace(config, rates=config.rates or "+".join(f"{one:g}" for one in method.grid))
        elif config.learning_rate is None:
            config = replace(config, rate_steps=0, rates=None)
        return replace(self.job, method=method, config=config)

    def key(self, contender: Contender, *, budget: str) -> str:
        """8 hex digits of everything that makes a run what it is, but its seed."""
        said = self.of(contender, 0, budget=budget, rate=None).to_dict()
        text = json.dumps(plain(said), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def items(self, contenders: Sequence[Contender], seeds: Sequence[int], *, budget: str) -> tuple[Item, ...]:
        """The base, then every method at the first seed, then at the next."""
        runs = [
            Item(name=f"{slug(one.label)}-{self.key(one, budget=budget)}-s{seed}", label=one.label, seed=seed)
            for seed in seeds
            for one in contenders
            if one.label != BASE
        ]
        return (Item(name=BASE, label=BASE, seed=seeds[0]), *runs)


def slug(label: str) -> str:
    """A label in letters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-.")[:40]


def bytes_of(text: str | int) -> int:
    """`6GiB`, `800MB` or a number of bytes. Raises BadConfig for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?)b?", str(text).strip().lower())
    amount = float(found[1]) * BYTES.get(found[2], 0) if found else 0.0
    if amount <= 0:
        raise BadConfig(f"memory is {text!r}; write it as 6GiB or 800MB")
    return int(amount)


def seeds_of(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    """Three seeds are first, first + 1, first + 2; or those given. Raises BadConfig for none or for repeats."""
    found = tuple(range(first, first + seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not found or len(set(found)) < len(found) or min(found) < 0:
        raise BadConfig(f"seeds is {seeds!r}; give how many (3), or different numbers from 0 up")
    return found


def positions(contenders: Sequence[Contender]) -> Method:
    """The method that leaves least room for text: rows are cut for all as it needs."""
    methods = [method_from_dict(one.method) for one in contenders if one.label != BASE]
    return max(methods, key=lambda method: method.positions_taken)


def stored(job: Job, folder: Path) -> Job:
    """The job with model and data on disk, where they were objects in memory: other processes read them there.

    Raises BadConfig for objects that cannot be written, and for a model without its tokenizer.
    """
    model, data = job.model, job.data
    if not isinstance(model, str | Path):
        if job.tokenizer is None:
            raise BadConfig("a loaded model needs its tokenizer: compare(model, data, tokenizer=tokenizer)")
        model.save_pretrained(folder / "model")
        job.tokenizer.save_pretrained(folder / "model")
        model = str(folder / "model")
    if not isinstance(data, str | Path):
        data = _written(data, folder / "data")
    return replace(job, model=str(model), data=str(data), tokenizer=None)


def _written(data: Any, folder: Path) -> str:
    splits = dict(data) if isinstance(data, Mapping) else {"train": data}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, rows in splits.items():
            rows.to_json(str(folder / f"{name}.jsonl"))
    except (AttributeError, TypeError) as error:
        raise BadConfig(f"data is a {type(data).__name__}; give a name, a file, or a datasets.Dataset") from error
    return str(folder)


def _word(value: Json) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
