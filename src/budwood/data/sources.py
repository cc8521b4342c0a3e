"""Where data comes from: files, folders of splits, hub ids and dataset objects."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budwood.data.corpus import Corpus, Task
from budwood.data.files import SUFFIXES, Record, Table, hub_module, missing, read_file
from budwood.data.rows import assemble
from budwood.data.shapes import CANONICAL, check_columns
from budwood.errors import BadData, NotAvailable

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
"""Words in file, folder and split names, to the split they mean."""

SHARD = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")
NOT_DATA = (".", "README", "LICENSE", "SOURCE.json")
"""How names of files that are about the data begin."""

ANSWER_S = 4.0
"""Seconds in which the hub has to answer."""


def read(
    source: object,
    *,
    columns: Mapping[str, str] | None = None,
    task: Task | None = None,
    labels: Sequence[str] | None = None,
) -> Corpus:
    """The corpus in a file, a folder of splits, a hub id ('owner/name' or 'owner/name:config') or a Dataset.

    columns: canonical name to the column that holds it, {'prompt': 'q', 'completion': 'a'}; see `parse_columns`
    task:    None takes what the columns say: text with a label is classification
    labels:  the class names of a trained model, in order; None takes those of the train split
    Raises   NotAvailable if it is not to be had; BadData naming file and row; BadConfig for wrong columns
    """
    columns = dict(columns or {})
    check_columns(columns)
    if isinstance(source, str | Path):
        origin = str(source)
        tables, ignored = _read_named(origin, {*CANONICAL, *columns.values()})
    else:
        origin = type(source).__name__
        tables, ignored = _read_object(source, origin), []
    corpus = assemble(origin, tables, columns=columns, task=task, labels=labels)
    return corpus.replace_splits(corpus.splits, f"not read: {', '.join(ignored)}") if ignored else corpus


def _read_named(name: str, known: set[str]) -> tuple[dict[str, list[Table]], list[str]]:
    """Tables by split, and the names of data files beside them that were not read."""
    path = Path(name).expanduser()
    if path.is_dir():
        splits, ignored = folder_splits(path)
        return {split: [read_file(file, known) for file in files] for split, files in splits.items()}, ignored
    if path.exists():
        return {"train": [read_file(path, known)]}, []
    hub_like = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", name) and path.suffix.lower() not in SUFFIXES
    if hub_like and not path.parent.exists():
        return _read_hub(name), []
    error = missing(path)
    if "/" not in name and not path.suffix:
        raise NotAvailable(f"{error}. A data set of the hub is written owner/name")
    raise error


def folder_splits(folder: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The data files of a folder by split, from names such as train.jsonl, dev.tsv, test-00000-of-00002.parquet.

    Files lie in the folder, in `data/`, or in a folder named after their split. One file of any name is train.
    Also gives the names of data files that belong to no split.
    Raises BadData if there is no data file, or it cannot be told which file is which split.
    """
    files = sorted(
        file
        for file in (*folder.glob("*"), *folder.glob("*/*"))
        if file.is_file() and file.suffix.lower() in SUFFIXES and not file.name.startswith(NOT_DATA)
    )
    splits: dict[str, list[Path]] = {}
    for file in files:
        if split := _split_of(file, folder):
            splits.setdefault(split, []).append(file)
    if not splits and len(files) == 1:
        return {"train": files}, []
    if not splits:
        found = ", ".join(str(file.relative_to(folder)) for file in files[:8]) or "no data file"
        raise BadData(
            f"{folder}: found {found}; name one file, or call the files after their split: "
            f"train.jsonl, validation.jsonl, test.jsonl (endings: {' '.join(SUFFIXES)})"
        )
    for split, several in splits.items():
        if len({(file.parent, SHARD.sub("", file.stem), file.suffix) for file in several}) > 1:
            names = ", ".join(str(file.relative_to(folder)) for file in several)
            raise BadData(f"{folder}: {names} all look like the {split} split; keep one, or name one file")
    ignored = [str(file.relative_to(folder)) for file in files if not _split_of(file, folder)]
    return splits, ignored


def _split_of(file: Path, folder: Path) -> str | None:
    """The split a file belongs to, by its own name or that of its folder."""
    stem = SHARD.sub("", file.stem.lower())
    inside = file.parent.name.lower() if file.parent != folder else ""
    return SPLIT_NAMES.get(stem) or SPLIT_NAMES.get(inside)


def _read_object(source: object, origin: str) -> dict[str, list[Table]]:
    """A `datasets.Dataset` (train) or `DatasetDict`."""
    datasets = hub_module("datasets", f"reading a {origin}")
    if isinstance(source, datasets.DatasetDict):
        tables: dict[str, list[Table]] = {}
        for name, part in source.items():
            split = SPLIT_NAMES.get(name, name)
            if split in tables:
                raise BadData(f"{origin}: several splits mean {split} ({', '.join(source)}); keep one")
            tables[split] = [_table(part, f"{origin}[{name!r}]")]
        return tables
    if isinstance(source, datasets.Dataset):
        return {"train": [_table(source, origin)]}
    raise BadData(
        f"data is a {origin}; give a file name, a folder, a hub id, a datasets.Dataset or a datasets.DatasetDict"
    )


def _table(dataset: Any, name: str) -> Table:
    """Rows of a Dataset, with names in place of the numbers of classes (-1, no label, becomes None) and of tags."""
    names_of = {column: _names(feature) for column, feature in dataset.features.items()}
    classes = {column: names for column, names in names_of.items() if names}
    records = []
    for number, row in enumerate(dataset, start=1):
        for column, names in classes.items():
            value = row[column]
            if isinstance(value, list):
                row[column] = [names[one] for one in value]
            else:
                row[column] = None if value is None or value < 0 else names[value]
        records.append(Record(row, number))
    if not records:
        raise BadData(f"{name} has no rows; give at least one")
    return Table(file=name, records=records)


def _names(feature: Any) -> list[str] | None:
    """The names of a column of classes, or of lists of them."""
    inner = feature.feature if type(feature).__name__ in ("List", "LargeList", "Sequence") else feature
    return list(inner.names) if type(inner).__name__ == "ClassLabel" else None


def _read_hub(name: str) -> dict[str, list[Table]]:
    """A data set of the hub; only a name that is no local path comes here."""
    datasets = hub_module("datasets", f"reading {name} from the hub")
    repository, _, config = name.partition(":")
    if not datasets.config.HF_HUB_OFFLINE:
        _ask_hub(repository)
    try:
        found = datasets.load_dataset(repository, config or None)
    except (OSError, ValueError, RuntimeError) as error:  # what datasets raises for what it cannot give
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotAvailable(
            f"{name} cannot be read from the hub: {first[:300]}. "
            "Check the name (owner/name, owner/name:config); without network, give a file"
        ) from error
    return _read_object(found, name)


def _ask_hub(repository: str) -> None:
    """Raises NotAvailable if the hub does not know the data set, or does not answer soon.

    The question runs beside us, because looking up a host name can take longer than any time-out it is given.
    """
    hub = hub_module("huggingface_hub", f"reading {repository} from the hub")
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            hub.HfApi().dataset_info(repository, timeout=ANSWER_S)
            outcome.append(None)
        except Exception as error:  # handed to the caller's thread
            outcome.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    if outcome == [None]:
        return
    reason = "no answer" if not outcome else (str(outcome[0]).strip().splitlines() or [""])[0][:200]
    raise NotAvailable(
        f"{repository} is not a local path, and the hub did not give it ({reason}). Check the name and the network; "
        "with a copy in the cache set HF_HUB_OFFLINE=1; without network, give a file"
    )
