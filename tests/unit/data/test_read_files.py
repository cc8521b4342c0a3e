"""Reading files: what is accepted, and what an error says about what is not."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from reading import refusal, turns

from budwood import data
from budwood.errors import BadConfig, BadData, NotAvailable

SHARED = Path(__file__).parents[3].parent / "shared"
PAIR = {"prompt": "2+2?", "completion": "4"}


def test_jsonl_with_bom_crlf_and_blank_lines(write):
    path = write(
        "a.jsonl", b'\xef\xbb\xbf{"prompt": "a", "completion": "\xc3\xa9"}\r\n\r\n{"prompt": "b", "completion": "2"}'
    )
    corpus = data.read(path)
    assert turns(corpus)[1] == ("assistant", "é", True)
    assert corpus.where("train", 1) == f"{path}, row 2 (line 3)"


def test_line_separators_inside_json_do_not_end_a_row(write):
    path = write("a.jsonl", '{"prompt": "a\u2028b\x0bc", "completion": "d"}\n'.replace("\x0b", "\\u000b"))
    assert turns(data.read(path))[0][1] == "a\u2028b\x0bc"


def test_utf16_is_read(write):
    path = write("a.tsv", "question\tanswer\r\nwhy\tbecause\r\n".encode("utf-16"))
    assert turns(data.read(path)) == [("user", "why", False), ("assistant", "because", True)]


def test_wrong_encoding_names_line_and_cure(write):
    path = write("a.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "caf\xe9", "completion": "b"}\n')
    refusal(BadData, str(path), "line 2", "0xe9", "iconv", source=path)


def test_missing_file_suggests_a_sibling(write):
    path = write("train.jsonl", [PAIR])
    refusal(NotAvailable, "trian.jsonl", "did you mean 'train.jsonl'?", source=path.with_name("trian.jsonl"))
    refusal(NotAvailable, "nowhere", source=path.parent / "nowhere" / "train.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_empty_file(write, name, content):
    refusal(BadData, name, "no rows", source=write(name, content))


def test_row_that_is_not_an_object(write):
    path = write("a.jsonl", '{"prompt": "a", "completion": "b"}\n["a", "b"]\n')
    refusal(BadData, str(path), "row 2", "a list", '{"prompt"', source=path)
    path = write("a.json", '[{"prompt": "a", "completion": "b"}, "x"]')
    refusal(BadData, "row 2", "a string", source=path)


def test_malformed_json_names_the_row(write):
    path = write("a.jsonl", '{"prompt": "a", "completion": "b"}\n\n{"prompt": "a"\n')
    refusal(BadData, "row 2 (line 3)", "not valid JSON", source=path)
    path = write("a.json", '[\n{"prompt": "a", "completion": "b"},\n{"prompt": "a", }\n]')
    refusal(BadData, "row 2 (line 3)", "not valid JSON", source=path)
    refusal(BadData, "a number", source=write("a.json", "3"))


def test_json_forms(write):
    row = '{"prompt": "a", "completion": "b"}'
    for content in (f"[{row}, {row}]", f'{{"data": [{row}, {row}]}}', f"{row}\n{row}\n"):
        assert len(data.read(write("a.json", content)).rows("train")) == 2


def test_csv_quotes_newlines_and_huge_fields(write):
    long = "x" * 300_000
    path = write("a.csv", f'Question,Answer\n"a, ""b""\n\nc",{long}\n\nd,e\n')
    limit = csv.field_size_limit()
    corpus = data.read(path)
    assert csv.field_size_limit() == limit
    assert turns(corpus) == [("user", 'a, "b"\n\nc', False), ("assistant", long, True)]
    assert corpus.where("train", 1).endswith("row 2 (line 6)")


def test_csv_with_semicolons(write):
    assert turns(data.read(write("a.csv", "prompt;completion\na, b;c\n")))[0][1] == "a, b"


def test_ragged_rows_and_open_quotes(write):
    path = write("a.csv", "prompt,completion\na,b\nc,d,e\n")
    refusal(BadData, str(path), "row 2 (line 3)", "3 cells, expected 2", source=path)
    refusal(BadData, "b.csv, line 2", "quote", source=write("b.csv", 'prompt,completion\n"a,b\nc,d\n'))
    refusal(BadData, "'prompt' twice", source=write("c.csv", "prompt,prompt\na,b\n"))
    refusal(BadData, "without a name", source=write("d.csv", "prompt,\na,b\n"))


def test_tsv_quotes_are_ordinary_unless_used_as_csv_does(write):
    literal = data.read(write("a.tsv", '1\t"quoted" and 5" long\n0\tplain one\n1\t" open\n'))
    assert [row.raw["text"] for row in literal.rows("train")] == ['"quoted" and 5" long', "plain one", '" open']
    quoted = data.read(write("b.tsv", 'text\tlabel\n"a\tb ""c"""\tx\nd\ty\n'))
    assert quoted.rows("train")[0].raw["text"] == 'a\tb "c"'


def test_txt_is_pairs_only_if_every_line_is(write):
    corpus = data.read(write("a.txt", "ask || answer \n\nb||c\n"))
    assert corpus.shape == "prompt/completion"
    assert turns(corpus) == [("user", "ask", False), ("assistant", "answer", True)]
    corpus = data.read(write("b.txt", "ask || answer\nplain\n"))
    assert corpus.shape == "text" and corpus.rows("train")[0].value == data.Text("ask || answer")
    assert "1 of 2 lines hold one ||" in "\n".join(corpus.describe())


