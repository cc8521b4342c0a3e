"""What the default settings reach on real text: E2E perplexity with a language model, SST-2 accuracy with an encoder.

    python benchmarks/quality.py E2E/valid.txt SST2_FOLDER [--steps 400] [--seeds 1]

E2E: LoRA on demo-lm, 60 steps of 8 rows; goal: answer perplexity below 4.0 on held-out rows.
SST-2 (a folder with train.tsv and dev.tsv): LoRA and full fine-tuning of demo-encoder with equal steps and equal rows;
goal: LoRA within one point of accuracy of full fine-tuning on the dev split.
One JSON line for each run, with its interval, time and memory; intervals are over rows, not over seeds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from budwood.train.run import Run, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("e2e", type=Path)
    parser.add_argument("sst2", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        small = {"eval_every": 0, "test_rows": 200}
        told("e2e", "lora", 0, train("demo-lm", asked.e2e, budget="60steps", config=small, out=out / "e2e"))
        for seed in range(asked.seeds):
            for method in ("lora", "full"):
                settings = {"eval_every": 0, "test_rows": 2000, "batch": 16, "seed": seed}
                run = train(
                    "demo-encoder", asked.sst2, method=method, budget=f"{asked.steps}steps", config=settings,
                    out=out / f"sst2-{method}-{seed}",
                )  # fmt: skip
                told("sst2", method, seed, run)


def told(task: str, method: str, seed: int, run: Run) -> None:
    """Print one line."""
    result = run.result
    assert result is not None
    assert result.speed is not None
    assert result.memory is not None
    found = next(q for q in result.quality if q.metric in ("perplexity", "accuracy"))
    line = {"task": task, "method": method, "seed": seed, found.metric: round(found.score.value, 4)}
    line |= {"interval": [round(found.score.low, 4), round(found.score.high, 4)], "n": found.score.n}
    line |= {"base": round(found.base.value, 4)} if found.base else {}
    line |= {"steps": result.speed.steps, "tokens_per_s": round(result.speed.tokens_per_s, 1)}
    line |= {"train_s": round(result.speed.total_s), "peak_mib": result.memory.peak_bytes >> 20}
    line |= {"predicted_mib": (result.memory.predicted_bytes or 0) >> 20}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
