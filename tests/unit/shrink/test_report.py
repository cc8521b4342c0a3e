from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from budwood.errors import BadCheckpoint, WrongOrder
from budwood.records import Manifest, RunFolder, Score, Timing, machine
from budwood.shrink.config import Shrinking
from budwood.shrink.lines import facts, opening, percent, table, why
from budwood.shrink.report import LETTERS, SAMPLES, write_report
from budwood.shrink.stage import Stage

HERE = machine(threads=2)
WHOLE = 134_515_008
LIKELIHOOD = "likelihood per token, of the unshrunk model's"
TRIMMED = (
    "vocabulary 49,152 -> 2,802 tokens (the texts use 1,522), 80 % of the parameters; 2,000 texts encode as before"
)
VOID = {"meta", "line", "circle", "path", "polyline"}

# parameters, what, layers, ffn, heads, vocabulary, perplexity, ratio to the unshrunk one [low, high], ms, ms a token
MEASURED = (
    (134_515_008, "as it was given", 30, 1536, 3, 49_152, 10.2, None, 143.0, 40.8),
    (134_515_008, "fine-tuned for 200 steps", 30, 1536, 3, 49_152, 3.61, None, 143.0, 40.8),
    (107_816_256, TRIMMED, 30, 1536, 3, 2802, 3.48, None, 110.0, 26.3),
    (94_545_216, "ffn 1536 -> 1280", 30, 1280, 3, 2802, 3.51, (1.010, 1.004, 1.017), 109.0, 26.0),
    (81_274_176, "ffn 1280 -> 1024", 30, 1024, 3, 2802, 3.62, (1.041, 1.031, 1.052), 93.0, 24.8),
    (68_003_136, "ffn 1024 -> 768", 30, 768, 3, 2802, 3.74, (1.075, 1.062, 1.090), 92.0, 25.1),
    (53_912_448, "layers 30 -> 27, ffn 768 -> 608", 27, 608, 3, 2802, 4.07, (1.169, 1.148, 1.191), 73.0, 19.1),
    (40_102_272, "layers 27 -> 24, ffn 608 -> 416", 24, 416, 3, 2802, 4.58, (1.317, 1.282, 1.352), 59.0, 15.7),
    (26_449_344, "ffn 416 -> 256, heads 3 -> 2", 24, 256, 2, 2802, 5.70, (1.638, 1.577, 1.701), 43.0, 13.2),
)  # fmt: skip


def language_model(undone: Sequence[int] = (8,)) -> list[Stage]:
    return [_measured(number, accepted=number not in undone) for number in range(len(MEASURED))]


def _measured(number: int, *, accepted: bool) -> Stage:
    count, what, layers, ffn, heads, vocabulary, perplexity, ratio, read, each = MEASURED[number]
    cuts = number > 2
    quality = None
    if ratio is not None:
        value, low, high = (1 / end for end in (ratio[0], ratio[2], ratio[1]))
        quality = Score(name="quality", value=value, low=low, high=high, n=500, unit=LIKELIHOOD)
    first = MEASURED[0]
    others = {what: perplexity / 30, "layers 30 -> 26": perplexity / 25, "heads 3 -> 2, ffn 1536 -> 1472": 2.71828}
    return Stage(
        number=number,
        kind="cut" if cuts else ("original", "tuned", "vocabulary")[number],
        what=what,
        sizes={"layers": layers, "ffn": ffn, "heads": heads, "hidden": 576, "vocabulary": vocabulary},
        parameters=count,
        share=count / WHOLE,
        scores=(score("perplexity", perplexity, perplexity * 0.97, perplexity * 1.031, "perplexity"),),
        quality=quality,
        timing=Timing(
            batch=1,
            prompt_tokens=64,
            prefill_s=read / 1e3,
            per_token_s=each / 1e3,
            how="median of 5 repeats after 1 warm-up, 16 new tokens, 2 threads",
        ),
        speedup=(first[8] + 16 * first[9]) / (read + 16 * each),
        cut_s=41.3 + number if number > 1 else 0.0,
        recover_s=250.0 + 10 * number if cuts or number == 1 else 0.0,
        cut_loss=1.234 + number / 10 if cuts else None,
        candidates=others if cuts else {},
        accepted=accepted,
        folder=f"stages/{number:02d}-cut" if accepted else None,
    )


