from __future__ import annotations

from pathlib import Path

from budwood.records import Manifest, RunFolder, machine
from budwood.records.words import cell


def test_a_cell_shows_how_a_run_stands_and_escapes_what_people_wrote(tmp_path: Path) -> None:
    manifest = Manifest(
        command=("budwood",), model="<script>m</script>", method={"lora": {}}, data="d & e", seed=0, task="causal-lm"
    )
    folder = RunFolder.create(
        tmp_path, manifest, config={}, data={}, environment=machine(device="cpu", threads=1), out=tmp_path / "run"
    )
    shown = cell(folder)
    assert "lora on &lt;script&gt;m&lt;/script&gt;, d &amp; e: running" in shown
    assert "<script" not in shown
    assert str(tmp_path / "run") in shown
    folder.fail("it <broke>")
    assert "it &lt;broke&gt;" in cell(folder)