def test_unknown_ending(write):
    refusal(BadData, ".xlsx", ".jsonl", source=write("a.xlsx", "x"))


def test_folder_of_splits(write):
    path = write("f/train.jsonl", [PAIR])
    write("f/dev.csv", "prompt,completion\na,b\nc,d\n")
    write("f/test-00000-of-00002.jsonl", [PAIR])
    write("f/test-00001-of-00002.jsonl", [PAIR])
    write("f/README.txt", "about")
    corpus = data.read(path.parent)
    assert {name: len(rows) for name, rows in corpus.splits.items()} == {"train": 1, "validation": 2, "test": 2}
    write("f/notes.txt", "x")
    assert data.read(path.parent).describe()[-1] == "not read: notes.txt"
    write("f/train.csv", "prompt,completion\na,b\n")
    refusal(BadData, "train.csv", "train.jsonl", "keep one", source=path.parent)


def test_folder_with_splits_as_folders_or_a_single_file(write):
    write("g/train/part-0.jsonl", [PAIR])
    path = write("g/validation/part-0.jsonl", [PAIR])
    assert list(data.read(path.parents[1]).splits) == ["train", "validation"]
    path = write("h/faq.jsonl", [PAIR])
    assert list(data.read(path.parent).splits) == ["train"]
    write("h/other.jsonl", [PAIR])
    refusal(BadData, "faq.jsonl", "other.jsonl", "train.jsonl", source=path.parent)
    (path.parents[1] / "empty").mkdir()
    refusal(BadData, "no data file", source=path.parents[1] / "empty")


def test_absent_split_names_those_there_are(write):
    corpus = data.read(write("a.jsonl", [PAIR]))
    with pytest.raises(BadData, match=r"no test split; it has train \(1 rows\)"):
        corpus.rows("test")


def test_parquet_and_dataset_objects(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 0]})
    rows.to_parquet(tmp_path / "train.parquet")
    assert data.read(tmp_path / "train.parquet").labels == ("0", "1")
    named = rows.cast_column("label", datasets.ClassLabel(names=["neg", "pos"]))
    hidden = datasets.Dataset.from_dict({"text": ["what"], "label": [-1]}, features=named.features)
    corpus = data.read(datasets.DatasetDict({"train": named, "test": hidden}))
    assert corpus.labels == ("neg", "pos") and list(corpus.splits) == ["train"]
    assert "test has no labels (1 rows), left out" in corpus.describe()
    assert data.read(named).rows("train")[0].value.label == 1
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 nonsense")
    refusal(BadData, "bad.parquet", source=tmp_path / "bad.parquet")


def test_other_objects_are_refused():
    refusal(BadData, "list", "file name", source=[1, 2])


def test_hub_without_the_extra_or_the_network(monkeypatch, write):
    refusal(NotAvailable, "nobody/nothing", "Check the name", source="nobody/nothing")
    refusal(NotAvailable, "owner/name", source="imdb")
    from budwood.data import files

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(files.importlib, "import_module", absent)
    refusal(NotAvailable, 'pip install "budwood[hub]"', source="nobody/nothing")
    refusal(NotAvailable, 'pip install "budwood[hub]"', source=write("a.parquet", b"PAR1"))


def test_hub_that_does_not_answer(monkeypatch):
    datasets = pytest.importorskip("datasets")
    import threading

    import huggingface_hub

    from budwood.data import sources

    release = threading.Event()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *a, **k: release.wait(10))
    monkeypatch.setattr(sources, "ANSWER_S", 0.05)
    refusal(NotAvailable, "nobody/nothing", "no answer", "HF_HUB_OFFLINE=1", source="nobody/nothing")
    release.set()


def test_real_files():
    if not SHARED.is_dir():
        pytest.skip("no shared data")
    topics = data.read(SHARED / "data" / "sst2")
    assert (topics.shape, topics.labels) == ("text + label", ("0", "1"))
    assert [len(rows) for rows in topics.splits.values()] == [6920, 872, 1821]
    pairs = data.read(SHARED / "data" / "e2e" / "valid.txt")
    assert (pairs.shape, len(pairs.rows("train"))) == ("prompt/completion", 4672)
    assert turns(pairs)[0][1].startswith("name : Alimentum") and turns(pairs)[1][1].endswith(" .")


def test_hash_is_of_the_content(write):
    first = data.read(write("a.jsonl", [PAIR]))
    same = data.read(write("b.csv", "question,answer\n2+2?,4\n"))
    other = data.read(write("c.jsonl", [{"prompt": "2+2?", "completion": "5"}]))
    assert first.hash() == same.hash() != other.hash()
    assert len(first.hash()) == 64


def test_columns_are_checked(write):
    path = write("a.jsonl", [{"q": "a", "a": "b"}])
    refusal(BadConfig, "'promt'", "did you mean 'prompt'?", source=path, columns={"promt": "q"})
    with pytest.raises(BadConfig, match="name=column"):
        data.parse_columns("prompt")
    with pytest.raises(BadConfig, match="twice"):
        data.parse_columns("prompt=a,prompt=b")
    assert data.parse_columns("prompt=q, completion=a") == {"prompt": "q", "completion": "a"}