def classifier() -> list[Stage]:
    shares = (1.0, 0.9, 0.8)
    return [
        replace(
            _measured(3 if number else 0, accepted=True),
            number=number,
            what="as it was given" if not number else f"ffn to {share:.0%}",
            share=share,
            parameters=round(4_385_920 * share),
            scores=(score("accuracy", 0.9 - number / 50, 0.87 - number / 50, 0.92, "share of tokens"),),
            quality=Score(name="quality", value=share**0.2, low=share**0.3, high=1.01, n=200, unit="accuracy, of ..."),
            timing=Timing(batch=1, prompt_tokens=64, prefill_s=0.0041 * share, per_token_s=None, how="median of 5"),
            speedup=1 / share,
        )
        for number, share in enumerate(shares)
    ]


def score(name: str, value: float, low: float, high: float, unit: str) -> Score:
    return Score(name=name, value=value, low=low, high=high, n=9000, unit=unit)


def run_folder(root: Path, *, model: str = "demo-lm", task: str = "causal-lm", **said: object) -> RunFolder:
    manifest = Manifest(
        command=("budwood", "shrink", model, "e2e", "--to", "0.5"),
        model=model,
        method={"full": {}},
        data="demo-e2e",
        seed=3,
        task=task,
    )
    settings = Shrinking(**{"min_quality": 0.7, **said})  # type: ignore[arg-type]
    data = {"data": "demo-e2e", "hash": "0123456789abcdef", "splits": {"train": 2000, "validation": 200, "test": 500}}
    return RunFolder.create(
        root,
        manifest,
        config={"model": model, "shrink": settings.to_dict()},
        data=data,
        environment=HERE,
        out=root / "run",
    )


def page_of(folder: RunFolder, stages: Sequence[Stage]) -> str:
    path = write_report(folder, stages)
    assert path == folder.report
    return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """As a reader sees it, with arrows as records have them."""
    return unescape(page).replace("\N{NO-BREAK SPACE}", " ").replace("\N{RIGHTWARDS ARROW}", "->")


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def elements(page: str) -> list[str]:
    reader = Balance()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader.seen


@pytest.mark.parametrize("brief", [False, True])
def test_every_number_of_the_table_is_in_the_page(tmp_path: Path, brief: bool) -> None:
    stages = language_model()
    page = text_of(page_of(run_folder(tmp_path), stages))
    headings, rows = table(stages, brief=brief)
    assert {len(row) for row in rows} == {len(headings)} and len(rows) == len(stages)
    for text in (*(heading.lstrip(">") for heading in headings), *(cell for row in rows for cell in row)):
        assert text in page
    assert "68.0M (50.6 %)" in page and "100.0 % (the measure)" in page
    assert "93.0 [91.7, 94.2] %" in page
    assert "3.740 [3.628, 3.856]" in page
    for stage in stages:
        for what in stage.candidates:
            assert what in page
        if stage.cut_loss is not None:
            assert f"{stage.cut_loss:.3f}" in page


def test_the_opening_says_what_came_out(tmp_path: Path) -> None:
    stages = language_model()
    page = text_of(page_of(run_folder(tmp_path), stages))
    said = (
        "demo-lm now has 40.1M of its 134.5M parameters (29.8 %). It keeps 75.9 % of the unshrunk model's quality "
        "(95 % interval 74.0 to 78.0 %, 500 held-out rows) and answers 2.57 times as fast as the original."
    )
    assert opening("demo-lm", stages) == said
    assert said in page
    elsewhere = text_of(page_of(run_folder(tmp_path / "b", model="/home/someone/models/mine"), stages))
    assert "<h1>mine, shrunk to 29.8 %</h1>" in elsewhere and ">mine now has 40.1M" in elsewhere
    assert "demo-e2e, for /home/someone/models/mine, rows: train 2,000" in elsewhere
    assert "the next stage (ffn 416 -> 256, heads 3 -> 2) was undone: its quality of 61.1 % may be as low as" in page


def test_lines_that_load_the_model(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "a 'quoted' place")
    assert "no model folder" in page_of(folder, language_model())
    (folder.path / "model").mkdir()
    page = text_of(page_of(folder, language_model()))
    place = str((folder.path / "model").resolve())
    assert f"AutoModelForCausalLM.from_pretrained({place!r})" in page
    assert f"AutoTokenizer.from_pretrained({place!r})" in page


