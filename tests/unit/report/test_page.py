from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from budwood.report.page import MOST_BYTES, page
from budwood.report.table import Estimate, Pick, Sample, Table
from report_tables import EVIL, MIB, classification, crowd, language, pick

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "wbr", "input"}


class Outline(HTMLParser):
    """Headings, tags that stay open, ids and what refers to them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.headings: list[int] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.wanted += (named.get("aria-labelledby") or "").split()
        self.wanted += [value[1:] for name, value in attrs if name == "href" and value and value.startswith("#")]
        self.wanted += [value for name, value in attrs if name == "for" and value]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(table: Table, chosen: Pick | None = None) -> str:
    return page(table, chosen or pick(table))


def words(text: str) -> str:
    """What a reader sees, roughly."""
    body = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]*>", " ", body)))


TABLES = [classification(), language(), crowd(methods=9, samples=3, letters=900)]


@pytest.mark.parametrize("table", TABLES, ids=["classes", "words", "crowd"])
def test_the_page_is_whole(table: Table) -> None:
    outline = Outline(made(table))
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.wanted) <= set(outline.ids)
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False))


@pytest.mark.parametrize("table", TABLES, ids=["classes", "words", "crowd"])
def test_the_page_needs_nothing_else(table: Table) -> None:
    text = made(table)
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|url\((?!#clip)|@import|<link|<iframe|<img|src=", text)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert script
    assert len(script[1]) < 3000


def test_it_opens_with_the_recommendation_and_then_its_weaknesses() -> None:
    table = classification()
    text = words(made(table))
    chosen = pick(table)
    parts = [chosen.headline, chosen.reasons[0], "Cannot be told from the best", "Cheapest among them"]
    parts += ["What this comparison cannot tell", table.weaknesses[0], "neighbours may be equal"]
    order = [text.index(part) for part in parts]
    assert order == sorted(order)


def test_nothing_can_be_recommended() -> None:
    nothing = Pick(
        label=None, headline="No method is within the limits.", reasons=(), tied=(), cheapest={}, over_limits={}
    )
    text = made(classification(), nothing)
    assert "No method is within the limits." in text
    assert "picked-row" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)


def test_every_method_has_a_row_or_a_reason() -> None:
    table = classification()
    text = made(table)
    rows = re.findall(r'<th scope="row" class="who" data-v="([^"]*)"', text)
    assert rows == [method.label for method in table.methods if method.seeds]
    said = words(text)
    assert "compacter: not for this model or task no reduction divides 130; use 128" in said
    assert "adapterp: failed seed 0: the loss was nan at step 7" in said


def test_equal_methods_are_marked_and_none_is_numbered() -> None:
    text = made(classification())
    assert text.count("cannot be told apart</span>") == 3, "lora twice and houlsby"
    assert text.count("best observed<") == 1
    assert "rank:" not in words(text).lower().replace("lora: rank", "")


def test_what_was_not_measured_is_a_dash_that_says_so() -> None:
    table = classification()
    bare = replace(table.methods[2], peak_bytes=None, mergeable=None, quality=None, learning_rate=None)
    text = made(replace(table, methods=(bare,)))
    assert text.count('<span title="not measured">-</span>') >= 4
    assert "None" not in words(text)
    assert "nan" not in words(text)


def test_numbers_that_are_none_are_said_and_not_drawn() -> None:
    table = language()
    wild = replace(
        table.methods[1],
        quality=Estimate(value=float("inf"), low=3.0, high=float("inf")),
        below_best=Estimate(value=float("nan"), low=float("nan"), high=float("nan")),
        is_best=False,
    )
    text = made(replace(table, methods=(table.methods[0], wild, *table.methods[2:])))
    assert "nan%" not in text
    assert "inf%" not in text


def test_limits_and_who_breaks_them() -> None:
    table = replace(classification(), limits={"memory_bytes": 200.0 * MIB, "train_s": 90.0, "quality": 0.8})
    over = replace(pick(table), over_limits={"full": "memory 310 MiB, 110 MiB more than the 200 MiB allowed"})
    text = words(made(table, over))
    assert "memory at most 200 MiB" in text
    assert "training time at most 1 m 30 s" in text
    assert "accuracy at least 80.0" in text
    assert "110 MiB more than" in text
    assert "over a limit" in text
    assert "your limit: 200 MiB" in text


def test_an_unfinished_comparison_says_what_waits() -> None:
    text = words(made(replace(classification(), status="interrupted", waiting=("lora, seed 1", "lora, seed 2"))))
    assert "was interrupted" in text
    assert "2 runs wait: lora, seed 1 and 1 more" in text
    assert "waits" not in words(made(classification()))


def test_a_method_that_waits_is_no_failure() -> None:
    table = classification()
    waits = replace(table.methods[-1], failures=())
    text = words(made(replace(table, methods=(*table.methods[:-1], waits), status="running")))
    assert "adapterp: waiting No run is done yet." in text
    more = replace(waits, label="unipelt")
    text = words(made(replace(table, methods=(*table.methods[:-1], waits, more), status="running")))
    assert "adapterp, unipelt: waiting" in text


def test_learning_rates_say_what_became_of_each() -> None:
    text = words(made(classification()))
    assert text.count(", chosen") == 8
    assert "diverged" in text
    assert text.count("The chosen rate is the end of the grid") == 1
    assert "None is clearly below that, so the method's own 0.05 was used" in text


def test_equal_answers_stand_together_and_others_are_marked() -> None:
    one = Sample(
        prompt="p",
        reference="The inn is cheap.",
        answers={"base": "Inn!", "full": "The inn is cheap.", "lora": "The inn is cheap.", "ia3": "The inn is dear ."},
        disagreement=0.5,
    )
    text = made(replace(classification(), samples=(one,)))
    article = text[text.index("<article") : text.index("</article>")]
    assert article.count("<dd") == 5, "prompt, reference, three answers"
    assert "as the reference" in article
    assert "The inn is <mark>dear .</mark>" in article
    assert words(article).count("The inn is cheap.") == 2


def test_the_right_answer_is_the_measure_even_where_few_give_it() -> None:
    one = Sample(prompt="p", reference="good", answers={"base": "bad", "full": "bad", "lora": "good"}, disagreement=0.6)
    text = made(replace(classification(), samples=(one,)))
    article = text[text.index("<article") : text.index("</article>")]
    assert "<mark>bad</mark>" in article
    assert article.index('class="same">good') < article.index("<mark>bad")


def test_the_base_is_not_compared_with_itself() -> None:
    assert ">itself</td>" in made(classification())


def test_an_empty_answer_is_said() -> None:
    one = Sample(prompt="p", reference="", answers={"base": "", "full": "x"}, disagreement=1.0)
    assert "(no words)" in made(replace(classification(), samples=(one,)))


def test_texts_cannot_break_out() -> None:
    table = classification()
    evil = replace(table.methods[2], label=EVIL, failures=(EVIL,))
    table = replace(
        table,
        title=EVIL,
        model=EVIL,
        data=EVIL,
        methods=(*table.methods[:2], evil, *table.methods[3:]),
        weaknesses=(EVIL,),
        notes=((EVIL, EVIL),),
        repeat=(EVIL,),
        licences=((EVIL, EVIL),),
        waiting=(EVIL,),
        samples=(Sample(prompt=EVIL, reference=EVIL, answers={EVIL: EVIL, "base": "\x00\ud800"}, disagreement=1.0),),
    )
    chosen = Pick(
        label=EVIL, headline=EVIL, reasons=(EVIL,), tied=(EVIL,), cheapest={EVIL: EVIL}, over_limits={EVIL: EVIL}
    )
    text = made(table, chosen)
    assert text.count("<script>") == 1
    assert "<b>" not in text
    assert "\x00" not in text
    assert Outline(text).open == []
    text.encode("utf-8")


def test_a_crowd_fits_and_says_what_is_left_out() -> None:
    text = made(crowd())
    assert len(text.encode()) < MOST_BYTES
    assert "more letters in the run folder" in text
    assert "more in the run folders" in text


def test_ordinary_texts_are_not_cut() -> None:
    text = made(replace(language(), samples=language().samples * 4))
    assert text.count("<article") == 20
    assert "more letters" not in text


def test_a_table_without_anything_is_a_page_too() -> None:
    empty = replace(
        classification(), metric=None, rows_scored=0, methods=(), samples=(), weaknesses=(), notes=(), repeat=(),
        licences=(), status="failed",
    )  # fmt: skip
    nothing = Pick(label=None, headline="Nothing yet.", reasons=(), tied=(), cheapest={}, over_limits={})
    assert Outline(made(empty, nothing)).open == []


def probed(text: str, width: int, tmp_path: Path) -> dict[str, Any]:
    """What `PROBE` finds in the page, in a frame of that width in Chromium."""
    (tmp_path / "page.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(f'<iframe src="page.html" width="{width}" height="900"></iframe>{LISTEN}', encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*command, "--window-size=1400,1000", "--virtual-time-budget=3000", "--dump-dom", frame.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, done.stdout[-2000:]
    return json.loads(unescape(found[1]))


LISTEN = "<script>addEventListener('message', event => document.body.dataset.said = event.data)</script>"
PROBE = """<script>
const press = (column, times) => {
  const button = document.querySelectorAll("table.sortable thead tr:last-child button")[column];
  for (let i = 0; i < times; i++) button.click();
  return [...document.querySelectorAll("table.sortable tbody th")].map(one => one.dataset.v).join(" ");
};
const said = {
  buttons: document.querySelectorAll("table.sortable thead button").length,
  heads: document.querySelectorAll("table.sortable thead tr:last-child th").length,
  best: press(1, 1), worst: press(1, 1), names: press(0, 1), memory: press(6, 1),
  sorted: [...document.querySelectorAll("[aria-sort]")].map(one => one.textContent + "=" + one.ariaSort).join(),
};
document.querySelectorAll(".tabs input")[2].click();
said.shown = [...document.querySelectorAll(".panels figure")].filter(one => one.offsetHeight).map(one => one.id).join();
said.fits = document.documentElement.scrollWidth <= document.documentElement.clientWidth;
parent.postMessage(JSON.stringify(said), "*");
</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
def test_a_browser_sorts_the_table_and_changes_the_drawing(tmp_path: Path) -> None:
    said = probed(made(classification()), 1280, tmp_path)
    assert said["buttons"] == said["heads"] == 15
    assert said["best"].split()[0] == "full"
    assert said["best"].split()[-1] == "base"
    assert said["worst"].split() == said["best"].split()[::-1]
    assert said["names"].split() == sorted(said["names"].split())
    assert said["memory"].split()[0] == "bitfit"
    assert said["memory"].split()[-1] == "base", "what was not measured comes last"
    assert said["sorted"] == "peak memory=ascending"
    assert said["shown"] == "panel-2"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
@pytest.mark.parametrize("width", [400, 800, 1280])
def test_the_page_itself_never_scrolls_sideways(width: int, tmp_path: Path) -> None:
    table = crowd(methods=12, samples=3, letters=900)
    assert probed(made(replace(table, title="a" * 200)), width, tmp_path)["fits"]
