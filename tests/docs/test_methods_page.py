"""docs/methods.md is what the method classes say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_up_to_date() -> None:
    script = ROOT / "scripts" / "methods_page.py"
    done = subprocess.run([sys.executable, str(script), "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/methods_page.py"