@pytest.mark.parametrize(
    ("architecture", "expected"), [("BertForMaskedLM", "AutoModelForMaskedLM"), ("Llama", "AutoModelForCausalLM")]
)
def test_a_cloze_is_loaded_as_what_it_is(tmp_path: Path, architecture: str, expected: str) -> None:
    folder = run_folder(tmp_path, task="cloze")
    (folder.path / "model").mkdir()
    (folder.path / "model" / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    assert f"model = {expected}." in page_of(folder, language_model())


def test_text_from_elsewhere_is_escaped_and_cut(tmp_path: Path) -> None:
    bad = "<script>alert(1)</script><img src=x onerror=y> \"'&\x00\x07\ud800"
    folder = run_folder(tmp_path, model="<b>model</b>")
    stages = [replace(stage, what=f"{stage.what} <i>") for stage in language_model()]
    for place in range(SAMPLES + 3):
        names = ("prompt", "base", "now", "reference")
        sample = {name: f"{bad} {name} {place}" + ("&" * 9 * LETTERS if name == "now" else "") for name in names}
        folder.add_sample({"step": 7, **{name: text.replace("\ud800", "") for name, text in sample.items()}})
    page = page_of(folder, stages)
    assert not {"script", "img", "i", "b"} & set(elements(page))
    assert "&lt;script&gt;" in page and "\x00" not in page and "\x07" not in page
    assert f"prompt {SAMPLES - 1}" in page and f"prompt {SAMPLES}" not in page and "3 more in samples.jsonl" in page
    assert "more letters in the run folder" in page
    assert folder.report.stat().st_size < 300_000


def test_halves_of_pairs_do_not_stop_the_page(tmp_path: Path) -> None:
    stages = [replace(language_model()[0], what="\ud800 as it was given")]
    assert "? as it was given" in page_of(run_folder(tmp_path), stages)


def test_samples_of_the_result_are_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    for step in (3, 7, 8):
        folder.add_sample({"step": step, "prompt": "p", "base": "b", "now": f"said by {step}", "reference": None})
    page = page_of(folder, language_model())
    assert "said by 7" in page and "said by 8" not in page and "said by 3" not in page
    assert "<dt>reference</dt>" not in page


def test_an_undone_stage_is_hollow_and_off_the_curve(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path), language_model())
    assert page.count('<g class="undone">') == 2 and page.count('<g class="kept">') == 2 * 6
    lines = re.findall(r'<polyline class="curve" points="([^"]*)"', page)
    assert [len(line.split()) for line in lines] == [6, 6]
    assert (
        page.count('<tr class="undone-row">') == 1
        and page.count('<tr class="result">\n<th scope="row" class="right">7<') == 1
    )
    assert "undone.</title>" in page and "no part of the result" in page
    fine = page_of(run_folder(tmp_path / "fine"), language_model(undone=()))
    assert "hollow" not in fine and '<g class="undone">' not in fine


def test_an_undone_stage_far_below_does_not_flatten_the_curve(tmp_path: Path) -> None:
    stages = language_model()
    assert stages[8].quality is not None
    stages[8] = replace(stages[8], quality=replace(stages[8].quality, value=1e-5, low=1e-6, high=1e-4))
    page = page_of(run_folder(tmp_path), stages)
    assert "below what the drawing shows" in page and "under 0.1" in page
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', page)]
    assert max(heights) - min(heights) > 80


@pytest.mark.parametrize("count", [1, 2, 30])
def test_any_number_of_stages(tmp_path: Path, count: int) -> None:
    stages = language_model(undone=())
    many = [replace(stages[min(number, 8)], number=number, share=1 - number / 40) for number in range(count)]
    page = page_of(run_folder(tmp_path), many)
    assert elements(page).count("article") == 0
    assert len(re.findall(r'<th scope="row" class="right">\d+</th>', page)) == count
    assert len(page.encode()) < 300_000
    if count == 1:
        assert "demo-lm was not made smaller: it has 134.5M parameters, as before." in page and "<svg" not in page


def test_a_classifier_writes_no_tokens(tmp_path: Path) -> None:
    stages = classifier()
    folder = run_folder(tmp_path, task="classification")
    (folder.path / "model").mkdir()
    page = text_of(page_of(folder, stages))
    assert "write a token" not in page and "ms to read 64 tokens<" in page and "this model writes none" in page
    assert "accuracy [95 %]" in page and "86.0 [83.0, 92.0] %" in page
    assert "model = AutoModelForSequenceClassification." in page
    assert "share of right answers" in page and "likelihood" not in page


@pytest.mark.parametrize("value", [float("inf"), 3.65e11, 0.0, 1e-9])
def test_odd_numbers(tmp_path: Path, value: float) -> None:
    stages = language_model()
    quality = Score(name="quality", value=value, low=0.0, high=value, n=1, unit=LIKELIHOOD)
    odd = score("perplexity", value, 0.0, value, "perplexity")
    stages[5] = replace(
        stages[5], quality=quality, scores=(odd,), speedup=value, cut_loss=value, candidates={"x": value}
    )
    page = page_of(run_folder(tmp_path), [Stage.from_dict(stage.to_dict(), where="here") for stage in stages])
    assert elements(page) and "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", page.lower())
    assert not re.search(r"\binf\b|\dinf", page)


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = page_of(run_folder(tmp_path), language_model())
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\(|<link|<script|\bsrc=", page)
    assert len(page.encode()) < 300_000
    seen = elements(page)
    assert seen.count("title") == 1 + 2 + 2 * 7 and seen.count("desc") == 2 and seen.count("main") == 1
    assert "prefers-color-scheme: dark" in page and '<html lang="en">' in page
    assert page.count('scope="col"') > 10


def test_a_vocabulary_cut_is_warned_of_where_there_was_one(tmp_path: Path) -> None:
    stages = language_model()
    page = page_of(run_folder(tmp_path), stages)
    assert "Stage 2 took tokens out of the vocabulary" in page and "a share of what stage 2 reaches" in page
    assert "do not compare" not in unescape(
        " ".join(page_of(run_folder(tmp_path / "b"), [stages[0], *stages[3:]]).split())
    )


def test_where_only_tokens_were_cut(tmp_path: Path) -> None:
    stages = language_model(undone=(3,))[:4]
    said = "(80.2 %). Only tokens that the data never uses were cut, and it answers 1.50 times as fast as the original."
    assert said in text_of(page_of(run_folder(tmp_path), stages))
    assert ("quality", "100.0 %", "nothing but unused tokens was cut") in facts(stages)


def test_a_run_of_something_else_is_refused(tmp_path: Path) -> None:
    folder = run_folder(tmp_path)
    (folder.path / "config.yaml").write_text("model: demo-lm\n")
    with pytest.raises(BadCheckpoint, match=r"config.yaml says nothing of a shrinking \(shrink\); restore it, or run"):
        write_report(folder, language_model())


def test_why_it_stopped(tmp_path: Path) -> None:
    manifest = replace(run_folder(tmp_path).manifest(), status="finished")
    stages = language_model(undone=())
    assert "within the target" in why(stages, Shrinking(to=0.2), manifest)
    assert "takes at most 50.0 %" in why(stages, Shrinking(latency=0.5), manifest)
    assert why(language_model(), Shrinking(to=0.2), manifest).endswith("(ffn 416 -> 256, heads 3 -> 2) was undone.")
    assert "61.1 % may be as low as 58.8 %, and at least 98.0 % is" in why(
        language_model(), Shrinking(min_quality=0.98), manifest
    )
    assert "nothing more could be cut of ffn." in why(stages, Shrinking(to=0.1, cut=("ffn",)), manifest)
    assert "the time for new stages (30m) was over, or" in why(stages, Shrinking(to=0.1, budget="30m"), manifest)
    going = replace(manifest, status="running", process={"host": "another", "pid": 1, "started": 0.0})
    assert "it may go on" in why(stages, Shrinking(to=0.1), going)
    failed = replace(manifest, status="failed", error="the disk is full")
    assert why(stages, Shrinking(to=0.1), failed) == "It did not come to its end (failed: the disk is full)."


def test_without_a_stage_there_is_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(WrongOrder, match="no stage yet, so there is nothing to report; wait for the first one"):
        write_report(run_folder(tmp_path), [])


def test_percent() -> None:
    assert [percent(share) for share in (0, 1e-6, 0.5, 1, 12.34, float("inf"))] == [
        *("0.0 %", "under 0.1 %", "50.0 %", "100.0 %", "1,234.0 %", "unknown")
    ]
